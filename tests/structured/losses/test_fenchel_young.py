from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured.energies import PairwiseEnergy
from structured.inference import mirror_descent, projected_gradient
from structured.losses import (
    binary_negative_entropy,
    fenchel_young,
    half_squared_norm,
    label_cross_entropy,
    negative_entropy,
    tag_cross_entropy,
)
from structured.spaces import Labels, Tags

seeds = st.integers(0, 2**32 - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)


def linear_loss(theta: Tensor, y: Tensor, p: Tensor, regularizer) -> Tensor:
    dims = tuple(range(1, theta.ndim))
    return fenchel_young(
        -(theta * y).sum(dim=dims), regularizer(y), -(theta * p).sum(dim=dims), regularizer(p)
    )


@given(seed=seeds)
def test_linear_energies_with_binary_entropy_give_the_logistic_losses(seed: int) -> None:
    theta, y = randn(3, 4, seed=seed), (randn(3, 4, seed=seed + 1) > 0).double()
    loss = linear_loss(theta, y, torch.sigmoid(theta), binary_negative_entropy)
    torch.testing.assert_close(loss, label_cross_entropy(theta, y))


@given(seed=seeds)
def test_linear_energies_with_the_squared_norm_give_the_smoothed_hinge(seed: int) -> None:
    theta, y = randn(3, 4, seed=seed), (randn(3, 4, seed=seed + 1) > 0).double()
    loss = linear_loss(theta, y, Labels(4).project(theta), half_squared_norm)
    z = torch.where(y == 0, theta, 1.0 - theta)
    pieces = torch.where(z <= 0, 0.0, torch.where(z < 1, z.square() / 2, z - 0.5))
    torch.testing.assert_close(loss, pieces.sum(dim=-1))


@given(seed=seeds)
def test_linear_energies_on_the_simplex_give_cross_entropy_and_sparsemax(seed: int) -> None:
    space, theta = Tags(3), randn(2, 5, 3, seed=seed)
    y = space.hard(randn(2, 5, 3, seed=seed + 1))
    loss = linear_loss(theta, y, space.relax(theta), negative_entropy)
    torch.testing.assert_close(loss, tag_cross_entropy(theta, y))
    p = space.project(theta)
    sparsemax = 0.5 * (y - theta).square().sum((1, 2)) - 0.5 * (p - theta).square().sum((1, 2))
    loss = linear_loss(theta, y, p, lambda point: half_squared_norm(point, event_dims=2))
    torch.testing.assert_close(loss, sparsemax)


def convex_pairwise() -> tuple[PairwiseEnergy, Tensor]:
    torch.manual_seed(0)
    energy = PairwiseEnergy(3, 3, hidden=(5,)).double()
    with torch.no_grad():
        # Small couplings: with the regularizer of weight 1 the inner problem is strongly convex.
        energy.coupling.weight.mul_(0.2)  # type: ignore[operator]
    return energy, randn(2, 3)


@pytest.mark.parametrize("kind", ["squared norm", "entropy"])
def test_with_a_learned_energy_the_loss_is_a_gap_and_its_gradient_the_envelopes(kind: str) -> None:
    energy, x = convex_pairwise()
    phi = {name: value.detach() for name, value in energy.named_parameters()}
    space, y = Labels(3), (randn(2, 3, seed=2) > 0).double()
    centre = space.uniform((2,), dtype=torch.float64)
    omega = half_squared_norm if kind == "squared norm" else binary_negative_entropy

    def solve(matrix: Tensor) -> Tensor:
        def value(point: Tensor) -> Tensor:
            parameters = phi | {"coupling.weight": matrix.detach()}
            return torch.func.functional_call(energy, parameters, (x, point))

        if kind == "entropy":
            found = mirror_descent(value, centre, space, steps=50, rate=0.8, entropy=1.0)
        else:
            found = projected_gradient(
                lambda p: value(p) + half_squared_norm(p), centre, space, steps=50, rate=0.8
            )
        return found.point

    def loss(matrix: Tensor) -> Tensor:
        p, parameters = solve(matrix), phi | {"coupling.weight": matrix}
        both = torch.func.functional_call(energy, parameters, (x, torch.stack([y, p])))
        return fenchel_young(both[0], omega(y), both[1], omega(p))

    matrix = phi["coupling.weight"].clone().requires_grad_()
    value = loss(matrix)
    assert bool((value >= -1e-12).all())
    # The gradient with p* held fixed is that of the loss whose p* is solved for again.
    assert torch.autograd.gradcheck(lambda m: loss(m).sum(), (matrix,), atol=1e-5)
    p = solve(matrix)
    at_prediction = energy(x, p)
    zero = fenchel_young(at_prediction, omega(p), at_prediction, omega(p))
    assert not zero.any()


def test_regularizers_are_the_printed_formulas_and_count_nothing_at_the_corners() -> None:
    p = torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(half_squared_norm(p, weight=3.0), 1.5 * (p * p).sum(dim=-1))
    expected = (p * p.log() + (1 - p) * (1 - p).log()).sum(dim=-1)
    torch.testing.assert_close(binary_negative_entropy(p), expected)
    torch.testing.assert_close(negative_entropy(p, event_dims=1), (p * p.log()).sum(dim=-1))
    corner = torch.tensor([[0.0, 1.0]])
    assert not binary_negative_entropy(corner).any()
    assert not negative_entropy(corner, event_dims=1).any()
