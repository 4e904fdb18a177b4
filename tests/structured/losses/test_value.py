from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from structured.costs import soft_f1
from structured.losses import value_cross_entropy, value_squared

LOSSES = {"cross-entropy": value_cross_entropy, "squared": value_squared}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@losses
@given(score=st.floats(0.01, 0.99), offset=st.floats(0.01, 5.0))
def test_the_loss_is_least_where_minus_the_energy_is_the_logit_of_the_score(
    loss, score: float, offset: float
) -> None:
    target = torch.tensor([score], dtype=torch.float64)
    best = (-torch.logit(target)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(best, target).sum(), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0.0)
    for other in (best + offset, best - offset):
        assert bool((loss(other, target) > loss(best, target)).all())


@losses
def test_good_candidates_are_pulled_down_and_bad_ones_pushed_up(loss) -> None:
    gold = torch.tensor([[1.0, 0.0]])
    energy = torch.zeros(2, requires_grad=True)
    scores = 1.0 - soft_f1(torch.stack([gold, 1.0 - gold]), gold)
    (gradient,) = torch.autograd.grad(loss(energy, scores.squeeze(1)).sum(), energy)
    assert gradient[0] > 0 > gradient[1]


def test_the_losses_are_the_printed_formulas() -> None:
    torch.manual_seed(0)
    energy, score = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    expected = functional.binary_cross_entropy(torch.sigmoid(-energy), score, reduction="none")
    torch.testing.assert_close(value_cross_entropy(energy, score), expected)
    torch.testing.assert_close(
        value_squared(energy, score), (torch.sigmoid(-energy) - score).square()
    )


@losses
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_energies_give_finite_values_and_gradients(loss, scale: float) -> None:
    energy = torch.full((3,), scale).requires_grad_()
    value = loss(energy, torch.tensor([0.0, 0.5, 1.0]))
    (gradient,) = torch.autograd.grad(value.sum(), energy)
    assert bool(value.isfinite().all() and gradient.isfinite().all())
    assert bool((value >= 0).all())


@losses
def test_gradients_pass_gradcheck_twice(loss) -> None:
    torch.manual_seed(1)
    energy = torch.randn(3, dtype=torch.float64, requires_grad=True)
    score = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (energy, score))
    assert torch.autograd.gradgradcheck(loss, (energy, score))
