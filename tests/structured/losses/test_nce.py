from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from structured.losses import contrastive_divergence, nce_binary, nce_ranking
from structured.sampling import DetachedHard
from structured.spaces import Labels

losses = pytest.mark.parametrize("loss", [nce_ranking, nce_binary])


def terms(count: int = 5, batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((batch,), (count, batch), (batch,), (count, batch))
    gold, energies, gold_noise, noise = (torch.randn(s, dtype=torch.float64) for s in shapes)
    return gold, energies, gold_noise, noise


def test_ranking_does_not_change_when_any_function_of_the_input_is_added() -> None:
    gold, energies, gold_noise, noise = terms()
    value = nce_ranking(gold, energies, gold_noise, noise)
    g = 10.0 * torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(nce_ranking(gold + g, energies + g, gold_noise, noise), value)
    torch.testing.assert_close(nce_ranking(gold, energies, gold_noise + g, noise + g), value)


def test_ranking_is_the_cross_entropy_of_finding_entry_zero() -> None:
    gold, energies, gold_noise, noise = terms()
    logits = torch.cat([(-gold - gold_noise)[None], -energies - noise]).T
    expected = functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long), reduction="none")
    torch.testing.assert_close(nce_ranking(gold, energies, gold_noise, noise), expected)


def test_ranking_under_uniform_noise_is_contrastive_divergence_without_costs() -> None:
    gold, energies, _, _ = terms()
    uniform = torch.full((), -2.0, dtype=torch.float64)
    value = nce_ranking(gold, energies, uniform.expand(3), uniform.expand(5, 3))
    torch.testing.assert_close(
        value, contrastive_divergence(gold, energies, torch.zeros_like(energies))
    )


def test_binary_is_the_sum_of_logistic_losses_with_the_printed_logits() -> None:
    gold, energies, gold_noise, noise = terms()
    positive = torch.sigmoid(-gold - gold_noise - math.log(5))
    negative = torch.sigmoid(-energies - noise - math.log(5))
    torch.testing.assert_close(
        nce_binary(gold, energies, gold_noise, noise),
        -positive.log() - (1 - negative).log().sum(dim=0),
    )


def test_binary_is_stationary_in_expectation_at_the_normalised_true_energy() -> None:
    """Summed exactly over data and noise: d loss / dE(y) = 0 where E = -log p."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    energy = (-p.log()).requires_grad_()
    # K equal samples stand for one sample counted K times: the logits then still hold log K.
    count = 3
    total = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            value = nce_binary(
                energy[i : i + 1], energy[j].expand(count, 1), q[i : i + 1].log(),
                q[j].log().expand(count, 1),
            )  # fmt: skip
            total = total + p[i] * q[j] * value.squeeze()
    (gradient,) = torch.autograd.grad(total, energy)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0.0)


@losses
def test_low_gold_energy_and_high_noise_energy_are_rewarded(loss) -> None:
    gold, energies, gold_noise, noise = terms()
    value = loss(gold, energies, gold_noise, noise)
    assert value.shape == (3,)
    assert bool((loss(gold - 1, energies, gold_noise, noise) < value).all())
    assert bool((loss(gold, energies + 1, gold_noise, noise) < value).all())


@losses
def test_noise_from_an_inference_network_needs_no_other_shapes(loss) -> None:
    space, logits = Labels(4), torch.randn(3, 4)
    samples = space.sample(logits, 5, DetachedHard(), generator=torch.Generator().manual_seed(0))
    gold = samples[0]
    value = loss(
        gold.sum(-1), samples.sum(-1), space.log_prob(logits, gold), space.log_prob(logits, samples)
    )
    assert value.shape == (3,)


@losses
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_energies_give_finite_values_and_gradients(loss, scale: float) -> None:
    leaves = [torch.full((3,), scale), torch.full((5, 3), -scale)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = loss(leaves[0], leaves[1], torch.full((3,), -scale), torch.full((5, 3), scale))
    gradients = torch.autograd.grad(value.sum(), leaves)
    assert all(bool(part.isfinite().all()) for part in (value, *gradients))


@losses
def test_gradients_pass_gradcheck_twice(loss) -> None:
    inputs = tuple(part.requires_grad_() for part in terms(3, 2))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
