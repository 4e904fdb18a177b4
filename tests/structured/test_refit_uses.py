"""A refit on the command line, in comparisons and in the estimator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from structured.commands.app import app
from structured.data import MultiLabelData, carve, digit_strips, read_npz, write_npz
from structured.decoding import TunedThreshold
from structured.estimators import MultiLabelClassifier
from structured.experiment import compare, score_run
from structured.methods import CrossEntropy
from structured.model_file import load_models
from structured.models import ModelConfig
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.runs import (
    FAST,
    FAST_IMPLICIT,
    MODEL,
    REFIT,
    TRAINING,
    VALIDATION,
    run,
    same_weights,
)

TEST = digit_strips(48, 24, 16).split("disjoint_images")["test"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    write_npz(MultiLabelData(X, (X[:, :3] > 0).astype(int), name="coast"), tmp_path / "coast.npz")
    return tmp_path / "coast.npz"


def _command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


SIZES = ("--hidden", 8, "--energy-hidden", 4, "--dropout", 0, "--device", "cpu", "--average", 0.5)
FAST_COMMAND = ("train", "-m", "cross_entropy: lr=0.1", "-e", 4, "--batch-size", 4, *SIZES)


@pytest.mark.parametrize("at_once", [True, False])
def test_evaluate_gives_the_very_figures_of_a_refitted_run_again(file: Path, at_once: bool) -> None:
    command = (*FAST_COMMAND, "-d", file, "-o", "run")
    if not at_once:
        _command(*command)
        before = json.loads(Path("run/evaluation.json").read_text())
    _command(*command, "--refit", *(() if at_once else ("--resume",)))
    written = json.loads(Path("run/evaluation.json").read_text())
    assert json.loads(_command("evaluate", "run", "--json")) == written
    if not at_once:  # the same models choose the thresholds; others are used on test
        assert written["thresholds"] == before["thresholds"]
        assert written["scores"]["validation"] == before["scores"]["validation"]
        assert written["scores"]["test"] != before["scores"]["test"]
    lines = _command("predict", "run", file, "--json").splitlines()
    found = [list(json.loads(line)["probabilities"].values()) for line in lines]
    refitted, _ = load_models("run/model.safetensors")
    with torch.no_grad():
        wanted = refitted.network.eval()(torch.from_numpy(read_npz(file).dense()[0])).sigmoid()
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_a_comparison_refits_every_run(tmp_path: Path) -> None:
    methods = {"fast": FAST, "slow": CrossEntropy()}
    parts = (TRAINING, VALIDATION, TEST)
    found = compare(methods, *parts, seeds=(0,), config=REFIT, model=MODEL, folder=tmp_path)
    assert all((tmp_path / name / "seed0/refit/log.csv").exists() for name in methods)
    alone = run(FAST, replace(REFIT, seed=0))
    scores = score_run(alone, VALIDATION, TEST).scores
    assert found.runs[0].evaluation.scores == scores


@pytest.mark.parametrize("method", [FAST, FAST_IMPLICIT], ids=lambda method: method.name)
def test_the_estimator_refits_and_keeps_the_decoder_of_the_first_fit(
    method: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4)).astype(np.float32)
    y = (X[:, :3] + 0.5 * rng.normal(size=(80, 3)) > 0).astype(int)
    options: dict[str, Any] = {
        "hidden": (8,),
        "energy_hidden": (4,),
        "global_size": 2,
        "epochs": 3,
        "average": 0.5,
        "decoder": "tuned",
        "device": "cpu",
        "random_state": 0,
    }
    alone, refitted = (
        MultiLabelClassifier(method, refit=refit, **options).fit(X, y) for refit in (False, True)
    )
    assert refitted.decoder_ == alone.decoder_
    assert refitted.best_epoch_ == alone.best_epoch_
    assert refitted.history_ == alone.history_
    # The same by hand; the seed is the one that `fit` draws.
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    training, validation = carve(MultiLabelData(X, y, name="X"), 0.1, seed)
    config = TrainConfig(epochs=3, average=0.5, device="cpu", seed=seed, refit=True)
    sizes = ModelConfig(hidden=(8,), energy_hidden=(4,), global_size=2)
    by_hand = train(method, training, validation, config, model=sizes)
    assert same_weights(refitted.models_, by_hand.models)
    assert not same_weights(refitted.models_, alone.models_)
    gold = torch.from_numpy(validation.Y.toarray()).float()
    assert refitted.decoder_ == TunedThreshold().fit(by_hand.predict_held_out(validation.X), gold)
    refitted.save(tmp_path / "classifier")
    loaded = MultiLabelClassifier.load(tmp_path / "classifier")
    np.testing.assert_array_equal(loaded.predict_proba(X), refitted.predict_proba(X))
    assert loaded.get_params()["refit"] is True
