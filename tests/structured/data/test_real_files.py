"""The readers, splits and the registry on real public data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from structured.data import (
    iterative_stratification,
    load,
    read_arff,
    read_mulan,
    read_npz,
    write_npz,
)
from structured.data.registry import SURROGATE_SIZES
from structured.data.sources import public_sources
from structured.errors import DataError

pytestmark = pytest.mark.data

SIZES = {
    "bibtex": (7395, 1836, 159, 2.402),
    "birds": (645, 260, 19, 1.014),
    "cal500": (502, 68, 174, 26.044),
    "delicious": (16105, 500, 983, 19.020),
    "emotions": (593, 72, 6, 1.869),
    "rcv1sub": (30000, 47236, 101, 2.901),
    "scene": (2407, 294, 6, 1.074),
    "yeast": (2417, 103, 14, 4.237),
}


def assert_same(one, other) -> None:
    for ours, theirs in zip(one.dense(), other.dense(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.label_names == other.label_names
    assert one.feature_names == other.feature_names
    for split in set(one.splits) & set(other.splits):
        np.testing.assert_array_equal(one.splits[split].parts, other.splits[split].parts)


@pytest.mark.parametrize("name", ["bibtex", "emotions"])
def test_the_source_files_hold_what_the_npz_holds(data_directory, name):
    raw = data_directory / "raw"
    arff = {part: raw / f"{name}-{part}.arff" for part in ("train", "test")}
    data = read_mulan(arff, raw / f"{name}.xml")
    assert_same(data, read_npz(data_directory / name / f"{name}.npz"))


@pytest.mark.parametrize("name", ["bibtex", "emotions"])
def test_loading_from_the_public_files_equals_loading_from_the_folder(
    data_directory, site, tmp_path, monkeypatch, name
):
    """The files, sizes and hashes are the packaged ones; only the server is another."""
    local = [
        replace(source, url=site.source(source.file, (data_directory / "raw" / source.file)
                                        .read_bytes()).url)
        for source in public_sources()
        if source.dataset == name
    ]  # fmt: skip
    there = load(name)
    monkeypatch.delenv("STRUCTURED_DATA")
    made = load(name, tmp_path, progress=False, sources=local)
    assert len(site.asked) == 3
    assert_same(made, there)
    assert there.splits.keys() <= made.splits.keys() | {"stratified3"}
    three = next(split for split in made.splits if split.startswith(("split3", "stratified3")))
    np.testing.assert_array_equal(made.splits[three].parts, there.splits[three].parts)


@pytest.mark.parametrize("name", SIZES)
def test_every_set_of_the_folder_is_of_the_published_size(name):
    data = load(name, download=False)
    rows, features, labels, cardinality = SIZES[name]
    assert (data.n_rows, data.n_features, data.n_labels) == (rows, features, labels)
    assert data.cardinality == pytest.approx(cardinality, abs=6e-4)
    three = [split for split in data.splits.values() if len(split.names) == 3]
    assert [split.names for split in three] == [("train", "validation", "test")]


@pytest.mark.parametrize("name", SURROGATE_SIZES)
def test_the_stored_surrogate_split_is_our_stratification_with_seed_0(data_directory, name):
    data = read_npz(data_directory / name / f"{name}.npz")
    stored = data.splits["split3_surrogate"]
    labelled = np.flatnonzero(np.diff(data.Y.indptr))
    parts = iterative_stratification(data.Y[labelled], SURROGATE_SIZES[name], seed=0)
    np.testing.assert_array_equal(stored.parts[labelled], parts)
    assert (np.delete(stored.parts, labelled) == -1).all()


def test_equal_rows_of_rcv1_are_in_one_part_at_most():
    data = load("rcv1sub", download=False)
    split = data.splits["stratified3"]
    seen = data.splits["first_seen"].rows("true")
    np.testing.assert_array_equal(np.flatnonzero(split.parts >= 0), seen)


def test_writing_a_real_set_and_reading_it_changes_nothing(tmp_path):
    data = load("bibtex", download=False)
    write_npz(data, tmp_path / "b.npz")
    again = read_npz(tmp_path / "b.npz")
    assert_same(again, data)
    assert again.splits.keys() == data.splits.keys()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_real_file_cut_short_names_its_last_line(data_directory, tmp_path, kept):
    whole = (data_directory / "raw" / "bibtex-test.arff").read_bytes()
    cut = whole[: int(kept * len(whole))]
    path = tmp_path / "cut.arff"
    path.write_bytes(cut)
    with pytest.raises(DataError, match="cut") as caught:
        read_arff(path)
    assert caught.value.line == cut.count(b"\n") + 1
