"""Loading by name: the folder of one's own, then the cache, then the public source."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from structured.data import MultiLabelData, Split, known_names, load, read_npz, write_npz
from structured.data.registry import SURROGATE_SIZES
from structured.errors import DataError, DownloadError

HEADER = """\
@relation toy
@attribute size numeric
@attribute sea {0,1}
@attribute sky {0,1}
@data
"""
XML = '<labels><label name="sea"/><label name="sky"/></labels>'
TRAIN = HEADER + "1.5,0,1\n2,1,0\n3,1,1\n"
TEST = HEADER + "4,0,1\n5,1,0\n"


@pytest.fixture
def toy(site):
    """The three public files of a set "toy"."""
    return [
        site.source("toy-train.arff", TRAIN),
        site.source("toy-test.arff", TEST),
        site.source("toy.xml", XML),
    ]


def stored(folder, name: str = "toy", rows: int = 5, **changes) -> MultiLabelData:
    rng = np.random.default_rng(0)
    data = MultiLabelData(
        **{"X": rng.normal(size=(rows, 3)), "Y": rng.integers(2, size=(rows, 2)), "name": name}
        | changes
    )
    (folder / name).mkdir(parents=True)
    write_npz(data, folder / name / f"{name}.npz")
    return data


def test_a_public_set_is_downloaded_read_and_cached(site, toy, tmp_path):
    data = load("toy", tmp_path, progress=False, sources=toy)
    np.testing.assert_array_equal(data.dense()[0].ravel(), [1.5, 2, 3, 4, 5])
    np.testing.assert_array_equal(data.Y.toarray(), [[0, 1], [1, 0], [1, 1], [0, 1], [1, 0]])
    assert data.splits["split"].sizes() == {"train": 3, "test": 2}
    assert data.label_names == ("sea", "sky")
    assert sorted(site.asked) == ["/toy-test.arff", "/toy-train.arff", "/toy.xml"]

    again = load("toy", tmp_path, download=False, sources=toy)
    assert len(site.asked) == 3
    assert again.splits.keys() == data.splits.keys()
    np.testing.assert_array_equal(again.dense()[0], data.dense()[0])
    for key, split in data.splits.items():
        np.testing.assert_array_equal(again.splits[key].parts, split.parts)


def test_one_arff_file_makes_a_set_without_an_official_split(site, tmp_path):
    sources = [site.source("toy.arff", TRAIN), site.source("toy.xml", XML)]
    data = load("toy", tmp_path, progress=False, sources=sources)
    assert list(data.splits) == ["stratified3"]
    assert data.splits["stratified3"].names == ("train", "validation", "test")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failed_download_leaves_no_data_set_and_can_be_taken_up_again(
    site, toy, tmp_path, failing
):
    path = toy[failing].file
    whole = site.files[f"/{path}"]
    site.files[f"/{path}"] = whole[:-20]
    with pytest.raises(DownloadError, match=f"{path}: the transfer was cut short"):
        load("toy", tmp_path, progress=False, sources=toy)
    assert not (tmp_path / "toy" / "toy.npz").exists()
    kept = [entry.name for entry in (tmp_path / "toy" / "source").iterdir()]
    assert sorted(kept) == sorted(source.file for source in toy[:failing])

    site.files[f"/{path}"] = whole
    asked = len(site.asked)
    assert load("toy", tmp_path, progress=False, sources=toy).n_rows == 5
    assert len(site.asked) - asked == 3 - failing


def test_ones_own_folder_comes_before_the_cache(toy, tmp_path, monkeypatch):
    own, cache = tmp_path / "own", tmp_path / "cache"
    stored(own, rows=7)
    stored(cache, rows=9)
    assert load("toy", cache, download=False, sources=toy).n_rows == 9
    monkeypatch.setenv("STRUCTURED_DATA", str(own))
    assert load("toy", cache, download=False, sources=toy).n_rows == 7


def test_the_cache_folder_can_be_set_in_the_environment(toy, tmp_path, monkeypatch):
    stored(tmp_path, rows=9)
    monkeypatch.setenv("STRUCTURED_CACHE", str(tmp_path))
    assert load("toy", download=False, sources=toy).n_rows == 9


def test_a_folder_of_ones_own_that_is_not_there_is_a_mistake(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("STRUCTURED_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"STRUCTURED_DATA is .*absent, which is no folder"):
        load("toy", tmp_path, sources=toy)


def test_without_permission_to_download_the_places_are_listed(site, toy, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("STRUCTURED_DATA", str(own))
    with pytest.raises(DataError, match=r"toy is not at .*own.* and .*cache.*; allow the download"):
        load("toy", tmp_path / "cache", download=False, sources=toy)
    assert not site.asked
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("name", "hint"), [("bibtext", "did you mean 'bibtex'?"), ("xyz", "")])
def test_an_unknown_name_lists_the_known_ones(name, hint):
    with pytest.raises(DataError, match="known: digits, bibtex, birds, cal500") as caught:
        load(name)
    assert str(caught.value).endswith(hint)


def test_a_name_that_climbs_out_of_the_folder_is_unknown(tmp_path):
    with pytest.raises(DataError, match=r"no data set '\.\./toy'"):
        load("../toy", tmp_path)


def test_the_sets_of_the_comparison_are_known():
    assert known_names() == [
        "digits", "bibtex", "birds", "cal500", "delicious", "emotions", "rcv1sub", "scene", "yeast",
    ]  # fmt: skip


def test_a_set_without_a_public_source_says_where_to_put_it(tmp_path):
    with pytest.raises(DataError, match="rcv1sub has no public source to download; put it at"):
        load("rcv1sub", tmp_path)


def test_a_damaged_file_in_the_cache_may_be_deleted_one_of_ones_own_not(toy, tmp_path, monkeypatch):
    stored(tmp_path)
    path = tmp_path / "toy" / "toy.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"toy\.npz: .*; delete it to have it made again"):
        load("toy", tmp_path, sources=toy)
    monkeypatch.setenv("STRUCTURED_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load("toy", tmp_path / "other", sources=toy)
    assert "delete" not in str(caught.value)


def test_a_cache_that_cannot_be_made_says_how_to_choose_another(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="set STRUCTURED_CACHE to another one"):
        load("toy", tmp_path / "file", sources=toy)


def test_a_file_with_a_three_way_split_keeps_it_alone(toy, tmp_path):
    split = Split([0, 0, 0, 1, 2], ("train", "validation", "test"))
    stored(tmp_path, splits={"given": split})
    assert list(load("toy", tmp_path, sources=toy).splits) == ["given"]


def test_only_the_first_of_equal_rows_is_stratified(toy, tmp_path):
    seen = Split([1, 1, 0, 1, 1, 0], ("false", "true"))
    stored(tmp_path, rows=6, splits={"first_seen": seen})
    split = load("toy", tmp_path, sources=toy).splits["stratified3"]
    np.testing.assert_array_equal(split.parts < 0, [False, False, True, False, False, True])


def test_the_surrogate_has_the_published_sizes_and_leaves_out_unlabelled_rows(tmp_path):
    sizes = SURROGATE_SIZES["bibtex"]
    labels = sparse.random_array((sum(sizes) + 3, 4), density=0.2, rng=np.random.default_rng(0))
    Y = (labels.toarray() > 0).astype(np.int8)
    Y[:, 0] = 1
    Y[[5, 70, 700]] = 0
    stored(tmp_path, name="bibtex", X=np.ones((len(Y), 1)), Y=Y)
    split = load("bibtex", tmp_path, download=False).splits["split3_surrogate"]
    assert tuple(split.sizes().values()) == sizes
    np.testing.assert_array_equal(np.flatnonzero(split.parts < 0), [5, 70, 700])


def test_the_digits_need_no_file(tmp_path):
    data = load("digits", tmp_path, download=False)
    assert data.name == "digits"
    assert not list(tmp_path.iterdir())


def test_what_is_cached_is_a_readable_data_set(toy, tmp_path):
    load("toy", tmp_path, progress=False, sources=toy)
    cached = read_npz(tmp_path / "toy" / "toy.npz")
    assert (cached.name, list(cached.splits)) == ("toy", ["split"])
