"""SPEN: cost-augmented inference, the hinge of free energies, and its gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from structured import costs
from structured.inference import SlopedEnergy, brute_force
from structured.methods import Learner
from structured.methods._gradient_inference import energy_slope, joint_energy
from structured.methods.spen import SPEN, _less_cost
from structured.models import ModelConfig, Models, build_models
from tests.structured.methods.toy import (
    FEATURES,
    LABELS,
    as_double,
    central,
    run,
    same,
    separable,
    start,
)

EXACT = ModelConfig(hidden=(5,), dropout=0.0, input_dropout=0.0, activation="tanh", global_size=3)


class Nothing(nn.Module):
    """E_phi = 0, with a parameter that makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.0 * self.idle * y.sum(dim=-1)


def models_of(energy: nn.Module | None = None) -> Models:
    models = as_double(SPEN().build(FEATURES, LABELS, EXACT, 0))
    return models if energy is None else Models(models.space, models.network, energy)


def data(rows: int = 5) -> tuple[Tensor, Tensor]:
    x, y = separable(rows, seed=4)
    return x.double(), y.double()


def loss_of(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
    learning: Any = learner
    return learning._loss(x, y)[0]


def joint(models: Models, **options: Any) -> Learner:
    """A learner in its last stage from the start."""
    method = SPEN(pretrain_epochs=0, energy_epochs=0, max_norm=None, **options)
    return method.learner(models, steps_per_epoch=1)


def test_without_cost_and_global_term_the_hinge_is_the_cross_entropy_with_its_gradient() -> None:
    models, (x, y) = models_of(Nothing()), data()
    loss = loss_of(joint(models, cost_weight=0.0), x, y)
    expected = -models.space.log_prob(models.network(x), y).mean()
    torch.testing.assert_close(loss, expected)
    leaves = list(models.network.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
    )


def test_cost_augmented_inference_finds_the_minimiser_of_the_free_energy_less_the_cost() -> None:
    """With the Hamming cost all is linear but the entropy: ``sigma(z + w (1 - 2 y) / L)``."""
    models, (x, y) = models_of(Nothing()), data()
    method = SPEN(cost=costs.hamming, cost_weight=3.0, steps=80)
    logits = models.network(x).detach()
    expected = torch.sigmoid(logits + 3.0 * (1.0 - 2.0 * y) / LABELS)
    torch.testing.assert_close(method.infer(models, x, logits, y), expected)
    torch.testing.assert_close(method.infer(models, x, logits), torch.sigmoid(logits))
    torch.testing.assert_close(method.predict(models, x), torch.sigmoid(logits))


@pytest.mark.parametrize("cost", [costs.soft_f1, costs.hamming, costs.zero_one])
def test_inference_ends_where_it_does_when_all_is_differentiated(cost: Any) -> None:
    models, (x, y) = models_of(), data()
    method, logits = SPEN(cost=cost, cost_weight=2.0, steps=9), models.network(x).detach()
    energy = joint_energy(models, x, logits)
    assert isinstance(energy, SlopedEnergy)
    plain = energy.value
    for gold, objective in (
        (y, lambda point: plain(point) - 2.0 * cost(point, y)),
        (None, plain),
    ):
        found = method.infer(models, x, logits, gold)
        torch.testing.assert_close(found, method.descent.end(objective, logits, models.space))


@pytest.mark.parametrize("cost", [costs.soft_f1, costs.hamming])
@given(seed=st.integers(0, 2**32 - 1), graph=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_formula_of_energy_and_cost_is_the_gradient_and_can_be_differentiated(
    cost: Any, seed: int, graph: bool
) -> None:
    torch.manual_seed(seed)
    models, logits = models_of(), torch.randn(4, LABELS, dtype=torch.float64)
    energy = joint_energy(models, torch.randn(4, FEATURES, dtype=torch.float64), logits)
    # With corners, ties, soft gold and, in the first row, two empty sets.
    y = torch.randint(0, 4, (3, 4, LABELS)) / torch.tensor(3.0, dtype=torch.float64)
    gold = torch.randint(0, 4, (4, LABELS)) / torch.tensor(3.0, dtype=torch.float64)
    y[:, 0], gold[0] = 0.0, 0.0
    y.requires_grad_()
    augmented = _less_cost(energy, cost, 1.5, gold)
    assert isinstance(augmented, SlopedEnergy)
    torch.testing.assert_close(augmented(y), energy(y) - 1.5 * cost(y, gold))
    found = energy_slope(augmented, y, graph=graph)
    expected = energy_slope(augmented.value, y, graph=graph)
    torch.testing.assert_close(found, expected)
    if graph:
        ours, theirs = (torch.autograd.grad(s.square().sum(), y)[0] for s in (found, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("options", "values"), [({}, 0), ({"cost": costs.zero_one}, 7)])
def test_the_energy_is_evaluated_in_inference_only_where_the_cost_has_no_formula(
    options: dict[str, Any], values: int
) -> None:
    models, (x, y) = models_of(), data()
    assert models.energy is not None
    calls: list[int] = []
    models.energy.register_forward_hook(lambda *_: calls.append(1))
    logits = models.network(x).detach()
    SPEN(steps=7, **options).infer(models, x, logits, y)
    assert len(calls) == values
    calls.clear()
    SPEN(steps=7, cost_weight=0.0, **options).infer(models, x, logits, y)
    SPEN(steps=7, **options).predict(models, x)
    assert not calls


def test_a_cost_that_passes_no_gradient_does_not_move_inference() -> None:
    models, (x, y) = models_of(), data()
    method = SPEN(cost=lambda point, gold: costs.zero_one(point.round().detach(), gold))
    logits = models.network(x).detach()
    torch.testing.assert_close(method.infer(models, x, logits, y), method.predict(models, x))


def test_without_entropy_the_loss_is_the_structured_hinge_by_enumeration() -> None:
    models, (x, y) = models_of(Nothing()), data()
    learner = joint(
        models, cost=costs.hamming, entropy=0.0, geometry="projected", rate=50.0, start="centre"
    )
    energy = joint_energy(models, x, models.network(x).detach())
    found = brute_force(energy, LABELS, batch=len(x), dtype=torch.float64)
    violations = costs.hamming(found.points[:, None].expand(-1, len(x), -1), y) - found.energies
    expected = (violations.max(dim=0).values + energy(y)).relu().mean()
    torch.testing.assert_close(loss_of(learner, x, y), expected)


def test_where_inference_has_converged_the_gradient_is_that_of_the_whole_loss() -> None:
    """The path through the candidate is dropped, and central differences do not miss it."""
    models, (x, y) = models_of(), data()
    learner = joint(models, steps=150)
    parameters = dict(models.network.named_parameters())
    assert models.energy is not None
    parameters |= dict(models.energy.named_parameters())
    found = torch.autograd.grad(loss_of(learner, x, y), list(parameters.values()))
    for gradient, leaf in zip(found, parameters.values(), strict=True):
        place = (0,) * leaf.ndim
        difference = central(lambda: loss_of(learner, x, y), leaf, place)
        torch.testing.assert_close(float(gradient[place]), difference, atol=1e-7, rtol=1e-5)


def test_a_prediction_is_a_stationary_point_of_the_free_energy() -> None:
    models, (x, _) = models_of(), data()
    point = SPEN(steps=150).predict(models, x).requires_grad_()
    logits = models.network(x).detach()
    (slope,) = torch.autograd.grad(joint_energy(models, x, logits)(point).sum(), point)
    torch.testing.assert_close(point.detach(), torch.sigmoid(-slope))


def test_pretraining_is_cross_entropy_training_and_leaves_the_energy_as_built() -> None:
    learner = start(SPEN(pretrain_epochs=2))
    energy = copy.deepcopy(learner.models.energy)
    figures = run(learner, 2)
    assert set(figures[-1]) == {"cross_entropy"}
    assert same(learner.models.energy, energy)
    assert learner.phase == "energy"


def test_an_active_hinge_is_counted_and_an_inactive_one_moves_nothing() -> None:
    models, (x, y) = models_of(), data()
    learner: Any = joint(models, cost_weight=0.0, entropy=0.0, steps=1, rate=1e-9)
    confident = 50.0 * (2.0 * y - 1.0)
    learner._logits = lambda x: confident
    loss, figures = learner._loss(x, y)
    assert figures["active_hinges"] == 0.0
    assert loss.item() == 0.0
    learner._logits = lambda x: -confident
    assert learner._loss(x, y)[1]["active_hinges"] == 1.0


def test_spen_takes_an_energy_with_unaries_of_its_own() -> None:
    models = build_models(FEATURES, LABELS, EXACT, 0)
    learner = SPEN(pretrain_epochs=0, energy_epochs=1, steps=3).learner(models, steps_per_epoch=1)
    network = copy.deepcopy(models.network)
    x, y = separable(8)
    learner.step(x, y)
    assert same(models.network, network)
