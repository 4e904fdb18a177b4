from __future__ import annotations

import pytest
import torch
from torch import Tensor

from structured import losses
from structured.methods import ContrastiveDivergence, Margin, Primary, Value
from structured.sampling import Soft, StraightThrough

PRIMARIES = [Margin(3), ContrastiveDivergence(3), Value(3), Value(3, "squared", gold=False)]


def figures(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    gold, energies = torch.randn(5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    return gold, energies, torch.rand(3, 5, dtype=torch.float64)


@pytest.mark.parametrize("primary", PRIMARIES, ids=repr)
def test_a_primary_loss_has_one_value_per_example_and_ignores_the_order_of_candidates(
    primary: Primary,
) -> None:
    gold, energies, costs = figures()
    value = primary.loss(gold, energies, costs)
    assert value.shape == (5,)
    torch.testing.assert_close(primary.loss(gold, energies.flip(0), costs.flip(0)), value)


def test_the_margin_is_averaged_over_candidates_not_summed() -> None:
    gold, energies, costs = figures()
    one = Margin().loss(gold, energies[:1], costs[:1])
    repeated = Margin(3).loss(gold, energies[:1].expand(3, -1), costs[:1].expand(3, -1))
    torch.testing.assert_close(repeated, one)


def test_one_sample_of_contrastive_divergence_is_the_softplus_of_the_margin() -> None:
    gold, energies, costs = figures()
    found = ContrastiveDivergence(1).loss(gold, energies[:1], costs[:1])
    expected = torch.nn.functional.softplus(costs[0] - energies[0] + gold)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "squared"])
def test_the_value_loss_is_least_where_the_energy_predicts_the_score(kind: str) -> None:
    costs = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    best = (-torch.logit(1.0 - costs)).requires_grad_()
    value = Value(kind=kind, gold=False)  # pyright: ignore[reportArgumentType]
    value.loss(torch.zeros(2, dtype=torch.float64), best, costs).sum().backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros_like(best), atol=1e-12, rtol=0.0)


def test_the_value_loss_of_the_gold_output_is_added_on_request() -> None:
    gold, energies, costs = figures()
    added = Value(3).loss(gold, energies, costs) - Value(3, gold=False).loss(gold, energies, costs)
    torch.testing.assert_close(added, losses.value_cross_entropy(gold, torch.ones_like(gold)))


def test_contrastive_divergence_draws_and_the_others_take_the_soft_output() -> None:
    assert isinstance(ContrastiveDivergence().default_sampler, StraightThrough)
    assert isinstance(Margin().default_sampler, Soft)
    assert isinstance(Value().default_sampler, Soft)


@pytest.mark.parametrize("primary", [Margin, ContrastiveDivergence, Value])
@pytest.mark.parametrize("samples", [0, -1, 1.5, True])
def test_a_number_of_samples_that_is_none_is_refused(primary: type, samples: float) -> None:
    with pytest.raises(ValueError, match=r"samples: found .*wanted an integer of at least 1"):
        primary(samples)


def test_an_unknown_kind_of_value_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: found 'hinge'"):
        Value(kind="hinge")  # pyright: ignore[reportArgumentType]
