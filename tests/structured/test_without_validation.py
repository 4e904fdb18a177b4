"""Training without validation data: all epochs, and the last weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured.errors import CheckpointError, TrainingError
from structured.methods import CrossEntropyLearner
from structured.training import train
from tests.structured.runs import (
    FAST,
    METHODS,
    MODEL,
    QUICK,
    STEPS,
    TRAINING,
    killed_in_step,
    outcome,
    run,
    same_weights,
)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_without_validation_data_the_same_steps_lead_to_the_last_weights(
    method: Any, average: float
) -> None:
    config = replace(QUICK, average=average, monitor="cross_entropy")
    watched = run(method, config)
    result = train(method, TRAINING, None, config, model=MODEL)
    assert watched.best_epoch == result.best_epoch == 3  # so these are the last ones, too
    assert same_weights(watched.models, result.models)
    for record, other in zip(watched.history, result.history, strict=True):
        learned = {name: v for name, v in record.items() if not name.startswith("validation")}
        assert learned == other


def test_without_validation_data_all_epochs_run() -> None:
    config = replace(QUICK, epochs=6, patience=1, last_phase_only=True)
    watched = run(FAST, replace(config, monitor="cross_entropy"))
    result = train(FAST, TRAINING, None, config, model=MODEL)
    assert len(watched.history) < len(result.history) == 6
    assert (result.best_epoch, result.best_value) == (6, None)
    assert (result.stopped, result.selection) == ("all epochs done", None)


@pytest.mark.parametrize("stop", [2, STEPS + 1, 2 * STEPS + 2])
def test_a_killed_run_without_validation_data_ends_with_the_same_bits(
    stop: int, tmp_path: Path
) -> None:
    config = replace(QUICK, average=0.5, checkpoint_seconds=0.0)
    options: dict[str, Any] = {"model": MODEL}
    with killed_in_step(FAST, stop):
        train(FAST, TRAINING, None, config, run_dir=tmp_path / "killed", **options)
    train(FAST, TRAINING, None, config, run_dir=tmp_path / "killed", resume=True, **options)
    train(FAST, TRAINING, None, config, run_dir=tmp_path / "whole", **options)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"another data set: validation\.title is absent"):
        run(FAST, config, run_dir=tmp_path / "whole", resume=True)


def test_weights_that_are_not_finite_are_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CrossEntropyLearner.step

    def step(self: Any, x: Tensor, y: Tensor) -> dict[str, float]:
        figures = original(self, x, y)
        if self.epoch == 2:  # the last step: no figure can tell any more
            nn.init.constant_(next(self.models.network.parameters()), torch.nan)
        return figures | {"cross_entropy": 1.0}

    monkeypatch.setattr(CrossEntropyLearner, "step", step)
    with pytest.raises(TrainingError, match="epoch 3, step 10: a weight is not finite; lower"):
        train(FAST, TRAINING, None, QUICK, model=MODEL)
