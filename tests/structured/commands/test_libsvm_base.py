"""Where a LIBSVM file counts from is decided once, at training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.structured.commands.cli import TINY, ok, refused

ROWS = 40


def written(path: str, X: np.ndarray, Y: np.ndarray, *, base: int, width: int = 4) -> str:
    """Write rows whose labels are counted from 1; features that are 0 are left out."""

    def pairs(row: Sequence[float]) -> str:
        return " ".join(f"{k + base}:{value:.4f}" for k, value in enumerate(row[:width]) if value)

    labels = [",".join(str(k + 1) for k in np.flatnonzero(row)) for row in Y]
    Path(path).write_text(
        "".join(f"{own} {pairs(row)}\n" for own, row in zip(labels, X, strict=True))
    )
    return path


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(ROWS, 4))
    return X, (X[:, :3] > 0).astype(int)


@pytest.fixture(scope="module")
def counted_from_0(
    rows: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run whose data count their features from 0, which only the option says."""
    folder = tmp_path_factory.mktemp("libsvm")
    X = rows[0].copy()
    X[:, 0] = 0  # index 0 never occurs
    file = written(str(folder / "train.svm"), X, rows[1], base=0)
    widths = ("--features-from", 0, "--n-features", 4)
    train = ("train", "-m", "cross_entropy", "-d", file, *TINY, "-e", 2, *widths)
    ok(*train, "-o", folder / "run")
    return folder / "run"


def test_the_bases_that_training_found_are_written_into_the_folder_of_the_run(
    counted_from_0: Path,
) -> None:
    reading = json.loads((counted_from_0 / "setting.json").read_text())["reading"]
    assert {key: value for key, value in reading.items() if key != "labels"} == {
        "n_features": 4,
        "n_labels": 3,
        "features_from": 0,
        "labels_from": 1,
    }


def test_the_prediction_for_a_row_does_not_depend_on_the_other_rows_of_its_file(
    counted_from_0: Path, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    X, Y = rows[0][:5].copy(), rows[1][:5]
    X[1:, 0] = 0
    with_zero = written("with.svm", X, Y, base=0)
    without = written("without.svm", X[1:], Y[1:], base=0)
    first, *others = ok("predict", counted_from_0, with_zero, "--json").stdout.splitlines()
    alone = ok("predict", counted_from_0, without, "--json").stdout.splitlines()
    assert [json.loads(line)["probabilities"] for line in others] == [
        json.loads(line)["probabilities"] for line in alone
    ]
    assert json.loads(first)["row"] == 0


def test_evaluate_reads_other_rows_with_the_base_and_the_widths_of_training(
    counted_from_0: Path, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    X, Y = rows[0].copy(), rows[1]
    X[:, 0] = 0
    whole = written("whole.svm", X, Y, base=0)
    from_1 = written("from1.svm", X, Y, base=1)

    def scores(*arguments: object) -> object:
        return json.loads(ok("evaluate", counted_from_0, *arguments, "--json").stdout)["scores"]

    found = scores("-d", whole)
    assert found == scores("-d", from_1, "--features-from", 1)
    # No row of this one has the last label or the last feature.
    few = X[Y[:, 2] == 0]
    narrow = written("narrow.svm", few, Y[Y[:, 2] == 0], base=0, width=3)
    ok("evaluate", counted_from_0, "-d", narrow)


def test_a_model_of_other_data_wants_to_be_told_where_a_libsvm_file_counts_from(
    trained: Path, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    file = written("rows.svm", *rows, base=0)
    line = refused(2, "predict", trained, file)
    assert line == (
        "structured: rows.svm: a LIBSVM file does not say where it counts from, and the model was "
        "trained on data of another kind; give --features-from (0 or 1)"
    )
    ok("predict", trained, file, "--features-from", 0)
    line = refused(2, "evaluate", trained, "-d", file)
    assert "give --features-from and --labels-from (0 or 1)" in line


def test_with_a_run_whose_folder_does_not_say_the_base_it_is_guessed_and_said_so(
    counted_from_0: Path, rows: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for file in counted_from_0.iterdir():
        if file.is_file():
            (old / file.name).write_bytes(file.read_bytes())
    setting = json.loads((old / "setting.json").read_text())
    setting["reading"] |= {"features_from": None, "labels_from": None}
    (old / "setting.json").write_text(json.dumps(setting))
    file = written("rows.svm", *rows, base=0)
    said = ok("predict", old, file).stderr
    assert "rows.svm: where it counts from is guessed from its rows; --features-from says" in said
