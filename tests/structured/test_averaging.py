"""The running average of the weights: what it is, and that training keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from structured.averaging import WeightAverage
from structured.checkpoint import load_state, save_state
from structured.data import MultiLabelData
from structured.estimators import MultiLabelClassifier
from structured.evaluation import predict_probabilities, validation_figures
from structured.methods import CrossEntropy, Learner, Method
from structured.model_file import weights_of
from structured.models import Models, build_models
from structured.spaces import Labels
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.runs import (
    METHODS,
    MODEL,
    QUICK,
    STEPS,
    VALIDATION,
    killed_in_step,
    outcome,
    run,
    same_weights,
)


def _models() -> Models:
    """A network of one weight and one offset, in double precision."""
    return Models(Labels(1), nn.Linear(1, 1).double())


def _set(models: Models, value: float) -> None:
    for leaf in models.network.parameters():
        nn.init.constant_(leaf, value)


def _closed_form(values: list[float], decay: float) -> float:
    """Each value times its own share and all that was kept of it later; the first one is whole."""
    kept = [min(decay, (1 + t) / (10 + t)) for t in range(1, len(values))]
    shares = [1.0, *(1.0 - k for k in kept)]
    return sum(
        value * share * math.prod(kept[index:])
        for index, (value, share) in enumerate(zip(values, shares, strict=True))
    )


VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


@given(values=VALUES, decay=st.floats(0.01, 0.9999))
def test_the_average_is_the_weighted_sum_of_all_weights_there_were(
    values: list[float], decay: float
) -> None:
    trained = _models()
    _set(trained, values[0])
    average = WeightAverage(trained, decay)
    for value in values[1:]:
        _set(trained, value)
        average.update()
    for leaf in average.models.network.parameters():
        assert float(leaf.detach()) == pytest.approx(_closed_form(values, decay), abs=1e-12)
    for leaf in trained.network.parameters():
        assert float(leaf.detach()) == values[-1]  # what learns is only read


@pytest.mark.parametrize("steps", [1, 9, 100])
def test_of_the_first_weights_a_product_of_a_few_factors_is_left(steps: int) -> None:
    # The shares kept, 2/11, 3/12, 4/13, ..., cancel but for the first and the last few.
    trained = _models()
    _set(trained, 1.0)
    average = WeightAverage(trained, 0.999)
    _set(trained, 0.0)
    for _ in range(steps):
        average.update()
    wanted = math.prod(range(2, 11)) / math.prod(range(steps + 2, steps + 11))
    found = [float(leaf.detach()) for leaf in average.models.network.parameters()]
    assert found == pytest.approx([wanted, wanted], rel=1e-12)


def test_a_decay_of_zero_is_the_very_models_and_touches_nothing() -> None:
    trained = build_models(3, 2, MODEL, seed=0)
    before = weights_of(trained)
    average = WeightAverage(trained, 0.0)
    average.update()
    assert average.models is trained
    assert average.state_dict() == {"steps": 0, "weights": {}}
    average.load_state_dict(average.state_dict())
    for part, tensors in weights_of(trained).items():
        assert all(torch.equal(value, before[part][name]) for name, value in tensors.items())


def test_buffers_are_not_averaged_but_follow() -> None:
    network: Any = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    trained = Models(Labels(1), network)
    average = WeightAverage(trained, 0.999)
    for _ in range(3):
        network(torch.randn(4, 2))
        average.update()
    wanted, found = dict(network.named_buffers()), dict(average.models.network.named_buffers())
    assert found.keys() == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert int(found["0.num_batches_tracked"]) == 3
    assert all(found[name] is not wanted[name] for name in wanted)


def test_what_network_and_energy_share_is_averaged_once() -> None:
    shared = nn.Linear(1, 1).double()
    trained = Models(Labels(1), shared, nn.Sequential(shared))
    _set(trained, 1.0)
    average = WeightAverage(trained, 0.5)
    _set(trained, 0.0)
    average.update()
    network, energy = average.models.network, average.models.energy
    assert isinstance(energy, nn.Sequential)
    assert energy[0] is network
    assert float(next(network.parameters()).detach()) == pytest.approx(2 / 11, rel=1e-12)


def test_an_average_goes_on_from_a_file_to_the_last_bit(tmp_path: Path) -> None:
    trained = build_models(3, 2, MODEL, seed=0)
    whole = WeightAverage(trained, 0.99)

    def step(*averages: WeightAverage) -> None:
        with torch.no_grad():
            for leaf in trained.network.parameters():
                leaf.add_(torch.randn_like(leaf))
        for average in averages:
            average.update()

    for _ in range(5):
        step(whole)
    save_state(tmp_path / "average", whole.state_dict(), kind="test")
    step(whole)  # a state that was taken does not follow
    state = load_state(tmp_path / "average", kind="test")
    resumed = WeightAverage(trained, 0.99)
    resumed.load_state_dict(state)
    resumed.update()
    assert same_weights(resumed.models, whole.models)
    step(whole, resumed)
    assert same_weights(resumed.models, whole.models)


# In training


@dataclass(frozen=True)
class Counting(Method):
    """After each step all weights of its network are the number of steps there were."""

    @property
    def name(self) -> str:
        return "counting"

    def learner(self, models: Models, **options: Any) -> CountingLearner:
        return CountingLearner(self, models, seed=0, device="cpu")


class CountingLearner(Learner):
    mixed_precision: ClassVar[bool] = True
    phase, preparation, notice = "counting", 0, ""  # type: ignore[assignment]
    steps = 0

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        self.steps += 1
        _set(self.models, float(self.steps))
        return {"steps": float(self.steps)}

    def _progress(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


FIVE_ROWS = MultiLabelData(X=np.ones((5, 1)), Y=np.ones((5, 1)))


@pytest.mark.parametrize("average", [0.0, 0.6, 0.999])
def test_the_weights_that_training_returns_are_the_average_over_its_steps(average: float) -> None:
    models = _models()
    _set(models, 0.0)
    config = TrainConfig(epochs=4, batch_size=2, average=average, device="cpu")
    result = train(Counting(), FIVE_ROWS, None, config, model=models)
    assert result.models is models  # models of one's own are trained in place
    values = [float(step) for step in range(4 * 3 + 1)]
    wanted = _closed_form(values, average) if average else values[-1]
    for leaf in models.network.parameters():
        assert float(leaf.detach()) == pytest.approx(wanted, rel=1e-12)


def test_averaging_changes_what_is_validated_and_nothing_of_what_is_learned() -> None:
    plain, averaged = (
        run(CrossEntropy(lr=0.05), replace(QUICK, average=average)) for average in (0.0, 0.9)
    )
    for record, other in zip(plain.history, averaged.history, strict=True):
        assert record["cross_entropy"] == other["cross_entropy"]
        assert record["validation_cross_entropy"] != other["validation_cross_entropy"]


def test_the_figures_of_the_best_epoch_are_those_of_the_averaged_weights_kept() -> None:
    result = run(CrossEntropy(lr=0.05), replace(QUICK, average=0.9, monitor="cross_entropy"))
    gold = torch.from_numpy(VALIDATION.Y.toarray()).float()
    found = validation_figures(
        predict_probabilities(result.method, result.models, VALIDATION.X), gold
    )
    assert found["validation_cross_entropy"] == result.best_value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seconds", [0.0, 1e9])  # a checkpoint at every step, and none
@pytest.mark.parametrize("stop", [2, STEPS + 1, 2 * STEPS + 2])
def test_a_killed_run_with_a_quick_average_ends_with_the_same_bits(
    method: str, seconds: float, stop: int, tmp_path: Path
) -> None:
    config = replace(QUICK, average=0.5, checkpoint_seconds=seconds)
    with killed_in_step(METHODS[method], stop):
        run(METHODS[method], config, run_dir=tmp_path / "killed")
    run(METHODS[method], config, run_dir=tmp_path / "killed", resume=True)
    run(METHODS[method], config, run_dir=tmp_path / "whole")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("value", [True, -0.1, 1.0, 1.5, math.nan])
def test_a_decay_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"average: found .*, wanted a decay in \[0, 1\)"):
        TrainConfig(average=value)
    with pytest.raises(ValueError, match=r"average: found .*, wanted a decay in \[0, 1\)"):
        MultiLabelClassifier(average=value).fit(np.eye(10), np.eye(10, 2))
