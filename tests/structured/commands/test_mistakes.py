"""Mistakes: one line, an exit code, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from structured.commands.failures import explain
from structured.data import MultiLabelData, write_npz
from structured.errors import CheckpointError, DownloadError
from tests.structured.commands.cli import TINY, invoke, ok, refused, rows


def cut(path: Path) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--nothing"), "No such option: --nothing"),
        (("tain",), "No such command 'tain'"),
        (("train", "--epochs", "many"), "--epochs"),
        (("train", "--epochs", "0"), "--epochs"),
        (("train", "-m", "svm"), "wanted one of 'cross_entropy', 'implicit'"),
        (("train", "-m", "implicit:speed=1"), "found unknown 'speed'"),
        (("train", "-m", "implicit:fast"), "wanted name=value, found 'fast'"),
        (
            ("train", "-m", "implicit:primary=Vlaue"),
            "'Vlaue', wanted one of Margin, ContrastiveDivergence, Value; did you mean 'Value'?",
        ),
        (("train", "-m", "implicit:sampler=soft"), "NoPathSoft; did you mean 'Soft'?"),
        (("train", "-m", "implicit:damping.x=1"), "damping has no options of its own"),
        (("train", "-m", "nowhere.json"), "there is no such file"),
        (("compare", "-m", "implicit", "-m", "implicit"), "names one method twice"),
        (("train", "-m", "implicit:outer_lr=fast"), "outer_lr: found 'fast', wanted a finite"),
        (("train", "-m", "implicit:gauss_newton=no"), "gauss_newton: found 'no', wanted true or"),
        (("train", "--validation-fraction", "2"), "fraction must be between 0 and 1; found 2"),
        (("train", "--dropout", "1.5"), "dropout: found 1.5"),
        (("train", "--activation", "none"), "activation: found 'none', wanted one of relu"),
        (("train", "--device", "quantum"), "device: found 'quantum'"),
        (("train", "--monitor", "loss"), "monitor: found 'loss', wanted one of f1_expected"),
        (("train", "-d", "digit"), "did you mean 'digits'?"),
        (("train", "-d", "nowhere.npz"), "there is no such file; check the path"),
        (("train", "-d", "no/where"), "no file no/where"),
        (("train", "--split", "thirds"), "its splits: disjoint_images"),
        (("train", "--mixed-precision"), "mixed_precision: found True"),
        (("predict", "nowhere", "rows.npz"), "holds no finished run"),
        (("data", "show", "nowhere.arff"), "there is no such file"),
        (("data", "convert", "a.npz", "-o", "b.txt"), "its name must end in .npz"),
        (("data", "convert", "a.npz"), "Missing option '--output'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_named_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    code = 1 if arguments[0] == "predict" else 2
    assert message in refused(code, *arguments)


BAD_FILES: Mapping[str, tuple[str, str, str]] = {
    "a cut ARFF row": ("x.arff", "@relation r\n@attribute f numeric\n@data\n0.5,\n", "x.arff:4: "),
    "a cell that is no number": (
        "x.arff",
        "@relation r\n@attribute f numeric\n@attribute a {0,1}\n@data\nred,1\n",
        "x.arff:5: ",
    ),
    "a bad LIBSVM pair": ("x.svm", "1 1:0.5\n1 2-3\n", "x.svm:2: "),
    "an empty file": ("x.svm", "", "x.svm:1: "),
    "no npz": ("x.npz", "hello", "x.npz: not a whole .npz data set"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_names_file_and_line(case: str) -> None:
    name, text, place = BAD_FILES[case]
    Path(name).write_text(text)
    Path("x.xml").write_text("<labels><label name='a'/></labels>")
    assert refused(2, "train", "-d", name).startswith(f"structured: {place}")


def test_arff_without_its_list_of_labels_says_how_to_name_it() -> None:
    Path("x.arff").write_text("@relation r\n@attribute f numeric\n@data\n1\n")
    line = refused(2, "data", "show", "x.arff")
    assert "x.xml is not there; name it with --labels FILE.xml" in line


def test_rows_that_do_not_fit_the_model_are_refused(trained: Path, tmp_path: Path) -> None:
    write_npz(MultiLabelData(np.ones((2, 3)), np.ones((2, 3))), tmp_path / "narrow.npz")
    assert "has 3 features; the model was trained on 4" in refused(
        2, "predict", trained, "narrow.npz"
    )
    other = MultiLabelData(np.ones((2, 4)), np.ones((2, 1)), feature_names=("a", "b", "c", "d"))
    write_npz(other, tmp_path / "other.npz")
    assert "no feature 'north' and 3 more" in refused(2, "predict", trained, "other.npz")
    assert "no feature 'north'" in refused(2, "evaluate", trained, "-d", "other.npz")


def test_a_folder_that_output_is_to_be_in_must_be_there(trained: Path, file: Path) -> None:
    line = refused(2, "predict", trained, file, "--output", "no/where/x.txt")
    assert line == "structured: no/where: there is no such folder; make it first"
    Path("taken").mkdir()
    line = refused(2, "predict", trained, file, "--output", "taken")
    assert line == "structured: taken: Is a directory"
    assert [path.name for path in Path().iterdir()] == ["taken"]


def test_an_unknown_decoder_is_answered_with_the_four_in_plain_words(
    trained: Path, file: Path
) -> None:
    line = refused(2, "predict", trained, file, "--decoder", "foo")
    assert "'--decoder': 'foo' is not one of 'threshold', 'tuned', 'expected_f1', 'joint'" in line


def test_predict_says_what_to_do_with_a_data_set_that_is_known_by_name(trained: Path) -> None:
    line = refused(2, "predict", trained, "digits")
    assert f"`structured evaluate {trained} --data digits`" in line
    assert "check the path" in refused(2, "predict", trained, "digit")


def test_the_folder_of_a_comparison_is_answered_with_the_runs_in_it(file: Path) -> None:
    methods = ("-m", "cross_entropy", "--seeds", 1, "--no-plots")
    ok("compare", *methods, "-d", file, *TINY, "-o", "both", "-e", 1)
    for command in (("evaluate", "both"), ("predict", "both", file)):
        line = refused(1, *command)
        assert "is the folder of a comparison; name one of its runs" in line
        assert "both/cross-entropy/seed0" in line
    ok("evaluate", "both/cross-entropy/seed0")


def test_a_run_is_not_overwritten_and_another_one_is_not_resumed(
    file: Path, tmp_path: Path
) -> None:
    command = ("train", "-m", "cross_entropy", "-d", file, *TINY, "-o", "run")
    ok(*command, "-e", 1)
    before = (tmp_path / "run/checkpoint.safetensors").read_bytes()
    assert "add --resume" in refused(2, *command, "-e", 1)
    line = refused(1, *command, "-e", 1, "--batch-size", 7, "--resume")
    assert "batch_size is 32, now 7" in line
    assert (tmp_path / "run/checkpoint.safetensors").read_bytes() == before
    ok(*command, "-e", 3, "--resume")
    assert len(rows(tmp_path / "run/log.csv")) == 3
    cut(tmp_path / "run/checkpoint.safetensors")
    assert "cut short or damaged" in refused(1, *command, "-e", 3, "--resume")
    cut(tmp_path / "run/model.safetensors")
    assert "cut short or damaged" in refused(1, "predict", "run", file)


def test_a_model_of_another_run_is_not_taken_for_the_runs_own(
    trained: Path, file: Path, tmp_path: Path
) -> None:
    ok("train", "-m", "cross_entropy", "-d", file, *TINY, "-o", "run", "-e", 1)
    (tmp_path / "run/model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    for command in (("evaluate", "run"), ("predict", "run", file)):
        line = refused(1, *command)
        assert "is of another method (Implicit) than the run of this folder (CrossEntropy)" in line
    (tmp_path / "run/run.json").unlink()
    assert "run.json: is not there or damaged" in refused(1, "evaluate", "run")


def test_each_kind_of_failure_has_its_exit_code() -> None:
    assert explain(CheckpointError("x")) == ("x", 1)
    assert explain(DownloadError("no\nnetwork")) == ("no network", 1)
    assert explain(OSError(28, "No space left on device", "x.npz")) == (
        "x.npz: No space left on device",
        1,
    )
    assert explain(FileNotFoundError(2, "No such file", "x")) == ("x: No such file", 2)
    assert explain(ModuleNotFoundError("No module named 'rich'")) == (
        "No module named 'rich'; `pip install 'bilevel-structured[structured]'`",
        1,
    )
    assert explain(ZeroDivisionError()) is None


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("structured.commands.data.open_data", defect)
    result = invoke("data", "show", "digits")
    assert isinstance(result.exception, ZeroDivisionError)
