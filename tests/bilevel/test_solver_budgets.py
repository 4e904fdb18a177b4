"""Tolerances, budgets and warm starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.systems import (
    ALL,
    F64,
    ITERATIVE,
    TIGHT,
    diagonal,
    vector,
)


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_reported_residual_is_the_true_one_and_meets_the_tolerance(name: str) -> None:
    A, b = spd(12, 1), normal(12, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), b, ALL[name])
    true = float((b - A @ found.value).norm())
    assert found.result is Result.SUCCESS
    assert abs(found.stats.residual - true) <= 1e-14 * float(b.norm())
    assert true <= 1.01 * TIGHT * float(b.norm())
    assert found.stats.relative_residual == pytest.approx(found.stats.residual / float(b.norm()))


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab])
def test_an_absolute_tolerance_alone_stops_the_solve(solver: Any) -> None:
    A, b = bilevel.Matrix(spd(20, 4)), normal(20, seed=5)
    loose = bilevel.solve(A, b, solver(rtol=None, atol=1e-2))
    assert loose.result is Result.SUCCESS
    assert 1e-5 < loose.stats.residual <= 1.01e-2
    nothing = bilevel.solve(A, 1e-3 * b / b.norm(), solver(rtol=None, atol=1e-2))
    assert nothing.stats.iterations == 0
    assert bool((nothing.value == 0).all())


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES])
def test_arriving_at_the_last_step_allowed_is_success_and_one_step_less_is_not(solver: Any) -> None:
    A = bilevel.Matrix(with_spectrum(torch.linspace(1, 4, 6, dtype=F64), 2))
    b = normal(6, seed=3)
    assert bilevel.solve(A, b, solver(max_steps=6)).result is Result.SUCCESS
    with pytest.warns(bilevel.ConvergenceWarning, match="BUDGET after 5 step"):
        assert bilevel.solve(A, b, solver(max_steps=5)).result is Result.BUDGET


@pytest.mark.parametrize("name", ["CG", "CG Jacobi", "MINRES", "GMRES", "BiCGStab", "Chebyshev"])
@pytest.mark.parametrize("budget", [1, 2, 7, 40])
def test_no_solver_takes_more_steps_than_it_was_allowed(name: str, budget: int) -> None:
    # So ill-conditioned that the recurrence arrives before the true residual does.
    A = bilevel.Matrix(with_spectrum(torch.logspace(0, 9, 30, dtype=F64), 2))
    solver = type(ALL[name])(rtol=1e-15, max_steps=budget)  # type: ignore[call-arg]
    found = bilevel.solve(A, normal(30, seed=3), solver, on_failure="ignore")
    assert found.stats.iterations <= budget


def test_no_tolerance_asks_for_the_whole_budget_and_warns_of_nothing() -> None:
    A, b = bilevel.Matrix(spd(20, 4)), normal(20, seed=5)
    for solver in (bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab, bilevel.Chebyshev):
        found = bilevel.solve(A, b, solver(rtol=None, max_steps=3))
        assert found.result is Result.TRUNCATED
        assert found.result.ok
        assert found.stats.iterations == 3


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab])
def test_a_budget_far_beyond_convergence_does_no_harm(solver: Any) -> None:
    A, b = spd(6, 4), normal(6, seed=5)
    found = bilevel.solve(bilevel.Matrix(A), b, solver(rtol=None, max_steps=300))
    assert found.result.ok
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-13


@pytest.mark.parametrize("name", ["CG", "MINRES", "GMRES", "BiCGStab", "Chebyshev", "Neumann"])
def test_the_default_tolerance_in_float32_is_met_in_float32(name: str) -> None:
    A, b = spd(20, 4).float(), normal(20, seed=5).float()
    solver = bilevel.Neumann(500, rtol="auto") if name == "Neumann" else type(ALL[name])()
    found = bilevel.solve(bilevel.Matrix(A), b, solver)
    assert found.value.dtype == torch.float32
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A.double(), b.double())) < 3e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(set(ALL) - {"Neumann fixed step"}))
def test_half_precision_is_solved_to_its_few_digits(name: str, dtype: torch.dtype) -> None:
    wanted = vector(1.0, 2.0, -1.0)
    A = bilevel.Diagonal(vector(1.0, 2.0, 4.0).to(dtype))
    solver = ALL[name]
    if "Chebyshev" in name:
        solver = bilevel.Chebyshev(lower=1.0, upper=4.0)
    found = bilevel.solve(
        A, (wanted * vector(1.0, 2.0, 4.0)).to(dtype), solver, on_failure="ignore"
    )
    assert found.value.dtype == dtype
    assert error(found.value, wanted) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", sorted(set(ITERATIVE) - {"Neumann fixed step", "Neumann"}))
def test_starting_at_the_answer_takes_no_step(name: str) -> None:
    A, b = spd(12, 1), normal(12, seed=2)
    answer = torch.linalg.solve(A, b)
    solver = ALL[name].limited(50)
    found = bilevel.solve(bilevel.Matrix(A), b, solver, initial=answer)
    assert found.stats.iterations == 0
    assert found.result is Result.SUCCESS
    torch.testing.assert_close(found.value, answer)


@pytest.mark.parametrize("name", ALL)
def test_a_warm_start_changes_no_answer(name: str) -> None:
    A, b = spd(12, 1), normal(12, seed=2)
    answer = torch.linalg.solve(A, b)
    near = answer + 1e-3 * normal(12, seed=3)
    found = bilevel.solve(bilevel.Matrix(A), b, ALL[name], initial=near)
    assert error(found.value, answer) < 1e-11


def test_a_near_start_needs_fewer_steps_than_none() -> None:
    A, b = bilevel.Matrix(with_spectrum(torch.logspace(0, 3, 60, dtype=F64), 1)), normal(60, seed=2)
    cold = bilevel.solve(A, b, bilevel.CG(rtol=1e-8))
    warm = bilevel.solve(A, b, bilevel.CG(rtol=1e-8), initial=cold.value * 1.0001)
    assert warm.stats.iterations < cold.stats.iterations


@pytest.mark.parametrize("size", [1e3, 1e300])
def test_a_start_worse_than_zero_is_not_used(size: float) -> None:
    A, b = bilevel.Matrix(spd(12, 1)), normal(12, seed=2)
    cold = bilevel.solve(A, b, bilevel.CG(rtol=None, max_steps=4))
    started = bilevel.solve(
        A, b, bilevel.CG(rtol=None, max_steps=4), initial=size * torch.ones(12, dtype=F64)
    )
    torch.testing.assert_close(started.value, cold.value, rtol=0, atol=0)


def test_a_finite_start_far_larger_than_b_is_called_neither_nan_nor_infinite() -> None:
    found = bilevel.solve(
        diagonal(1.0, 2.0), vector(1e-300, 2e-300), bilevel.CG(), initial=vector(1e300, 1.0)
    )
    torch.testing.assert_close(found.value * 1e300, vector(1.0, 1.0))


def test_columns_take_or_leave_their_own_start() -> None:
    A, b = spd(12, 1), normal(12, 2, seed=2)
    answer = torch.linalg.solve(A, b)
    start = torch.stack([answer[:, 0], 1e6 * torch.ones(12, dtype=F64)], dim=1)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=1e-12), initial=start)
    assert found.stats.columns[0].iterations == 0
    assert found.stats.columns[1].iterations > 0
    assert error(found.value, answer) < 1e-11


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (vector(1.0), bilevel.InputError),
        (torch.ones(2, 3, dtype=F64), bilevel.InputError),
        (torch.ones(2), bilevel.InputError),
        (vector(math.nan, 1.0), bilevel.NonFiniteError),
        (vector(math.inf, 1.0), bilevel.NonFiniteError),
    ],
)
def test_a_start_that_does_not_fit_is_named(start: Tensor, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="initial"):
        bilevel.solve(diagonal(1.0, 2.0), vector(1.0, 2.0), initial=start)
