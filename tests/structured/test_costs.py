from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, hamming_loss, jaccard_score, zero_one_loss
from torch import Tensor

from structured.costs import hamming, soft_f1, soft_iou, token_error, zero_one

LABEL_COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hamming": hamming,
    "zero-one": zero_one,
    "soft F1": soft_f1,
    "soft IoU": partial(soft_iou, event_dims=1),
}
label_costs = pytest.mark.parametrize("cost", LABEL_COSTS.values(), ids=LABEL_COSTS)
seeds = st.integers(0, 2**32 - 1)


def bits(shape: tuple[int, ...], seed: int, rate: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate).double()


def uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@label_costs
@given(seed=seeds)
def test_a_cost_is_between_zero_and_one_and_zero_only_at_gold(
    cost: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    gold, candidate = bits((20, 4), seed), bits((7, 20, 4), seed + 1)
    costs = cost(candidate, gold)
    assert costs.shape == (7, 20)
    assert bool(((costs >= 0) & (costs <= 1)).all())
    assert torch.equal(costs == 0, (candidate == gold).all(dim=-1))
    soft = cost(uniform((7, 20, 4), seed), gold)
    assert bool(((soft > 0) & (soft <= 1)).all())


@label_costs
def test_the_sign_is_that_of_a_cost_so_more_errors_cost_more(
    cost: Callable[[Tensor, Tensor], Tensor],
) -> None:
    gold = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    right, near, wrong = gold, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 1.0 - gold
    values = [float(cost(candidate, gold)) for candidate in (right, near, wrong)]
    assert values[0] == 0.0 < values[1] <= values[2] == 1.0


@label_costs
def test_moving_a_soft_candidate_towards_gold_lowers_the_cost(
    cost: Callable[[Tensor, Tensor], Tensor],
) -> None:
    # Not the empty set: any other set costs the whole F1 there, however soft.
    gold = bits((6, 5), 0).index_fill(-1, torch.tensor([0]), 1.0)
    candidate = uniform((6, 5), 1).requires_grad_()
    (gradient,) = torch.autograd.grad(cost(candidate, gold).sum(), candidate)
    towards = gold - candidate.detach()
    assert bool(((gradient * towards) <= 0).all())
    assert bool(((gradient * towards).sum(dim=-1) < 0).all())


@pytest.mark.parametrize("cost", [hamming, soft_f1], ids=["hamming", "soft F1"])
def test_the_derivative_at_a_hard_candidate_is_the_one_towards_the_inside(
    cost: Callable[[Tensor, Tensor], Tensor],
) -> None:
    gold, candidate = bits((30, 5), 2), bits((30, 5), 3)
    leaf = candidate.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(leaf, gold).sum(), leaf)
    step = 1e-6
    for i in range(5):
        moved = candidate.clone()
        moved[:, i] += step * (1.0 - 2.0 * candidate[:, i])
        slope = (cost(moved, gold) - cost(candidate, gold)) / step * (1.0 - 2.0 * candidate[:, i])
        # At two empty sets soft F1 jumps: there is no derivative to compare with.
        smooth = (candidate.sum(dim=-1) + gold.sum(dim=-1)) > 0
        torch.testing.assert_close(gradient[smooth, i], slope[smooth], atol=1e-4, rtol=1e-4)


def test_two_empty_sets_cost_nothing_and_pass_a_finite_gradient() -> None:
    empty = torch.zeros(1, 3)
    for cost in (soft_f1, partial(soft_iou, event_dims=1)):
        leaf = empty.clone().requires_grad_()
        value = cost(leaf, empty).sum()
        assert value.item() == 0.0
        (gradient,) = torch.autograd.grad(value, leaf)
        assert bool(gradient.isfinite().all())


@given(seed=seeds)
def test_soft_f1_is_the_printed_formula_for_soft_gold_too(seed: int) -> None:
    candidate, gold = uniform((5, 4, 6), seed), uniform((4, 6), seed + 1)
    low = torch.minimum(candidate, gold).sum(-1)
    high = torch.maximum(candidate, gold).sum(-1)
    torch.testing.assert_close(soft_f1(candidate, gold), 1 - 2 * low / (low + high))
    torch.testing.assert_close(soft_iou(candidate, gold, event_dims=1), 1 - low / high)


@given(seed=seeds)
def test_at_hard_candidates_costs_are_the_usual_metrics(seed: int) -> None:
    candidate, gold = bits((15, 6), seed), bits((15, 6), seed + 1)
    c, g = candidate.numpy().astype(int), gold.numpy().astype(int)
    iou = partial(soft_iou, event_dims=1)
    f1_of_all = f1_score(g, c, average="samples", zero_division=cast(Any, 1.0))
    iou_of_all = jaccard_score(g, c, average="samples", zero_division=cast(Any, 1.0))
    assert 1 - float(soft_f1(candidate, gold).mean()) == pytest.approx(f1_of_all)
    assert 1 - float(iou(candidate, gold).mean()) == pytest.approx(iou_of_all)
    assert float(hamming(candidate, gold).mean()) == pytest.approx(hamming_loss(g, c))
    assert float(zero_one(candidate, gold).mean()) == pytest.approx(zero_one_loss(g, c))


def test_expected_costs_are_the_means_over_independent_hard_candidates() -> None:
    p, gold = uniform((1, 3), 0), torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    sets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    weights = (sets * p + (1 - sets) * (1 - p)).prod(dim=-1)
    for cost in (hamming, zero_one):
        mean = (weights * cost(sets[:, None], gold).squeeze(1)).sum()
        torch.testing.assert_close(cost(p, gold).squeeze(), mean)


def test_pixel_masks_are_one_output_each() -> None:
    gold, candidate = bits((3, 4, 5), 0), uniform((2, 3, 4, 5), 1)
    for cost in (hamming, zero_one, soft_f1, soft_iou):
        flat = cost(candidate.flatten(-2), gold.flatten(-2), event_dims=1)
        torch.testing.assert_close(cost(candidate, gold, event_dims=2), flat)


def one_hot(tags: list[list[int]]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tags), 3).double()


def test_a_wrong_tag_costs_though_its_row_sums_to_one_like_golds() -> None:
    """The published trap: (prob - onehot) summed over tags is zero at every position."""
    gold, wrong = one_hot([[0, 1]]), one_hot([[1, 2]])
    assert not (wrong - gold).sum(dim=-1).any()
    assert float(token_error(wrong, gold)) == 1.0
    assert float(token_error(gold, gold)) == 0.0


def test_token_error_counts_real_positions_only() -> None:
    gold, candidate = one_hot([[0, 1, 2], [0, 0, 0]]), one_hot([[0, 2, 0], [1, 1, 1]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    errors = token_error(candidate, gold, mask)
    torch.testing.assert_close(errors, torch.tensor([0.5, 1.0], dtype=torch.float64))
    zeroed = mask[..., None]
    torch.testing.assert_close(token_error(candidate * zeroed, gold * zeroed, mask), errors)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not token_error(candidate, gold, nothing).any()


def test_token_error_of_soft_tags_is_the_mean_missing_probability() -> None:
    gold = one_hot([[0, 1]])
    candidate = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        token_error(candidate, gold), torch.tensor([0.375], dtype=torch.float64)
    )


@label_costs
def test_costs_pass_gradcheck_at_soft_candidates(
    cost: Callable[[Tensor, Tensor], Tensor],
) -> None:
    gold = bits((2, 4), 5)
    candidate = uniform((3, 2, 4), 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: cost(y, gold), (candidate,))
    assert torch.autograd.gradgradcheck(lambda y: cost(y, gold), (candidate,))
