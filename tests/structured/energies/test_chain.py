from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from structured.energies import ChainEnergy

TAGS, LENGTHS = 3, [4, 2, 1]
X = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def energy() -> ChainEnergy:
    torch.manual_seed(0)
    energy = ChainEnergy(5, TAGS, hidden=4).double()
    with torch.no_grad():
        energy.transitions.normal_()
    return energy


def sequences(length: int) -> Tensor:
    """Every tag sequence, ``[K^T, T]``."""
    return torch.tensor(list(product(range(TAGS), repeat=length)))


def one_hot(tags: Tensor) -> Tensor:
    """One-hot ``[..., T, K]``, padded with a wrong tag to the longest length."""
    padded = functional.pad(tags, (0, 4 - tags.shape[-1]), value=1)
    return functional.one_hot(padded, TAGS).double()


def crf_score(emissions: Tensor, transitions: Tensor, tags: list[int]) -> Tensor:
    """The score of a linear-chain conditional random field, one term at a time."""
    score = emissions[0, tags[0]]
    for t in range(1, len(tags)):
        score = score + transitions[tags[t - 1], tags[t]] + emissions[t, tags[t]]
    return score


def test_at_one_hot_tags_the_energy_is_minus_the_score_of_a_crf(energy: ChainEnergy) -> None:
    emissions = -energy.unaries(X, MASK)
    for b, length in enumerate(LENGTHS):
        every = sequences(length)
        y = one_hot(every)[:, None].expand(-1, 3, -1, -1)
        energies = energy(X, y, MASK)[:, b]
        scores = [crf_score(emissions[b], energy.transitions, tags) for tags in every.tolist()]
        torch.testing.assert_close(energies, -torch.stack(scores))


def forward_algorithm(emissions: Tensor, transitions: Tensor, best: bool) -> Tensor:
    """The log-partition of a CRF, or its best score (Viterbi)."""
    state = emissions[0]
    for emission in emissions[1:]:
        joint = state[:, None] + transitions + emission
        state = joint.amax(dim=0) if best else joint.logsumexp(dim=0)
    return state.amax(dim=0) if best else state.logsumexp(dim=0)


@pytest.mark.parametrize("best", [False, True], ids=["partition function", "Viterbi"])
def test_enumerated_energies_give_what_the_forward_algorithm_gives(
    energy: ChainEnergy, best: bool
) -> None:
    emissions = -energy.unaries(X, MASK)
    for b, length in enumerate(LENGTHS):
        y = one_hot(sequences(length))[:, None].expand(-1, 3, -1, -1)
        scores = -energy(X, y, MASK)[:, b]
        expected = forward_algorithm(emissions[b, :length], energy.transitions, best)
        found = scores.amax(dim=0) if best else scores.logsumexp(dim=0)
        torch.testing.assert_close(found, expected)


def points() -> Tensor:
    logits = torch.randn(2, 3, 4, TAGS, generator=torch.Generator().manual_seed(2))
    return torch.softmax(logits.double(), dim=-1)


def test_the_energy_is_the_printed_formula(energy: ChainEnergy) -> None:
    y, states = points(), energy.features(X, MASK)
    weight, bias = -energy.unaries.output.weight, -energy.unaries.output.bias
    for k, (b, length) in product(range(2), enumerate(LENGTHS)):
        total = torch.zeros((), dtype=torch.float64)
        for t in range(length):
            for j in range(TAGS):
                total = total + y[k, b, t, j] * (weight[j] @ states[b, t] + bias[j])
            if t > 0:
                total = total + y[k, b, t - 1] @ energy.transitions @ y[k, b, t]
        torch.testing.assert_close(energy(X, y, MASK)[k, b], -total)


def test_neither_padding_nor_batching_changes_an_energy(energy: ChainEnergy) -> None:
    """The published trap: padding that changes the energy."""
    y = points()
    padded = energy(X, y, MASK)
    garbage = torch.where(MASK[..., None], y, 7.0), torch.where(MASK[..., None], X, -3.0)
    torch.testing.assert_close(energy(garbage[1], garbage[0], MASK), padded)
    for b, length in enumerate(LENGTHS):
        alone = energy(X[b : b + 1, :length], y[:, b : b + 1, :length])
        torch.testing.assert_close(padded[:, b : b + 1], alone)


def test_padded_positions_get_no_gradient(energy: ChainEnergy) -> None:
    x, y = X.clone().requires_grad_(), points().requires_grad_()
    by_x, by_y = torch.autograd.grad(energy(x, y, MASK).sum(), (x, y))
    assert not by_x[~MASK].any()
    assert not by_y[:, ~MASK].any()
    assert bool((by_y[:, MASK] != 0).all())


def test_every_position_and_every_transition_counts(energy: ChainEnergy) -> None:
    """The published trap: a `return` inside the loop over time."""
    y = points().requires_grad_()
    (by_y,) = torch.autograd.grad(energy(X, y).sum(), y)
    assert bool((by_y != 0).all())
    state = torch.zeros(1, 4, TAGS, dtype=torch.float64)
    state[0, :, 0] = 1.0
    transitions = -energy.global_(state)
    torch.testing.assert_close(transitions.squeeze(), 3 * energy.transitions[0, 0])
