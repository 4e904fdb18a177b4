"""Train a method, score it, use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structured import presets
from structured.data import MultiLabelData, Split, read_npz, write_npz
from structured.methods import CrossEntropy
from tests.structured.commands.cli import LABELS, TINY, invoke, ok, rows


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
    _, _, linear = called("-d", file, "--hidden", 0, "--energy-hidden", 0)
    assert (linear["hidden"], linear["energy_hidden"]) == ([], [])
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
    for command in (("rows.arff",), ("rows.svm", "--features-from", 1)):
        found = ok("predict", trained, *command, "--json").stdout
        for one, other in zip(found.splitlines(), wanted.splitlines(), strict=True):
            assert json.loads(one) == json.loads(other)
    first = json.loads(wanted.splitlines()[0])
    assert first["row"] == 0
    assert first["probabilities"].keys() == set(LABELS)
    assert set(first["labels"]) <= set(LABELS)


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
