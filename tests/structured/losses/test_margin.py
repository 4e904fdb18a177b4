from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured.losses import contrastive_margin, margin, perceptron, slack_rescaling

energies = st.floats(-5.0, 5.0)
LOSSES = {
    "margin": margin,
    "slack rescaling": slack_rescaling,
    "perceptron": lambda gold, energy, cost: perceptron(gold, energy),
    "contrastive margin": lambda gold, energy, cost: contrastive_margin(gold, energy),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@losses
@given(gold=energies, candidate=energies, cost=st.floats(0.1, 1.0))
def test_low_gold_energy_and_high_candidate_energy_are_rewarded(
    loss, gold: float, candidate: float, cost: float
) -> None:
    value = loss(one(gold), one(candidate), one(cost))
    assert value >= 0
    assert loss(one(gold - 1), one(candidate), one(cost)) <= value
    assert loss(one(gold), one(candidate + 1), one(cost)) <= value
    assert loss(one(gold + 20), one(candidate), one(cost)) > 0
    assert loss(one(gold - 20), one(candidate), one(cost)) == 0


@pytest.mark.parametrize("loss", [margin, slack_rescaling])
@given(gold=energies, candidate=energies, cost=st.floats(0.0, 1.0))
def test_a_larger_cost_asks_for_more(loss, gold: float, candidate: float, cost: float) -> None:
    assert loss(one(gold), one(candidate), one(cost)) <= loss(
        one(gold), one(candidate), one(cost + 0.5)
    )


@given(gold=energies, candidate=energies, cost=st.floats(0.0, 1.0))
def test_the_losses_are_the_printed_formulas(gold: float, candidate: float, cost: float) -> None:
    y, yhat, delta = one(gold), one(candidate), one(cost)
    torch.testing.assert_close(margin(y, yhat, delta), one(max(0.0, cost - candidate + gold)))
    torch.testing.assert_close(
        slack_rescaling(y, yhat, delta), one(cost * max(0.0, 1.0 - candidate + gold))
    )
    torch.testing.assert_close(perceptron(y, yhat), margin(y, yhat, one(0.0)))
    torch.testing.assert_close(contrastive_margin(y, yhat), margin(y, yhat, one(1.0)))


@losses
def test_there_is_one_value_per_example_and_candidate_and_the_batch_is_not_summed(loss) -> None:
    """The published trap: a sum of hinges in place of their mean grows with the batch."""
    gold, energy, cost = torch.rand(4), torch.rand(3, 4), torch.rand(3, 4)
    values = loss(gold, energy, cost)
    assert values.shape == (3, 4)
    twice = loss(gold.repeat(2), energy.repeat(1, 2), cost.repeat(1, 2))
    torch.testing.assert_close(twice.mean(), values.mean())
    torch.testing.assert_close(loss(gold[1:2], energy[:, 1:2], cost[:, 1:2]), values[:, 1:2])


@losses
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_energies_give_finite_values_and_gradients(loss, scale: float) -> None:
    gold, energy = torch.tensor([scale]).requires_grad_(), torch.tensor([-scale]).requires_grad_()
    value = loss(gold, energy, torch.tensor([1.0]))
    gradients = torch.autograd.grad(value.sum(), (gold, energy))
    assert all(bool(part.isfinite().all()) for part in (value, *gradients))


@losses
def test_gradients_pass_gradcheck_away_from_the_hinge(loss) -> None:
    gold = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    energy = torch.tensor([[0.1, 0.9], [-0.4, 2.0]], dtype=torch.float64, requires_grad=True)
    cost = torch.tensor([[0.5, 0.2], [0.7, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (gold, energy, cost))


def test_an_inactive_hinge_passes_no_gradient_and_an_active_one_the_energies_difference() -> None:
    gold = torch.tensor([0.0, 0.0], requires_grad=True)
    energy = torch.tensor([2.0, 0.5], requires_grad=True)
    value = margin(gold, energy, torch.ones(2))
    for leaf, expected in ((gold, [0.0, 1.0]), (energy, [0.0, -1.0])):
        (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        assert gradient.tolist() == expected
