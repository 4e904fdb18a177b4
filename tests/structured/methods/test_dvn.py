"""DVN: how inference climbs, where adversarial points start, and what the value is fitted to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured import losses
from structured.inference import SlopedEnergy
from structured.methods import Learner
from structured.methods.dvn import DVN
from structured.models import ModelConfig, Models
from tests.structured.methods.toy import (
    FEATURES,
    LABELS,
    as_double,
    central,
    run,
    separable,
    start,
)

EXACT = ModelConfig(hidden=(5,), dropout=0.0, input_dropout=0.0, activation="tanh", global_size=3)


class Counted(nn.Module):
    """An energy that counts its evaluations."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x, y)


def models_of() -> Models:
    return as_double(DVN().build(FEATURES, LABELS, EXACT, 0))


def data(rows: int = 5) -> tuple[Tensor, Tensor]:
    x, y = separable(rows, seed=4)
    return x.double(), y.double()


def values(models: Models, method: DVN, x: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(-method.energy(models, x, models.network(x).detach())(y))


def learner_of(models: Models, **options: Any) -> Learner:
    return DVN(pretrain_epochs=0, **options).learner(models, steps_per_epoch=1)


@pytest.mark.parametrize("steps", [1, 7])
def test_inference_moves_once_per_step_by_the_rate_times_the_slope_of_the_value(steps: int) -> None:
    """On a linear energy ``-s'y`` the value's slope is ``v (1 - v) s``."""
    slope = torch.tensor([[0.8, -0.5, 0.3, 0.1]], dtype=torch.float64)
    expected = torch.zeros_like(slope)
    for _ in range(steps):
        value = torch.sigmoid((slope * expected).sum())
        expected = (expected + 0.5 * value * (1.0 - value) * slope).clamp(0.0, 1.0)
    found = DVN(steps=steps).climb(models_of(), lambda y: -(y * slope).sum(dim=-1), slope)
    torch.testing.assert_close(found, expected)
    if steps == 1:
        torch.testing.assert_close(found, 0.5 * 0.25 * slope.clamp(min=0.0))


def test_inference_evaluates_the_energy_once_per_step_and_starts_from_zero() -> None:
    models, (x, _) = models_of(), data()
    assert models.energy is not None
    energy = Counted(models.energy)
    counted = Models(models.space, models.network, energy)
    DVN(steps=9).predict(counted, x)
    assert energy.calls == 9
    nowhere = DVN(steps=1, rate=1e-300).predict(models, x)
    assert float(nowhere.max()) < 1e-290


def test_inference_with_a_formula_for_the_gradient_ends_where_it_does_without() -> None:
    models, (x, _) = models_of(), data()
    method, logits = DVN(steps=9), models.network(x).detach()
    energy = method.energy(models, x, logits)
    assert isinstance(energy, SlopedEnergy)
    found = method.climb(models, energy, logits)
    torch.testing.assert_close(found, method.climb(models, energy.value, logits))
    assert float(found.max()) > 0


def test_more_inference_steps_reach_higher_values() -> None:
    models, (x, _) = models_of(), data()
    reached = [
        values(models, method, x, method.predict(models, x)).mean()
        for method in (DVN(steps=steps) for steps in (1, 5, 20))
    ]
    assert reached[0] < reached[1] < reached[2]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_adversarial_points_start_at_gold_or_at_zero_example_by_example(share: float) -> None:
    learner: Any = learner_of(models_of(), from_gold=share)
    y = torch.ones(4000, LABELS, dtype=torch.float64)
    starts = learner._starts(y)
    golden = starts.mean(dim=-1)
    assert bool(((golden == 0) | (golden == 1)).all())
    assert float(golden.mean()) == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0.0)


@pytest.mark.parametrize(("share", "seen"), [(0.0, {0.0}), (1.0, {1.0}), (0.5, {0.0, 1.0})])
def test_minibatches_are_adversarial_with_the_given_probability(
    share: float, seen: set[float]
) -> None:
    learner = start(DVN(pretrain_epochs=0, adversarial=share, steps=2))
    figures = run(learner, 25)
    assert {step["adversarial"] for step in figures} == seen
    assert sum(step["adversarial"] for step in figures) / 100 == pytest.approx(share, abs=0.15)


@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_an_adversarial_point_is_one_step_up_the_loss_at_the_score_of_its_start(kind: Any) -> None:
    models, (x, y) = models_of(), data()
    method = DVN(kind=kind, rate=1e-3)
    energy = method.energy(models, x, models.network(x).detach())
    begin = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = begin.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(point).sum(), point)
    value = torch.sigmoid(-energy(begin))
    score = 2.0 * torch.minimum(begin, y).sum(-1) / (begin.sum(-1) + y.sum(-1))
    # d/dE of the cross-entropy is v* - v; of the squared error -2 (v - v*) v (1 - v).
    factor = score - value
    if kind == "squared":
        factor = 2.0 * factor * value * (1.0 - value)
    expected = (begin + 1e-3 * factor.detach()[:, None] * slope).clamp(0.0, 1.0)
    found = method.provoke(models, energy, begin, y)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    fit = losses.value_squared if kind == "squared" else losses.value_cross_entropy
    assert bool((fit(energy(found), score) >= fit(energy(begin), score)).all())


@pytest.mark.parametrize("gold", [False, True])
def test_the_value_is_fitted_to_the_soft_f1_of_the_point(gold: bool) -> None:
    models, (x, y) = models_of(), data()
    learner: Any = learner_of(models, adversarial=0.0, gold=gold, steps=4)
    loss, figures = learner._loss(x, y)
    method = learner.method
    point = method.predict(models, x)
    overlap, union = torch.minimum(point, y).sum(-1), torch.maximum(point, y).sum(-1)
    score = 2.0 * overlap / (overlap + union)
    value = values(models, method, x, point)
    expected = -(score * value.log() + (1.0 - score) * (1.0 - value).log())
    if gold:
        expected = expected - values(models, method, x, y).log()
    torch.testing.assert_close(loss, expected.mean())
    assert figures["score"] == pytest.approx(float(score.mean()))
    assert figures["value"] == pytest.approx(float(value.detach().mean()))


def test_the_gradient_is_that_of_central_differences_at_a_fixed_point() -> None:
    """From zero with one vanishing step, inference ends at zero whatever the parameters."""
    models, (x, y) = models_of(), data()
    assert models.energy is not None
    learner: Any = learner_of(models, adversarial=0.0, steps=1, rate=1e-300)
    leaves = [*models.network.parameters(), *models.energy.parameters()]
    found = torch.autograd.grad(learner._loss(x, y)[0], leaves)
    for gradient, leaf in zip(found, leaves, strict=True):
        place = (0,) * leaf.ndim
        difference = central(lambda: learner._loss(x, y)[0], leaf, place)
        torch.testing.assert_close(float(gradient[place]), difference, atol=1e-8, rtol=1e-5)


def test_the_rate_drops_twice_by_ten() -> None:
    method = DVN(optimizer="sgd", lr=0.1, drop_after=2, pretrain_epochs=1, steps=2)
    learner: Any = start(method)
    rates = []
    for _ in range(7):
        run(learner, 1)
        rates.append(learner._optimizers["network"].param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
