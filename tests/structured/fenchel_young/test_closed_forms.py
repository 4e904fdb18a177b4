"""Linear energies: the losses that the literature knows, found by the general inference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from structured.costs import hamming
from structured.fenchel_young import (
    GeneralizedFenchelYoung,
    NegativeEntropy,
    Regularizer,
    SquaredNorm,
    augmented,
)
from structured.inference import brute_force
from structured.losses import label_cross_entropy, tag_cross_entropy
from structured.spaces import Labels, Mask, Space, Tags

seeds = st.integers(0, 2**32 - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)


def linear(theta: Tensor, space: Space):
    dims = tuple(range(-space.event_dims, 0))
    return lambda p: -(theta * p).sum(dim=dims)


def loss_at(theta: Tensor, gold: Tensor, space: Space, regularizer: Regularizer) -> Tensor:
    loss = GeneralizedFenchelYoung(space, regularizer, steps=2, tolerance=1e-4)
    energy = linear(theta, space)
    start = space.uniform(theta.shape[:2] if isinstance(space, Tags) else theta.shape[:1])
    return loss(energy, gold, loss.predict(energy, start.double()).point)


@given(seed=seeds)
def test_the_entropy_gives_the_logistic_losses(seed: int) -> None:
    theta, y = randn(3, 4, seed=seed), (randn(3, 4, seed=seed + 1) > 0).double()
    found = loss_at(theta, y, Labels(4), NegativeEntropy())
    torch.testing.assert_close(found, label_cross_entropy(theta, y))


@given(seed=seeds)
def test_the_squared_norm_gives_the_smoothed_hinge(seed: int) -> None:
    theta, y = randn(3, 4, seed=seed), (randn(3, 4, seed=seed + 1) > 0).double()
    z = torch.where(y == 0, theta, 1.0 - theta)
    pieces = torch.where(z <= 0, 0.0, torch.where(z < 1, z.square() / 2, z - 0.5))
    found = loss_at(theta, y, Labels(4), SquaredNorm())
    torch.testing.assert_close(found, pieces.sum(dim=-1))


@given(seed=seeds)
def test_a_simplex_per_position_gives_cross_entropy_and_sparsemax(seed: int) -> None:
    space, theta = Tags(3), randn(2, 5, 3, seed=seed)
    y = space.hard(randn(2, 5, 3, seed=seed + 1))
    found = loss_at(theta, y, space, NegativeEntropy())
    torch.testing.assert_close(found, tag_cross_entropy(theta, y))
    p = space.project(theta)
    sparsemax = 0.5 * (y - theta).square().sum((1, 2)) - 0.5 * (p - theta).square().sum((1, 2))
    torch.testing.assert_close(loss_at(theta, y, space, SquaredNorm()), sparsemax)


def test_padded_positions_of_a_sequence_count_nothing() -> None:
    mask = torch.tensor([[True, True, False]])
    theta, space = randn(1, 3, 4), Tags(4).with_mask(mask)
    y = space.hard(randn(1, 3, 4, seed=1))
    for regularizer in (NegativeEntropy(), SquaredNorm()):
        short = loss_at(theta[:, :2], y[:, :2], Tags(4), regularizer)
        torch.testing.assert_close(loss_at(theta, y, space, regularizer), short)


def test_a_mask_is_as_many_labels() -> None:
    theta, y = randn(2, 3, 4), (randn(2, 3, 4, seed=1) > 0).double()
    for regularizer in (NegativeEntropy(), SquaredNorm()):
        flat = loss_at(theta.flatten(1), y.flatten(1), Labels(12), regularizer)
        torch.testing.assert_close(loss_at(theta, y, Mask(3, 4), regularizer), flat)


@pytest.mark.parametrize("regularizer", [NegativeEntropy(1e-3), SquaredNorm(1e-3)])
def test_a_small_weight_leaves_the_best_label_set_and_the_perceptron_loss(
    regularizer: Regularizer,
) -> None:
    theta, y = randn(3, 5), (randn(3, 5, seed=1) > 0).double()
    space = Labels(5)
    exact = brute_force(linear(theta, space), 5, batch=3, dtype=torch.float64)
    loss = GeneralizedFenchelYoung(space, regularizer, steps=1)
    found = loss.predict(linear(theta, space), space.uniform((3,), dtype=torch.float64))
    assert torch.equal(space.round(found.point), exact.point)
    perceptron = linear(theta, space)(y) - exact.energy
    value = loss(linear(theta, space), y, found.point)
    torch.testing.assert_close(value, perceptron, atol=1e-2, rtol=0.0)


@given(seed=seeds, share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("regularizer", [NegativeEntropy(), SquaredNorm(0.5)])
def test_the_loss_of_a_linear_energy_is_convex_in_its_coefficients(
    regularizer: Regularizer, seed: int, share: float
) -> None:
    y = (randn(3, 4, seed=seed) > 0).double()
    left, right = randn(3, 4, seed=seed + 1), randn(3, 4, seed=seed + 2)

    def value(theta: Tensor) -> Tensor:
        return loss_at(theta, y, Labels(4), regularizer)

    chord = share * value(left) + (1 - share) * value(right)
    assert bool((value(share * left + (1 - share) * right) <= chord + 1e-9).all())


def test_with_the_hamming_cost_every_wrong_label_gains_its_share() -> None:
    theta, y, space = randn(3, 4), (randn(3, 4, seed=1) > 0).double(), Labels(4)
    loss = GeneralizedFenchelYoung(space, NegativeEntropy(), steps=2)
    harder = augmented(linear(theta, space), hamming, y)
    start = space.uniform((3,), dtype=torch.float64)
    found = loss(harder, y, loss.predict(harder, start).point)
    shifted = theta + (1 - 2 * y) / 4
    closed = functional.softplus(shifted).sum(-1) + y.sum(-1) / 4 - (theta * y).sum(-1)
    torch.testing.assert_close(found, closed)
    assert bool((found > loss_at(theta, y, space, NegativeEntropy())).all())
