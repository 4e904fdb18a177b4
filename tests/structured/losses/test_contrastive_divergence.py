from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from structured.energies import MultiLabelEnergy
from structured.inference import brute_force
from structured.losses import contrastive_divergence, margin

energies = st.floats(-50.0, 50.0)


@given(gold=energies, candidate=energies, cost=st.floats(0.0, 1.0))
def test_one_sample_gives_the_softplus_and_lies_between_ssvm_and_ssvm_plus_log_two(
    gold: float, candidate: float, cost: float
) -> None:
    y, yhat, delta = (torch.tensor([v], dtype=torch.float64) for v in (gold, candidate, cost))
    value = contrastive_divergence(y, yhat[None], delta[None])
    torch.testing.assert_close(value, functional.softplus(delta - yhat + y))
    ssvm = margin(y, yhat, delta)
    assert bool((ssvm <= value).all())
    assert bool((value <= ssvm + torch.log(torch.tensor(2.0)).double() + 1e-12).all())


def test_all_wrong_labels_without_cost_give_the_exact_negative_log_likelihood() -> None:
    torch.manual_seed(0)
    energy = MultiLabelEnergy(3, 5, hidden=(4,)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    gold = torch.randint(2, (4, 5)).double()
    every = brute_force(lambda y: energy(x, y), 5, batch=4, dtype=torch.float64)
    with torch.no_grad():
        gold_energy = energy(x, gold)
    exact = gold_energy + (-every.energies).logsumexp(dim=0)
    for b in range(4):
        wrong = (every.points != gold[b]).any(dim=-1)
        others = every.energies[wrong, b : b + 1]
        assert len(others) == 31
        value = contrastive_divergence(gold_energy[b : b + 1], others, torch.zeros_like(others))
        torch.testing.assert_close(value, exact[b : b + 1])


def test_the_loss_is_the_printed_formula_and_a_shift_of_all_energies_changes_nothing() -> None:
    torch.manual_seed(1)
    gold, energy, cost = (torch.rand(s, dtype=torch.float64) for s in ((3,), (5, 3), (5, 3)))
    positive, negative = (-gold).exp(), (cost - energy).exp().sum(dim=0)
    value = contrastive_divergence(gold, energy, cost)
    assert value.shape == (3,)
    torch.testing.assert_close(value, -(positive / (positive + negative)).log())
    torch.testing.assert_close(contrastive_divergence(gold + 7, energy + 7, cost), value)


def test_low_gold_energy_is_good_and_costs_push_bad_candidates_harder() -> None:
    gold = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    energy = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    cost = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    value = contrastive_divergence(gold, energy, cost)
    by_gold, by_candidate = torch.autograd.grad(value.sum(), (gold, energy))
    assert by_gold > 0
    assert bool((by_candidate < 0).all())
    assert by_candidate[1] < by_candidate[0]
    torch.testing.assert_close(by_gold, -by_candidate.sum(dim=0))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_energies_give_exact_values_and_finite_gradients(scale: float) -> None:
    gold, energy = torch.tensor([scale]).requires_grad_(), torch.zeros(3, 1).requires_grad_()
    value = contrastive_divergence(gold, energy, torch.zeros(3, 1))
    gradients = torch.autograd.grad(value.sum(), (gold, energy))
    expected = max(scale + float(torch.log(torch.tensor(3.0))), 0.0)
    torch.testing.assert_close(value.detach(), torch.tensor([expected]))
    assert all(bool(part.isfinite().all()) for part in gradients)


def test_gradients_pass_gradcheck_twice() -> None:
    torch.manual_seed(2)
    inputs = tuple(
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2,), (3, 2), (3, 2))
    )
    assert torch.autograd.gradcheck(contrastive_divergence, inputs)
    assert torch.autograd.gradgradcheck(contrastive_divergence, inputs)
