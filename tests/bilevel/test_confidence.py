"""Recycled vectors are relied on where they help, and let alone where they do not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import Result
from bilevel.solvers._confidence import Confidence
from tests.bilevel.arrays import error, normal, with_spectrum
from tests.bilevel.systems import F64

SIZE = 140


def unrelated(condition: float, count: int, dtype: torch.dtype = F64) -> list[bilevel.Matrix]:
    """Operators with one spectrum and nothing else in common."""
    values = torch.logspace(0, math.log10(condition), SIZE, dtype=F64)
    return [bilevel.Matrix(with_spectrum(values, seed).to(dtype)) for seed in range(count)]


def chained(
    operators: list[bilevel.Matrix], **options: object
) -> tuple[list[bilevel.Solution], list[bilevel.Solution]]:
    """Solves that pass on what they learn, and the same without; right-hand sides at random."""
    state, found, fresh = None, [], []
    for seed, operator in enumerate(operators):
        b = normal(SIZE, seed=seed).to(operator.dtype)
        found.append(bilevel.solve(operator, b, bilevel.Auto(**options), state=state))  # type: ignore[arg-type]
        fresh.append(bilevel.solve(operator, b, bilevel.Auto(**options)))  # type: ignore[arg-type]
        state = found[-1].state
    return found, fresh


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e4])
def test_along_unrelated_operators_recycling_costs_little(condition: float) -> None:
    found, fresh = chained(unrelated(condition, 32))
    assert all(each.result is Result.SUCCESS for each in found)
    spent, least = (sum(each.stats.products for each in solves) for solves in (found, fresh))
    assert spent < 1.25 * least


def test_the_answers_along_unrelated_operators_are_right() -> None:
    operators = unrelated(1e2, 12)
    found, _ = chained(operators)
    for seed, (operator, solution) in enumerate(zip(operators, found, strict=True)):
        wanted = torch.linalg.solve(operator.to_dense(), normal(SIZE, seed=seed))
        assert error(solution.value, wanted) < 1e-7


def test_the_level_of_the_rest_stays_within_the_spectrum() -> None:
    found, _ = chained(unrelated(1e2, 1) * 20)
    for solution in found:
        assert 1e-2 <= float(solution.state["level"]) <= 1.0


def test_scales_that_jump_are_no_harm() -> None:
    (operator,) = unrelated(1e2, 1)
    dense = operator.to_dense()
    found, _ = chained([bilevel.Matrix(dense * scale) for scale in (1.0, 1e-20, 1e8, 1e-8, 1.0)])
    assert all(each.result is Result.SUCCESS for each in found)


def test_what_fails_is_tried_ever_more_seldom_and_what_helps_every_time() -> None:
    confidence, tried = Confidence().without(50, 10.0), []
    for _ in range(40):
        tried.append(confidence.rest == 0)
        failed, rested = confidence.with_it(failed=True), confidence.without(50, 10.0)
        confidence = failed if tried[-1] else rested
    assert [index for index, used in enumerate(tried) if used] == [0, 2, 6, 14, 30]
    assert confidence.failures == 5
    while confidence.rest:
        confidence = confidence.without(50, 10.0)
    confidence = confidence.with_it(failed=False)
    assert (confidence.failures, confidence.rest) == (0, 0)


def test_a_solve_with_it_may_take_the_steps_of_one_without() -> None:
    confidence = Confidence().without(50, 10.0)
    assert confidence.steps(10.0) == 50
    assert confidence.steps(4.0) == 50
    assert confidence.steps(20.0) == 100
    assert Confidence().without(2, 1.0).steps(0.1) == 5
    assert Confidence().steps(10.0) == math.inf
    assert Confidence.of(confidence.state()) == confidence


@pytest.mark.parametrize(("name", "value"), [("taken", math.nan), ("folds", 0.0), ("rest", -1)])
def test_a_state_with_odd_figures_is_one_that_says_nothing(name: str, value: float) -> None:
    state = {**Confidence(50.0, 10.0, 1, 2).state(), name: torch.tensor(value)}
    assert Confidence.of(state) == Confidence()


def test_the_pairs_of_a_solve_that_met_negative_curvature_are_right() -> None:
    values = torch.linspace(1, 20, SIZE, dtype=F64)
    values[0] = -0.5
    A = with_spectrum(values, 1)
    found = bilevel.solve(bilevel.Matrix(A), normal(SIZE, seed=1))
    assert found.result is Result.SUCCESS
    S, Y = found.state["directions"], found.state["images"]
    torch.testing.assert_close(Y, S @ A, rtol=1e-9, atol=1e-10)


def _loop(warm_start: bool) -> bilevel.BilevelOptimizer:
    phi = torch.tensor(-4.6, requires_grad=True)
    theta = torch.zeros(200, requires_grad=True)

    def loss(weights: Tensor, X: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * (X @ weights)).mean()

    problem = bilevel.ImplicitProblem(
        outer=lambda p, t, X, y: loss(t[0], X, y),
        inner=lambda p, t, X, y: loss(t[0], X, y) + p[0].exp() * t[0].square().sum() / 2,
    )
    outer, inner = torch.optim.SGD([phi], lr=0.01), torch.optim.SGD([theta], lr=0.1)
    return bilevel.BilevelOptimizer(problem, outer, inner, warm_start=warm_start)


def test_minibatches_cost_a_loop_that_learns_hardly_more() -> None:
    def batch(seed: int) -> tuple[Tensor, Tensor]:
        X = normal(32, 200, seed=seed).float()
        return X, X[:, :20].sum(1).sign()

    spent = []
    for warm_start in (False, True):
        loop, seeds = _loop(warm_start), itertools.count()
        steps = [
            loop.step(inner_args=batch(next(seeds)), outer_args=batch(next(seeds)))
            for _ in range(40)
        ]
        assert all(info.solution.result is Result.SUCCESS for info in steps)
        spent.append(sum(info.solution.stats.products for info in steps))
    assert spent[1] < 1.3 * spent[0]


def _state() -> dict[str, Tensor]:
    return dict(bilevel.solve(unrelated(1e2, 1)[0], normal(SIZE, seed=1)).state)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda s: {**s, "directions": s["directions"].float()},
            r"state\['directions'\] is torch.float32",
        ),
        (
            lambda s: {**s, "directions": s["directions"][:3]},
            r"state\['images'\] is .* of shape \(78, 140\)",
        ),
        (lambda s: {**s, "upper": s["upper"].float()}, r"state\['upper'\] is torch.float32"),
        (lambda s: {**s, "level": 1.0}, r"state\['level'\] is .*; wanted a tensor"),
        (lambda s: {k: v for k, v in s.items() if k != "images"}, "needs 'images'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change: object, text: str) -> None:
    with pytest.raises(bilevel.InputError, match=text):
        bilevel.solve(unrelated(1e2, 1)[0], normal(SIZE, seed=1), state=change(_state()))  # type: ignore[operator]


def test_a_state_with_a_nan_is_passed_over() -> None:
    (operator,) = unrelated(1e2, 1)
    state = {name: tensor * math.nan for name, tensor in _state().items() if tensor.ndim}
    found = bilevel.solve(operator, normal(SIZE, seed=1), state={**_state(), **state})
    assert found.result is Result.SUCCESS
    assert all(bool(tensor.isfinite().all()) for tensor in found.state.values())


def test_short_solves_go_on_learning() -> None:
    (operator,), state, known = unrelated(20.0, 1), None, []
    for seed in range(3):
        found = bilevel.solve(operator, normal(SIZE, seed=seed), bilevel.Auto(1e-3), state=state)
        assert found.stats.iterations < 25
        state = found.state
        known.append(len(state["directions"]))
    assert known[0] < known[1] < known[2]
