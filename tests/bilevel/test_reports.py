"""Arguments of ``implicit_grad`` and the report it gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, normal
from tests.bilevel.problems import (
    MINIMA,
    Problem,
    X,
    Y,
    quadratic,
    ridge_solution,
)

PRECISION = 1e-8


def test_batches_travel_through_outer_args_and_inner_args() -> None:
    lam = torch.tensor(0.7, dtype=torch.float64)
    theta, H = ridge_solution(lam)

    def inner(p: Tensor, t: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return ((inputs @ t - targets) ** 2).mean() / 2 + p * (t @ t) / 2

    def outer(p: Tensor, t: Tensor, inputs: Tensor) -> Tensor:
        return (inputs @ t).sum()

    held_out = normal(3, 5, seed=71)
    found = bilevel.implicit_grad(
        outer, inner, lam, theta, inner_args=(X, Y), outer_args=(held_out,)
    )
    wanted = -held_out.sum(0) @ torch.linalg.solve(H, theta)
    assert abs(float(found - wanted)) < PRECISION


@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
def test_damping_solves_the_damped_system_once(problem: Problem) -> None:
    # The mixed derivative stays; only the matrix that is inverted is moved by damping.
    damping = 0.5
    n = problem.theta.numel()
    theta = problem.theta.clone().requires_grad_()
    slope = torch.autograd.grad(problem.outer(problem.phi, theta), theta)[0]
    damped = problem.matrix + damping * torch.eye(n, dtype=torch.float64)
    _, info = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, damping=damping, return_info=True
    )
    assert error(info.adjoint, torch.linalg.solve(damped, slope)) < PRECISION


@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
def test_the_report_adds_up(problem: Problem) -> None:
    found, info = bilevel.implicit_grad(
        problem.outer,
        problem.inner,
        problem.phi,
        problem.theta,
        solver=bilevel.CG(rtol=1e-13),
        return_info=True,
    )
    theta = problem.theta.clone().requires_grad_()
    slope = torch.autograd.grad(problem.outer(problem.phi, theta), theta)[0]
    torch.testing.assert_close(info.direct + info.implicit, found)
    assert info.outer_value == float(problem.outer(problem.phi, problem.theta))
    assert error(problem.matrix @ info.adjoint, slope) < 1e-12
    assert info.stationarity < 1e-13
    assert info.solution.result is bilevel.Result.SUCCESS
    assert info.error_estimate is not None
    assert info.error_estimate < 1e-10


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_the_error_estimate_is_close_to_the_error_of_an_unfinished_solve(terms: int) -> None:
    problem = quadratic()
    found, info = bilevel.implicit_grad(
        problem.outer,
        problem.inner,
        problem.phi,
        problem.theta,
        solver=bilevel.CG(rtol=None, max_steps=terms),
        return_info=True,
    )
    actual = float((found - problem.gradient).norm())
    assert info.error_estimate is not None
    assert actual / 10 < info.error_estimate < 100 * actual


def test_what_is_printed_of_a_solve_are_its_figures() -> None:
    theta = torch.ones(300)
    info = bilevel.implicit_grad(
        lambda p, t: (t**2).sum(), lambda p, t: ((t - p) ** 2).sum(), theta, theta, return_info=True
    )[1]
    for text in (repr(info), repr(info.solution), str(info.solution.result)):
        assert "Result.SUCCESS" in text
        assert "tensor(" not in text
        assert len(text) < 500
