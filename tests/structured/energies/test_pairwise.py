from __future__ import annotations

import pytest
import torch

from structured.energies import PairwiseEnergy
from structured.inference import brute_force

ranks = pytest.mark.parametrize("rank", [None, 1, 3])
X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.rand(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def energy_of(rank: int | None) -> PairwiseEnergy:
    torch.manual_seed(0)
    return PairwiseEnergy(5, 6, hidden=(7,), rank=rank).double()


@ranks
def test_the_energy_is_the_printed_formula(rank: int | None) -> None:
    energy = energy_of(rank)
    local = (Y * energy.unaries(X)).sum(dim=-1)
    pairs = torch.einsum("kbi,ij,kbj->kb", Y, energy.interaction(), Y)
    torch.testing.assert_close(energy(X, Y), local + pairs)
    torch.testing.assert_close(energy.local(energy.features(X), Y), local)
    torch.testing.assert_close(energy.global_(Y), pairs)


@ranks
def test_the_interaction_is_symmetric_with_a_zero_diagonal(rank: int | None) -> None:
    interaction = energy_of(rank).interaction()
    torch.testing.assert_close(interaction, interaction.T)
    assert not interaction.diagonal().any()
    assert bool(interaction.any())


def test_a_low_rank_interaction_has_its_rank_off_the_diagonal() -> None:
    energy = energy_of(1)
    factors, signs = energy.coupling.factors, energy.coupling.signs
    product = factors @ torch.diag(signs) @ factors.T  # type: ignore[operator]
    torch.testing.assert_close(energy.interaction(), product - torch.diag(product.diagonal()))


@ranks
def test_the_energy_is_linear_in_each_label(rank: int | None) -> None:
    energy = energy_of(rank)
    for i in range(6):
        low, high = Y.clone(), Y.clone()
        low[..., i], high[..., i] = 0.0, 1.0
        share = Y[..., i]
        torch.testing.assert_close(
            energy(X, Y), (1 - share) * energy(X, low) + share * energy(X, high)
        )


def test_a_pair_costs_twice_its_entry() -> None:
    energy = energy_of(None)
    first, second = torch.eye(6, dtype=torch.float64)[[0, 1]]
    pair = energy.global_(first + second) - energy.global_(first) - energy.global_(second)
    torch.testing.assert_close(pair, 2 * energy.interaction()[0, 1])


def test_the_least_energy_is_at_a_vertex() -> None:
    energy = energy_of(None)
    exact = brute_force(lambda y: energy(X, y), 6, batch=3, dtype=torch.float64)
    inside = torch.rand(500, 3, 6, dtype=torch.float64)
    assert bool((energy(X, inside) >= exact.energy).all())


def test_an_impossible_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank: found 0"):
        PairwiseEnergy(2, 2, rank=0)
