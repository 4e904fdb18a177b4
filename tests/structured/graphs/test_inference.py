"""Beliefs against enumeration, linear programs and the conditions of optimality."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structured.fenchel_young import ConvexCoupling, NetworkCoupling
from structured.graphs import (
    LabelGraph,
    best_labels,
    frank_wolfe,
    linear_program,
    mirror_ascent,
    pair_beliefs,
    sum_product,
)
from tests.structured.graphs.problems import FORESTS, LABELS, PAIRS, problem

graphs = pytest.mark.parametrize("name", PAIRS)
forests = pytest.mark.parametrize("name", FORESTS)
loopy = pytest.mark.parametrize("name", [name for name in PAIRS if name not in FORESTS])


def nothing(beliefs: Tensor) -> Tensor:
    return 0.0 * beliefs.sum(dim=-1)


def concave(size: int) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    coupling = ConvexCoupling(size, size=4).double()
    with torch.no_grad():
        for leaf in coupling.parameters():
            leaf.mul_(1.5)
    return lambda beliefs: -coupling(beliefs, beliefs)


@forests
def test_on_a_forest_beliefs_are_the_exact_marginals(name: str) -> None:
    made = problem(name)
    found, messages = sum_product(made.graph, made.theta)
    torch.testing.assert_close(found, made.marginals, rtol=1e-9, atol=1e-12)
    value = (made.theta * found).sum(dim=-1) + made.graph.entropy(found)
    torch.testing.assert_close(value, made.log_partition)
    again, _ = sum_product(made.graph, made.theta, iterations=1, messages=messages)
    torch.testing.assert_close(again, found)


def test_a_forest_takes_as_many_iterations_as_its_longest_path_has_pairs() -> None:
    for name, length in (("chain", 4), ("star", 2), ("forest", 1)):
        made = problem(name)
        found, _ = sum_product(made.graph, made.theta, iterations=length)
        torch.testing.assert_close(found, made.marginals)
        early, _ = sum_product(made.graph, made.theta, iterations=length - 1)
        assert not torch.allclose(early, made.marginals)


@loopy
def test_with_cycles_beliefs_satisfy_the_optimality_conditions_and_bound_log_z(name: str) -> None:
    made = problem(name)
    found, _ = sum_product(made.graph, made.theta, iterations=500)
    beliefs = found.requires_grad_()
    value = (made.theta * beliefs).sum(dim=-1) + made.graph.entropy(beliefs)
    (gradient,) = torch.autograd.grad(value.sum(), beliefs)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0.0)
    assert bool((value > made.log_partition).all())


@graphs
@pytest.mark.parametrize("iterations", [0, 1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beliefs_are_inside_the_polytope_after_any_number_of_iterations(
    name: str, iterations: int, dtype: torch.dtype
) -> None:
    made = problem(name, rows=20, scale=30.0)
    found, _ = sum_product(made.graph, made.theta.to(dtype), iterations=iterations)
    assert bool((made.graph.violation(found) <= 2 * torch.finfo(dtype).eps).all())
    single, pairs = made.graph.tables(found)
    torch.testing.assert_close(pairs.sum(dim=-1), single[:, made.graph.pairs[:, 0]])
    torch.testing.assert_close(pairs.sum(dim=-2), single[:, made.graph.pairs[:, 1]])


@given(
    first=st.floats(0.001, 0.999), second=st.floats(0.001, 0.999), strength=st.floats(-15.0, 15.0)
)
def test_the_belief_of_a_pair_has_the_odds_ratio_asked_for(
    first: float, second: float, strength: float
) -> None:
    q, r, k = (torch.tensor([v], dtype=torch.float64) for v in (first, second, strength))
    both = pair_beliefs(q, r, k)
    ratio = both * (1 - q - r + both) / ((q - both) * (r - both))
    # The odds ratio of nearly empty tables is lost to rounding; the equation without it is not.
    left = both * (1 - q - r + both)
    torch.testing.assert_close(left, k.exp() * (q - both) * (r - both), rtol=1e-6, atol=1e-9)
    if abs(strength) < 3.0:
        torch.testing.assert_close(ratio.log(), k, rtol=1e-6, atol=1e-6)


def test_the_belief_of_a_pair_is_exact_at_the_corners_and_for_endless_strengths() -> None:
    q = torch.tensor([0.0, 1.0, 0.3, 0.3, 0.7, 1.0])
    r = torch.tensor([0.0, 1.0, 0.6, 0.6, 0.6, 0.0])
    k = torch.tensor([0.0, 5.0, 1e30, -1e30, -1e30, -2.0])
    expected = torch.tensor([0.0, 1.0, 0.3, 0.0, 0.3, 0.0])
    torch.testing.assert_close(pair_beliefs(q, r, k), expected)


@forests
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_max_product_and_the_linear_program_find_the_best_label_set_of_a_forest(
    name: str, seed: int
) -> None:
    graph = LabelGraph(LABELS, torch.tensor(PAIRS[name]))
    theta = torch.randn(
        2, graph.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    bits = ((torch.arange(2**LABELS)[:, None] >> torch.arange(LABELS)) & 1).double()
    exact = bits[(theta @ graph.beliefs(bits).T).argmax(dim=-1)]
    assert torch.equal(best_labels(graph, theta), exact)
    torch.testing.assert_close(linear_program(graph, theta), graph.beliefs(exact))


@loopy
def test_with_cycles_the_linear_program_is_no_worse_than_the_best_label_set(name: str) -> None:
    made = problem(name, rows=8)
    found = linear_program(made.graph, made.theta)
    assert not made.graph.violation(found).any()
    best = (made.theta @ made.beliefs_of_sets.T).amax(dim=-1)
    assert bool(((made.theta * found).sum(dim=-1) >= best - 1e-9).all())
    with pytest.raises(ValueError, match="found a cycle"):
        best_labels(made.graph, made.theta)
    with pytest.raises(ValueError, match="not finite"):
        linear_program(made.graph, made.theta * float("nan"))


@graphs
def test_the_frank_wolfe_gap_falls_to_zero_on_a_concave_problem_and_bounds_the_rest(
    name: str,
) -> None:
    made = problem(name, rows=2)
    function = concave(made.graph.size)

    def value(beliefs: Tensor) -> Tensor:
        return (made.theta * beliefs).sum(dim=-1) + function(beliefs).detach()

    steps = (0, 4, 20, 100)
    found = [frank_wolfe(made.graph, made.theta, function, steps=count) for count in steps]
    gaps = [float(one.gap.max()) for one in found]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05 * gaps[0]
    for one in found:
        assert bool((made.graph.violation(one.point) < 1e-12).all())
        assert bool((value(found[-1].point) <= value(one.point) + one.gap + 1e-9).all())


@graphs
def test_mirror_ascent_without_a_function_is_sum_product_at_that_entropy(name: str) -> None:
    made = problem(name)
    exact, _ = sum_product(made.graph, made.theta / 0.3, iterations=500)
    for steps in (0, 3):
        found = mirror_ascent(
            made.graph, made.theta, nothing, entropy=0.3, steps=steps, iterations=500
        )
        torch.testing.assert_close(found.point, exact, atol=1e-7, rtol=0.0)
        assert bool((found.gap < 1e-7).all())


@graphs
def test_mirror_ascent_and_frank_wolfe_agree_on_a_concave_function(name: str) -> None:
    made = problem(name, rows=2)
    function, entropy = concave(made.graph.size), 0.5
    options = {"entropy": entropy, "rate": 0.5, "iterations": 300}
    mirrored = mirror_ascent(made.graph, made.theta, function, steps=60, **options)
    walked = frank_wolfe(made.graph, made.theta, function, entropy=entropy, steps=150)
    assert bool((mirrored.gap < 1e-6).all())
    assert bool((made.graph.violation(mirrored.point) < 1e-12).all())
    torch.testing.assert_close(mirrored.point, walked.point, atol=0.05, rtol=0.0)

    def value(beliefs: Tensor) -> Tensor:
        plain = (made.theta * beliefs).sum(dim=-1) + function(beliefs).detach()
        return plain + entropy * made.graph.entropy(beliefs)

    assert bool((value(walked.point) <= value(mirrored.point) + mirrored.gap + 1e-9).all())
    early = mirror_ascent(made.graph, made.theta, function, steps=1, **options)
    assert bool((value(mirrored.point) <= value(early.point) + early.gap + 1e-9).all())


def test_a_function_that_is_not_concave_is_ascended_too() -> None:
    made = problem("chain")
    torch.manual_seed(1)
    coupling = NetworkCoupling(made.graph.size, size=6).double()
    with torch.no_grad():
        coupling.weight.mul_(4.0)

    def function(beliefs: Tensor) -> Tensor:
        return -coupling(beliefs, beliefs)

    def value(beliefs: Tensor) -> Tensor:
        plain = (made.theta * beliefs).sum(dim=-1) + function(beliefs).detach()
        return plain + made.graph.entropy(beliefs)

    points = [
        mirror_ascent(made.graph, made.theta, function, steps=steps, rate=0.3).point
        for steps in (0, 1, 3, 10)
    ]
    values = torch.stack([value(point) for point in points])
    assert bool((values.diff(dim=0) > -1e-9).all())


def test_every_example_is_solved_on_its_own() -> None:
    made = problem("cycle", rows=4)
    function = concave(made.graph.size)
    together = mirror_ascent(made.graph, made.theta, function, steps=5)
    alone = mirror_ascent(made.graph, made.theta[2:3], function, steps=5)
    torch.testing.assert_close(together.point[2:3], alone.point, atol=1e-8, rtol=0.0)
    walked = frank_wolfe(made.graph, made.theta, function, steps=5).point
    one = frank_wolfe(made.graph, made.theta[2:3], function, steps=5).point
    torch.testing.assert_close(walked[2:3], one, atol=1e-8, rtol=0.0)


def test_labels_without_pairs_are_independent() -> None:
    graph = LabelGraph(3, torch.zeros(0, 2, dtype=torch.long))
    theta = torch.tensor([[1.0, -2.0, 0.0]])
    torch.testing.assert_close(sum_product(graph, theta)[0], torch.sigmoid(theta))
    assert torch.equal(best_labels(graph, theta), torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(linear_program(graph, theta)[:, :2], torch.tensor([[1.0, 0.0]]))
    walked = frank_wolfe(graph, theta[:, :3], nothing, steps=10)
    assert float(walked.point[0, 0]) > 0.95


def test_numbers_out_of_range_are_refused() -> None:
    graph, theta = LabelGraph(2, torch.tensor([[0, 1]])), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="steps=-1"):
        frank_wolfe(graph, theta, nothing, steps=-1)
    with pytest.raises(ValueError, match=r"entropy=-1\.0"):
        frank_wolfe(graph, theta, nothing, entropy=-1.0)
    with pytest.raises(ValueError, match=r"entropy=0\.0"):
        mirror_ascent(graph, theta, nothing, entropy=0.0)
    with pytest.raises(ValueError, match="rate"):
        mirror_ascent(graph, theta, nothing, rate=0.0)
