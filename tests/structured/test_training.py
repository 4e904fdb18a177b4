"""Training learns, is the same for the same seed, and stops where figures are no numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from structured.errors import DataError
from structured.methods import CrossEntropy, Implicit, Learner
from structured.models import ModelConfig
from structured.training import TrainingError, train
from tests.structured.runs import METHODS, QUICK, STEPS, TRAINING, models, run
from tests.structured.scripted import ONE_LABEL, train_scripted


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    runs = [run(config=replace(QUICK, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


def test_training_leaves_the_callers_random_streams_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    run(METHODS["implicit"])
    assert torch.equal(torch.rand(3), wanted)


def test_cross_entropy_learns_the_digits() -> None:
    config = replace(QUICK, epochs=30, patience=None)
    result = run(CrossEntropy(lr=0.01), config, model=ModelConfig(hidden=(64,), dropout=0.0))
    assert result.history[-1]["cross_entropy"] < 0.5 * result.history[0]["cross_entropy"]


def test_parts_of_different_data_sets_are_refused() -> None:
    with pytest.raises(DataError, match="validation: found 2 features and 1 labels, wanted"):
        train(CrossEntropy(), TRAINING, ONE_LABEL)


@pytest.mark.parametrize("method", METHODS)
def test_a_figure_that_is_not_finite_stops_the_run_and_is_named(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = type(METHODS[method].learner(models(), steps_per_epoch=STEPS))
    original = learner.step

    def step(self: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
        figures = original(self, x, y)
        return figures | {"cross_entropy": float("nan")} if self.epoch == 1 else figures

    monkeypatch.setattr(learner, "step", step)
    with pytest.raises(TrainingError, match=r", epoch 2, step 4: cross_entropy is nan; lower"):
        run(METHODS[method])


def test_a_network_that_is_no_longer_finite_stops_the_run() -> None:
    with pytest.raises(TrainingError, match="output on validation data is not finite"):
        train_scripted([0.5, float("nan")])


def test_an_inner_problem_that_diverges_is_a_training_error() -> None:
    # Adam's second moment overflows long before a step of 1e300 could be taken.
    method = Implicit(
        pretrain_epochs=0, inner_optimizer="sgd", inner_lr=1e30, energy_start="random"
    )
    with pytest.raises(TrainingError, match=r"implicit-margin, epoch 1, step \d"):
        run(method)


def test_mixed_precision_is_refused_with_a_reason_where_a_method_differentiates_twice() -> None:
    config = replace(QUICK, mixed_precision=True)
    with pytest.raises(ValueError, match=r"implicit-contr.* differentiates twice; in bfloat16"):
        run(METHODS["implicit"], config)


def test_mixed_precision_trains_cross_entropy_nearly_as_full_precision_does() -> None:
    full, mixed = (
        run(config=replace(QUICK, epochs=5, mixed_precision=flag)).history for flag in (False, True)
    )
    assert full[-1]["cross_entropy"] != mixed[-1]["cross_entropy"]
    assert mixed[-1]["cross_entropy"] == pytest.approx(full[-1]["cross_entropy"], rel=0.02)
