"""Where ``BilevelOptimizer`` starts each solve: from the adjoints before it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel._prediction import predicted
from tests.bilevel.arrays import error, normal, with_spectrum

F64 = torch.float64


def test_one_and_two_vectors_are_followed_by_the_last() -> None:
    first, second = normal(5, seed=1), normal(5, seed=2)
    assert torch.equal(predicted([first]), first)
    assert torch.equal(predicted([first, second]), second)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    rates=st.tuples(st.floats(-0.9, 1.0), st.floats(-0.9, 1.0)),
    scale=st.sampled_from([1e-200, 1.0, 1e150]),
)
def test_two_decaying_parts_are_followed_exactly(
    seed: int, rates: tuple[float, float], scale: float
) -> None:
    level, parts = normal(20, seed=seed), normal(2, 20, seed=seed + 1)
    weights = torch.tensor(rates, dtype=F64)
    given_ = [scale * (level + weights.pow(k) @ parts) for k in range(5)]
    # Parts that have nearly died out, hardly move or are equal are told apart to the root of the
    # precision.
    found = predicted(given_[:4])
    moved = torch.linalg.vector_norm(given_[3] / scale - given_[2] / scale)
    assert torch.linalg.vector_norm((found - given_[4]) / scale) <= 1e-5 + 1.95 * moved
    distinct = abs(rates[0] - rates[1]) > 0.1
    if distinct and all(abs(rate) > 0.2 and rate < 0.99 for rate in rates):
        assert error(found / scale, given_[4] / scale) < 1e-6


def test_steps_along_a_line_go_on() -> None:
    start, step = normal(9, seed=1), normal(9, seed=2)
    line = [start + k * step for k in range(5)]
    torch.testing.assert_close(predicted(line[:3]), line[3])
    torch.testing.assert_close(predicted(line[:4]), line[4])


def test_what_stands_still_is_expected_to_stay() -> None:
    there = normal(9, seed=1)
    assert torch.equal(predicted([there] * 4), there)
    arrived = [normal(9, seed=2), there, there, there]
    assert torch.equal(predicted(arrived), there)


def test_noise_around_a_level_is_averaged_out() -> None:
    level = torch.ones(2000, dtype=F64)
    noisy = [level + normal(2000, seed=k) for k in range(4)]
    assert error(predicted(noisy), level) < 0.75 * error(noisy[-1], level)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), odd=st.floats(1.0, 1e8))
def test_one_odd_vector_moves_the_guess_no_further_than_twice_the_last_step(
    seed: int, odd: float
) -> None:
    given_ = list(normal(4, 6, seed=seed))
    given_[2] = odd * given_[2]
    last_step = torch.linalg.vector_norm(given_[3] - given_[2])
    move = torch.linalg.vector_norm(predicted(given_) - given_[3])
    assert move <= 2.0001 * last_step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_vectors_of_few_digits_do_not_overflow(dtype: torch.dtype) -> None:
    found = predicted([(1e4 * normal(3000, seed=k)).to(dtype) for k in range(4)])
    assert found.dtype == dtype
    assert bool(found.isfinite().all())


def smooth(solver: bilevel.Solver, warm_start: bool, steps: int = 20) -> list[int]:
    """Products of each solve along gradient descent on a quadratic of condition number 1e3."""
    matrix = with_spectrum(torch.logspace(-3, 0, 150, dtype=F64), 1)

    def inner(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return theta[0] @ matrix @ theta[0] / 2 - phi[0] @ theta[0]

    def outer(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return ((theta[0] - 1) ** 2).sum() / 2

    phi = normal(150, seed=2).requires_grad_()
    theta = torch.zeros(150, dtype=F64, requires_grad=True)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner, solver=solver, on_failure="ignore"),
        torch.optim.SGD([phi], lr=1e-7),
        torch.optim.SGD([theta], lr=0.0),
        inner_steps=0,
        warm_start=warm_start,
    )
    products = []
    for _ in range(steps):
        with torch.no_grad():
            theta.copy_(torch.linalg.solve(matrix, phi))
        products.append(loop.step().solution.stats.products)
    return products


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_warm_start_halves_the_products_along_a_smooth_trajectory(rtol: float) -> None:
    solver = bilevel.CG(rtol=rtol, max_steps=2000)
    assert sum(smooth(solver, True)) < sum(smooth(solver, False)) / 2


def test_solves_that_met_no_tolerance_leave_their_own_adjoint_alone() -> None:
    loop_of = {}
    for name, solver in {
        "budget": bilevel.CG(rtol=None, max_steps=2),
        "met": bilevel.CG(rtol=1e-6),
    }.items():
        phi = torch.ones(3, dtype=F64, requires_grad=True)
        theta = torch.zeros(3, dtype=F64, requires_grad=True)
        scale = torch.tensor([1.0, 2.0, 3.0], dtype=F64)

        def inner(p: list[Tensor], t: list[Tensor], scale: Tensor = scale) -> Tensor:
            return (scale * t[0] ** 2).sum() / 2 - p[0] @ t[0]

        loop = bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(lambda p, t: (t[0] - 1).pow(2).sum(), inner, solver=solver),
            torch.optim.SGD([phi], lr=0.1),
            torch.optim.SGD([theta], lr=0.3),
            inner_steps=5,
        )
        for _ in range(6):
            loop.step()
        loop_of[name] = loop.state_dict()
    assert len(loop_of["budget"]["adjoints"]) == 1
    assert len(loop_of["met"]["adjoints"]) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_a_drift_of_more_numbers_than_it_can_count(
    dtype: torch.dtype,
) -> None:
    drift = [torch.full((100_000,), 1 + 0.125 * k, dtype=dtype) for k in range(5)]
    found = predicted(drift[:4])
    assert found.dtype is dtype
    torch.testing.assert_close(found, drift[4])


def test_a_guess_beyond_the_largest_number_is_the_last_vector() -> None:
    growing = [torch.tensor([k * 2e4], dtype=torch.float16) for k in range(1, 4)]
    assert torch.equal(predicted(growing), growing[-1])


def test_a_theta_without_elements_goes_through_any_number_of_steps() -> None:
    phi = torch.zeros(2, dtype=F64, requires_grad=True)
    theta = torch.zeros(0, dtype=F64, requires_grad=True)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(
            lambda p, t: (p**2).sum() + t.sum(), lambda p, t: (t**2).sum() + (p * 0).sum()
        ),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
        phi=phi,
        theta=theta,
        inner_steps=1,
    )
    for _ in range(6):
        assert loop.step().solution.result is bilevel.Result.SUCCESS
