"""An option that would be ignored is refused, and a file that is there is not replaced unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from structured.data import read_npz
from tests.structured.commands.cli import ok, refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "show", "digits", "--labels", "x.xml"), "--labels goes with ARFF files, and dig"),
        (("data", "show", "rows.npz", "--n-labels", "3"), "--n-labels goes with LIBSVM files"),
        (("train", "-d", "rows.svm", "--labels", "x.xml"), "--labels goes with ARFF files"),
        (("train", "-d", "digits", "--features-from", "1"), "--features-from goes with LIBSVM"),
        (("compare", "-d", "rows.npz", "--n-features", "7"), "--n-features goes with LIBSVM files"),
        (
            ("data", "convert", "rows.npz", "-o", "x.npz", "--labels-from", "0"),
            "--labels-from goes with LIBSVM files, and rows.npz is none; leave it out",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_for_files_of_another_format_is_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    np.savez("rows.npz", X=np.ones((4, 2)), Y=np.ones((4, 1), dtype=int))
    Path("rows.svm").write_text("1 1:1\n")
    assert message in refused(2, *arguments)


def test_predict_refuses_a_base_for_a_file_that_has_none(trained: Path) -> None:
    Path("rows.arff").write_text("@relation r\n@attribute north numeric\n@data\n1\n")
    line = refused(2, "predict", trained, "rows.arff", "--features-from", 0)
    assert "--features-from goes with LIBSVM files, and rows.arff is none; leave it out" in line


def test_evaluate_refuses_options_for_a_file_that_is_not_named(trained: Path) -> None:
    line = refused(2, "evaluate", trained, "--n-features", 77, "--labels", "nowhere.xml")
    assert "--labels goes with --data FILE; the data of a run are read as they were" in line


@pytest.mark.parametrize("fraction", ["0", "1", "2", "-0.5", "nan"])
def test_a_validation_fraction_that_is_no_share_is_answered_with_its_option(fraction: str) -> None:
    line = refused(2, "train", "--validation-fraction", fraction)
    assert f"--validation-fraction must be between 0 and 1; found {fraction}, wanted" in line


def test_predict_replaces_a_file_only_with_force(trained: Path, file: Path) -> None:
    Path("labels.txt").write_text("mine\n")
    line = refused(2, "predict", trained, file, "-o", "labels.txt")
    assert line == (
        "structured: labels.txt is there already; add --force to replace it, or name another file "
        "with --output"
    )
    assert Path("labels.txt").read_text() == "mine\n"
    ok("predict", trained, file, "-o", "labels.txt", "--force")
    assert len(Path("labels.txt").read_text().splitlines()) == 60


def test_convert_replaces_a_file_only_with_force_and_gives_any_format_its_name(
    file: Path,
) -> None:
    Path("out.npz").write_bytes(b"mine")
    line = refused(2, "data", "convert", file, "-o", "out.npz", "--name", "shore")
    assert "out.npz is there already; add --force to replace it" in line
    assert Path("out.npz").read_bytes() == b"mine"
    ok("data", "convert", file, "-o", "out.npz", "--name", "shore", "--force")
    assert read_npz("out.npz").name == "shore"
