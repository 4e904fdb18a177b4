from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured.losses import compound_energy_loss, compound_network_loss, margin, perceptron

energies = st.floats(-5.0, 5.0)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(gold=energies, f=energies, a=energies, cost=st.floats(0.0, 1.0), lam=st.floats(0.0, 3.0))
def test_the_energy_minimises_both_hinges(
    gold: float, f: float, a: float, cost: float, lam: float
) -> None:
    value = compound_energy_loss(one(gold), one(f), one(a), one(cost), weight=lam)
    expected = max(0.0, cost - f + gold) + lam * max(0.0, gold - a)
    torch.testing.assert_close(value, one(expected))
    hinges = margin(one(gold), one(f), one(cost)) + lam * perceptron(one(gold), one(a))
    torch.testing.assert_close(value, hinges)


@given(gold=energies, f=energies, a=energies, cost=st.floats(0.0, 1.0), lam=st.floats(0.0, 3.0))
def test_the_networks_maximise_the_same_terms_without_truncation(
    gold: float, f: float, a: float, cost: float, lam: float
) -> None:
    value = compound_network_loss(
        one(gold), one(f), one(a), one(cost), one(0.7), weight=lam, cross_entropy_weight=2.0
    )
    torch.testing.assert_close(value, one(-(cost - f + gold) - lam * (gold - a) + 2.0 * 0.7))


def test_where_the_energys_hinge_is_inactive_the_networks_still_learn() -> None:
    gold, f, a = one(-10.0), one(0.0).requires_grad_(), one(0.0).requires_grad_()
    cost, entropy = one(0.5), one(0.1)
    energy_side = compound_energy_loss(gold, f, a, cost)
    network_side = compound_network_loss(gold, f, a, cost, entropy, weight=0.5)
    assert [g.item() for g in torch.autograd.grad(energy_side.sum(), (f, a))] == [0.0, 0.0]
    # Positive: the networks lower the energy of what they propose, the energy side raises it.
    assert [g.item() for g in torch.autograd.grad(network_side.sum(), (f, a))] == [1.0, 0.5]


def test_networks_and_energy_pull_in_opposite_directions_on_active_hinges() -> None:
    gold, f, a = leaves = [one(v).requires_grad_() for v in (0.3, 0.1, 0.2)]
    energy_side = compound_energy_loss(gold, f, a, one(0.5))
    network_side = compound_network_loss(gold, f, a, one(0.5), one(0.0))
    for up, down in zip(
        torch.autograd.grad(energy_side.sum(), leaves),
        torch.autograd.grad(network_side.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(up, -down)


def test_there_is_one_value_per_example_and_huge_energies_stay_finite() -> None:
    gold, f, a, cost = (torch.full((3,), v) for v in (1e4, -1e4, -1e4, 1.0))
    assert compound_energy_loss(gold, f, a, cost).shape == (3,)
    assert compound_network_loss(gold, f, a, cost, cost).isfinite().all()
