"""`evaluate RUN` scores the rows that the run left for testing, or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from structured.data import MultiLabelData, write_npz
from tests.structured.commands.cli import TINY, ok, refused

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, :3] > 0).astype(int)


def put(X: np.ndarray, Y: np.ndarray, names: tuple[str, ...] = ()) -> None:
    write_npz(MultiLabelData(X, Y, label_names=names), Path("mine.npz"))


@pytest.fixture
def run() -> str:
    put(X, Y)
    ok("train", "-m", "cross_entropy", "-d", "mine.npz", *TINY, "-e", 1, "-o", "run")
    return "run"


def keep_only(run: str, *parts: str) -> None:
    """Make the folder one of a run that wrote down the fingerprints of some parts."""
    file = Path(run, "setting.json")
    setting = json.loads(file.read_text())
    setting["fingerprints"] = {part: setting["fingerprints"][part] for part in parts}
    file.write_text(json.dumps(setting))


def test_a_file_that_has_more_rows_than_at_training_is_refused(run: str) -> None:
    put(np.concatenate([X, X[:5]]), np.concatenate([Y, Y[:5]]))
    line = refused(2, "evaluate", run)
    assert (
        "mine.npz has changed since the run was trained: its training part has other rows" in line
    )
    assert "put the data back as they were, or score all rows of a file with --data FILE" in line
    ok("evaluate", run, "--data", "mine.npz")
    put(X, Y)
    ok("evaluate", run)


def test_a_file_that_has_other_rows_in_its_test_part_alone_is_refused(run: str) -> None:
    keep_only(run, "test")
    put(X + 1, Y)
    assert "its test part has other rows or labels" in refused(2, "evaluate", run)


def test_a_file_whose_labels_have_other_names_is_refused(run: str) -> None:
    put(X, Y, ("sea", "sky", "sand"))
    assert "its training part has other rows or labels" in refused(2, "evaluate", run)


def test_of_a_run_that_wrote_no_fingerprint_of_its_own_those_of_its_description_are_compared(
    run: str,
) -> None:
    file = Path(run, "setting.json")
    setting = json.loads(file.read_text())
    del setting["fingerprints"]
    file.write_text(json.dumps(setting))
    ok("evaluate", run)
    put(X + 1, Y)
    assert "its training part has other rows or labels" in refused(2, "evaluate", run)


def test_a_control_whose_labels_were_shuffled_is_evaluated_on_the_data_as_they_are() -> None:
    put(X, Y)
    command = ("compare", "-m", "cross_entropy", "--seeds", 1, "--control", "--no-plots", "-j", 1)
    ok(*command, "-d", "mine.npz", *TINY, "-e", 1, "-o", "both")
    folder = Path("both/shuffled-labels/seed0")
    found = ok("evaluate", folder, "--json").stdout
    setting = json.loads((folder / "setting.json").read_text())
    del setting["fingerprints"]
    (folder / "setting.json").write_text(json.dumps(setting))
    assert ok("evaluate", folder, "--json").stdout == found
