"""The command line, in this process and in real ones."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner, Result

from structured import presets
from structured.commands.app import app
from structured.commands.failures import explain
from structured.commands.specs import parse_method, parse_methods
from structured.data import MultiLabelData, Split, read_npz, write_npz
from structured.errors import CheckpointError, DownloadError
from structured.methods import CrossEntropy, Implicit, Value, known, to_dict
from structured.models import ModelConfig
from structured.train_config import TrainConfig

REPOSITORY = Path(__file__).parents[2]
LABELS = ("sea", "a beach", "wide, sky")
TINY = ("--hidden", "8", "--energy-hidden", "4", "--dropout", "0", "--device", "cpu")
IMPLICIT = "implicit: pretrain_epochs=1, pretrain_lr=0.03, inner_lr=0.03, outer_every=1"


def invoke(*arguments: object) -> Result:
    """Run a command in this process."""
    # Warnings are errors here; a training on random rows has every right to warn.
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> Result:
    """Run a command that must succeed; defects come through with their traceback."""
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result


def refused(code: int, *arguments: object) -> str:
    """Run a command that must end with an exit code and one line; return the line."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("structured: ")]
    assert "Traceback" not in result.output
    return line


def process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as `python -m structured`."""
    return subprocess.run(
        [sys.executable, "-m", "structured", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def data() -> MultiLabelData:
    """Sixty rows whose labels follow from their features, split into three parts."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    return MultiLabelData(
        X=X,
        Y=(X[:, :3] > 0).astype(int),
        label_names=LABELS,
        feature_names=("north", "east", "south", "west"),
        splits={"thirds": Split(np.arange(60) % 3, ("train", "validation", "test"))},
        name="coast",
    )


@pytest.fixture(scope="module")
def file(data: MultiLabelData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "coast.npz"
    write_npz(data, path)
    return path


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = ("train", "-m", IMPLICIT, "-d", file, *TINY, "-o", folder, "--plots")
    ok(*command, "-e", 15, "--patience", 100, "--batch-size", 4)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they run in; narrow terminals are the hard case for help."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


# Help


def every_command() -> list[tuple[str, ...]]:
    main = cast(Any, typer.main.get_command(app))
    found: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        found.append((name,))
        found.extend((name, inner) for inner in getattr(command, "commands", {}))
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_documents_every_option_and_its_default(words: Sequence[str]) -> None:
    text = ok(*words, "--help").stdout
    # As on the screen, but in one line: without frames, and words that were broken joined.
    flat = " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())
    command = cast(Any, typer.main.get_command(app))
    for word in words:
        command = command.commands[word]
    for parameter in command.params:
        if parameter.param_type_name == "argument" or parameter.name == "help":
            continue
        assert parameter.help, parameter.name
        assert "…" not in text
        assert parameter.opts[0] in flat
    # A plain flag is off unless it is given.
    shown = [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        and not parameter.required
        and (
            isinstance(parameter.show_default, str)
            or not parameter.is_flag
            or parameter.secondary_opts
        )
    ]
    assert flat.count("[default:") == len(shown)


def test_the_defaults_that_help_shows_are_those_in_force() -> None:
    assert ModelConfig.from_dict(presets.BASE["model"]) == ModelConfig()
    assert TrainConfig.from_dict(presets.BASE["training"]) == TrainConfig()
    assert presets.BASE["model"].keys() == ModelConfig().to_dict().keys()
    assert presets.BASE["training"].keys() | {"seed"} == TrainConfig().to_dict().keys()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_a_data_set_has_of_its_own_is_a_setting(name: str) -> None:
    for part, own in presets.PRESETS[name].items():
        names = known() if part == "methods" else presets.BASE[part]
        assert own.keys() <= names.keys()
    assert parse_methods(presets.setting("comparison", "methods", name), name)
    ModelConfig.from_dict({**presets.BASE["model"], **presets.PRESETS[name].get("model", {})})


def test_help_of_a_real_process_comes_within_two_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "structured", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "compare" in done.stdout
    # What takes its time is not imported; this holds also where the machine is busy.
    imported = set(re.findall(r"\| +(\w+)", done.stderr))
    assert not imported & {"torch", "numpy", "scipy", "sklearn", "matplotlib", "bilevel"}
    seconds = sum(int(found) for found in re.findall(r"import time: +(\d+) \|", done.stderr)) / 1e6
    assert seconds < 2


def test_without_a_command_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: structured" in result.stdout
    assert result.stderr == ""


# Methods as text


def test_a_method_is_a_name_with_options_that_may_be_objects() -> None:
    assert parse_method("cross_entropy") == CrossEntropy()
    assert parse_method("cross_entropy: lr=0.1, weight_decay=1e-4") == CrossEntropy(0.1, 1e-4)
    text = "implicit:primary=Value,primary.kind=squared,gauss_newton=false,max_norm=None"
    expected = Implicit(primary=Value(kind="squared"), gauss_newton=False, max_norm=None)
    assert parse_method(text) == expected
    solver = parse_method("implicit: solver=Neumann, sampler=Gumbel").solver  # type: ignore[attr-defined]
    assert type(solver).__name__ == "Neumann"


def test_options_come_after_those_that_a_data_set_has_of_its_own() -> None:
    assert parse_method("cross_entropy", "digits") == CrossEntropy(lr=0.003)
    assert parse_method("cross_entropy: lr=0.1", "digits") == CrossEntropy(lr=0.1)
    assert parse_method("implicit: inner_steps=2", "digits") == Implicit(
        pretrain_lr=0.003, inner_lr=0.003, outer_lr=0.003, inner_steps=2
    )


def test_a_method_is_a_file_of_a_method_or_of_a_run(trained: Path, tmp_path: Path) -> None:
    expected = parse_method(IMPLICIT)
    (tmp_path / "mine.json").write_text(json.dumps(to_dict(expected)))
    assert parse_method("mine.json") == expected
    assert parse_method(str(trained / "run.json")) == expected


# Train, evaluate, predict


def test_train_writes_a_run_with_pictures_and_prints_its_scores(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "checkpoint.safetensors", "log.csv", "evaluation.json"} <= names
    assert {"curves.png", "label-hessian.png"} <= names
    assert (trained / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(rows(trained / "log.csv")) == 15


def test_train_prints_json_alone_on_the_standard_output(file: Path, tmp_path: Path) -> None:
    result = ok("train", "-m", "cross_entropy", "-d", file, "-e", 2, *TINY, "--json", "-s", 5)
    found = json.loads(result.stdout)
    assert found["epochs"] == 2
    assert found["evaluation"]["seed"] == 5
    assert found["evaluation"]["rows"] == {"validation": 20, "test": 20}
    assert found["folder"] == "runs/coast-cross-entropy-seed5"
    assert (tmp_path / found["folder"] / "model.safetensors").exists()


def test_settings_that_are_not_given_are_those_of_the_data_set(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Called(Exception):
        pass

    def instead(method: Any, _training: Any, _validation: Any, config: Any, **options: Any) -> None:
        raise Called(method, config.to_dict(), options["model"].to_dict())

    def called(*arguments: object) -> tuple[Any, ...]:
        result = invoke("train", "-m", "cross_entropy", *arguments)
        assert isinstance(result.exception, Called), result.stderr
        return result.exception.args

    monkeypatch.setattr("structured.training.train", instead)
    base = presets.BASE
    method, training, model = called("-d", file, "--energy-hidden", 7, "--energy-hidden", 5)
    assert method == CrossEntropy()
    assert training == {**base["training"], "seed": 0}
    assert model == {**base["model"], "energy_hidden": [7, 5]}
    own = presets.PRESETS["digits"]
    method, training, model = called("--seed", 4)
    assert method == CrossEntropy(lr=0.003)
    assert training == {**base["training"], **own["training"], "seed": 4}
    assert model == {**base["model"], **own["model"]}


def test_evaluate_gives_the_scores_of_train_again(trained: Path, file: Path) -> None:
    found = json.loads(ok("evaluate", trained, "--json").stdout)
    assert found == json.loads((trained / "evaluation.json").read_text())
    text = ok("evaluate", trained).stdout
    assert "expected F1" in text
    assert "test, 20 rows" in text
    scores = json.loads(ok("evaluate", trained, "--data", file, "--json").stdout)["scores"]
    assert scores["all"]["expected F1"]["example_f1"] > 0.8


@pytest.mark.parametrize("decoder", ["threshold", "tuned", "expected_f1"])
def test_predict_writes_the_names_of_labels(trained: Path, file: Path, decoder: str) -> None:
    lines = ok("predict", trained, file, "--decoder", decoder).stdout.splitlines()
    predicted = np.array([[name in line.split("\t") for name in LABELS] for line in lines])
    gold = read_npz(file).Y.toarray()
    assert (predicted == gold).mean() > 0.8
    ok("predict", trained, file, "--decoder", decoder, "-o", "labels.txt")
    assert Path("labels.txt").read_text().splitlines() == lines


def test_predict_takes_all_formats_and_finds_columns_by_name(
    trained: Path, file: Path, data: MultiLabelData
) -> None:
    wanted = ok("predict", trained, file, "--json").stdout
    X = data.dense()[0]
    numbers = [[repr(float(value)) for value in row] for row in X]
    order = (2, 0, 3, 1)  # another order of the columns, and a label among them
    header = ["@relation coast", "@attribute sea {0,1}"]
    header += [f"@attribute {data.feature_names[k]} numeric" for k in order]
    lines = [",".join(["0", *(row[k] for k in order)]) for row in numbers]
    Path("rows.arff").write_text("\n".join([*header, "@data", *lines]) + "\n")
    lines = [" ".join(f" {k + 1}:{value}" for k, value in enumerate(row)) for row in numbers]
    Path("rows.svm").write_text("\n".join(lines) + "\n")
    for name in ("rows.arff", "rows.svm"):
        found = ok("predict", trained, name, "--json").stdout
        for one, other in zip(found.splitlines(), wanted.splitlines(), strict=True):
            assert json.loads(one) == json.loads(other)
    first = json.loads(wanted.splitlines()[0])
    assert first["row"] == 0
    assert first["probabilities"].keys() == set(LABELS)
    assert set(first["labels"]) <= set(LABELS)


# Compare


def test_compare_prints_a_table_and_verdicts_and_writes_pictures(
    file: Path, tmp_path: Path
) -> None:
    command = ("compare", "-d", file, "-m", "cross_entropy", "-m", IMPLICIT, "--seeds", 2, "-e", 2)
    text = ok(*command, *TINY).stdout
    for part in ("cross-entropy", "implicit-margin", "expected F1", "20 test rows", "±"):
        assert part in text
    assert "expected F1: implicit-margin against cross-entropy" in text
    folder = tmp_path / "runs/compare-coast"
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        "cross-entropy-curves.png",
        "implicit-margin-curves.png",
        "implicit-margin-label-hessian.png",
    }
    values = json.loads((folder / "comparison.json").read_text())
    assert values["command"].startswith("structured compare --method cross_entropy --method")
    assert len(values["runs"]) == 4
    assert "add --resume" in refused(2, *command, *TINY)
    # What is finished is not trained again, and the runs can be used one by one.
    again = json.loads(ok(*command, *TINY, "--resume", "--no-plots", "--json").stdout)
    assert again["summary"] == values["summary"]
    assert again["pictures"] == []
    assert ok("evaluate", folder / "implicit-margin/seed1").exit_code == 0


# Data


def test_data_lists_the_known_sets_in_a_table_and_as_json() -> None:
    for text in (ok("data").stdout, ok("data", "list").stdout):
        assert "digits" in text
        assert "bibtex" in text
    names = [entry["name"] for entry in json.loads(ok("data", "list", "--json").stdout)]
    assert names[0] == "digits"


def test_data_shows_statistics_splits_and_frequent_labels(file: Path) -> None:
    text = ok("data", "show", file).stdout
    for part in ("coast", "cardinality", "thirds", "train 20, validation 20, test 20", "a beach"):
        assert part in text
    found = json.loads(ok("data", "show", file, "--json").stdout)
    assert found["statistics"]["rows"] == 60
    assert found["splits"] == {"thirds": {"train": 20, "validation": 20, "test": 20}}


def test_data_converts_arff_and_libsvm_with_their_parts(tmp_path: Path) -> None:
    header = "@relation r\n@attribute f numeric\n@attribute a {0,1}\n@attribute b {0,1}\n@data\n"
    Path("toy-train.arff").write_text(header + "0.5,1,0\n1.5,0,1\n")
    Path("toy-test.arff").write_text(header + "2.5,1,1\n")
    Path("toy.xml").write_text("<labels><label name='a'/><label name='b'/></labels>")
    ok("data", "convert", "toy-train.arff", "toy-test.arff", "-o", "toy.npz", "--name", "toy")
    found = read_npz(tmp_path / "toy.npz")
    assert found.name == "toy"
    assert found.label_names == ("a", "b")
    assert found.split("split")["test"].Y.toarray().tolist() == [[1, 1]]

    Path("one.svm").write_text("1 1:0.5\n2 2:1\n")
    Path("two.svm").write_text("1,2 1:2\n")
    ok("data", "convert", "one.svm", "-o", "one.npz")
    assert read_npz(tmp_path / "one.npz").n_rows == 2
    line = refused(2, "data", "convert", "one.svm", "two.svm", "-o", "both.npz")
    assert "--n-features, --n-labels, --features-from, --labels-from" in line
    widths = ("--n-features", 2, "--n-labels", 2, "--features-from", 1, "--labels-from", 1)
    ok("data", "convert", "one.svm", "two.svm", "-o", "both.npz", *widths)
    assert read_npz(tmp_path / "both.npz").splits["split"].sizes() == {"train": 2, "test": 1}


# Mistakes: one line, an exit code, and what to do


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
        (("train", "-m", "implicit:damping.x=1"), "damping has no options of its own"),
        (("train", "-m", "nowhere.json"), "there is no such file"),
        (("compare", "-m", "implicit", "-m", "implicit"), "names one method twice"),
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


def test_a_file_without_a_split_is_split_and_split_alike_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(50, 3))
    write_npz(MultiLabelData(X, (X > 0).astype(int), name="plain"), tmp_path / "plain.npz")
    ok("train", "-m", "cross_entropy", "-d", "plain.npz", "-e", 1, *TINY, "-o", "run")
    found = json.loads(ok("evaluate", "run", "--json").stdout)
    assert found["split"] == "stratified3"
    assert found["rows"] == {"validation": 10, "test": 10}
    assert found == json.loads(Path("run/evaluation.json").read_text())


def test_a_validation_part_is_carved_where_a_split_has_none(
    data: MultiLabelData, tmp_path: Path
) -> None:
    two = data.with_split("halves", Split(np.arange(60) % 2, ("train", "test")))
    write_npz(two, tmp_path / "two.npz")
    command = ("train", "-m", "cross_entropy", "-d", "two.npz", "--split", "halves", "-e", 1)
    found = json.loads(ok(*command, *TINY, "--validation-fraction", 0.5, "--json").stdout)
    assert found["evaluation"]["rows"] == {"validation": 15, "test": 30}


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


# Real processes


def test_exit_codes_and_streams_of_real_processes(file: Path, trained: Path) -> None:
    here = Path.cwd()
    bad = process("train", "--data", "nowhere.npz", cwd=here)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "structured: nowhere.npz: there is no such file; check the path\n"
    good = process("predict", trained, file, cwd=here)
    assert (good.returncode, good.stderr) == (0, "")
    assert len(good.stdout.splitlines()) == 60


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupted_training_says_how_to_go_on_and_does(file: Path, tmp_path: Path) -> None:
    settings = ("-m", "cross_entropy", "-d", str(file), *TINY, "--batch-size", "4")
    common = ("train", *settings, "--patience", "100000", "--checkpoint-seconds", "0")
    log = tmp_path / "run/log.csv"
    running = subprocess.Popen(
        [sys.executable, "-m", "structured", *common, "-e", "100000", "-o", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: log.exists() and len(rows(log)) >= 3, running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        "structured: interrupted; the same command with --resume goes on with run"
    )
    epochs = str(len(rows(log)) + 2)
    ok(*common, "-e", epochs, "-o", "run", "--resume")
    ok(*common, "-e", epochs, "-o", "whole")
    assert log.read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    model = (tmp_path / "run/model.safetensors").read_bytes()
    assert model == (tmp_path / "whole/model.safetensors").read_bytes()
