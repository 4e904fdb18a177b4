"""How a solve fails, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    SYMMETRIC,
    TIGHT,
    Counting,
    diagonal,
    vector,
)


def reach(result: Result) -> tuple[bilevel.LinearOperator, Tensor, bilevel.Solver]:
    """A solve that ends in a result."""
    shift = bilevel.Matrix(torch.eye(3, dtype=F64).roll(1, 0))
    return {
        Result.SUCCESS: (diagonal(1.0, 2.0), vector(1.0, 1.0), bilevel.CG()),
        Result.TRUNCATED: (diagonal(1.0, 2.0), vector(1.0, 1.0), bilevel.Neumann(2)),
        Result.BUDGET: (diagonal(1.0, 2.0, 3.0), vector(1.0, 1.0, 1.0), bilevel.CG(max_steps=2)),
        Result.STAGNATED: (shift, vector(1.0, 0.0, 0.0), bilevel.GMRES(restart=2)),
        Result.NEGATIVE_CURVATURE: (diagonal(1.0, -2.0), vector(1.0, 2.0), bilevel.CG()),
        Result.SINGULAR: (diagonal(1.0, 0.0), vector(1.0, 1.0), bilevel.MINRES()),
        Result.BREAKDOWN: (
            bilevel.Matrix(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)),
            vector(1.0, 0.0),
            bilevel.BiCGStab(),
        ),
        Result.DIVERGED: (diagonal(1.0, 2.0), vector(1.0, 1.0), bilevel.Neumann(5, step=10.0)),
    }[result]


@pytest.mark.parametrize("result", [r for r in Result if r is not Result.NON_FINITE])
def test_every_result_is_reached_and_says_what_happened(result: Result) -> None:
    operator, b, solver = reach(result)
    quiet = bilevel.solve(operator, b, solver, on_failure="ignore")
    assert quiet.result is result
    if result.ok:
        bilevel.solve(operator, b, solver, on_failure="raise")
        return
    pattern = f"{type(solver).__name__}: {result.name} after"
    with pytest.warns(bilevel.ConvergenceWarning, match=pattern) as caught:
        warned = bilevel.solve(operator, b, solver)
    assert result.message in str(caught[0].message)
    assert caught[0].filename == __file__
    torch.testing.assert_close(warned.value, quiet.value, rtol=0, atol=0)
    with pytest.raises(bilevel.SolveError, match=pattern):
        bilevel.solve(operator, b, solver, on_failure="raise")


@pytest.mark.parametrize("on_failure", ["warn", "raise", "ignore"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_always_raises(name: str, bad: float, on_failure: Any) -> None:
    A = bilevel.FunctionOperator(lambda v: bad * v, 3, symmetric=True, dtype=F64)
    with pytest.raises(bilevel.NonFiniteError, match="NaN or an infinity"):
        bilevel.solve(A, vector(1.0, 2.0, 3.0), ALL[name], on_failure=on_failure)


@pytest.mark.parametrize("name", ALL)
def test_a_single_nan_entry_raises_whether_or_not_the_answer_would_avoid_it(name: str) -> None:
    def multiply(v: Tensor) -> Tensor:
        # NaN only along the last coordinate, and only where that is not zero.
        return torch.where((torch.arange(3) == 2) & (v != 0), math.nan, 2 * v)

    A = bilevel.FunctionOperator(multiply, 3, symmetric=True, dtype=F64)
    with pytest.raises(bilevel.NonFiniteError):
        bilevel.solve(A, vector(1.0, 2.0, 3.0), ALL[name], on_failure="ignore")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_right_hand_side_that_is_not_finite_raises(name: str, bad: float) -> None:
    with pytest.raises(bilevel.NonFiniteError, match="b holds"):
        bilevel.solve(diagonal(1.0, 2.0), vector(bad, 1.0), ALL[name])


@pytest.mark.parametrize("name", sorted(set(SYMMETRIC) - {"MINRES", "MINRES Jacobi"}))
def test_an_indefinite_operator_is_named_by_solvers_for_definite_ones(name: str) -> None:
    A = bilevel.Matrix(with_spectrum(torch.linspace(-2.5, 8, 12, dtype=F64), 1))
    solver = bilevel.Chebyshev(rtol=TIGHT) if name == "Chebyshev bounds" else SYMMETRIC[name]
    found = bilevel.solve(A, normal(12, seed=2), solver, on_failure="ignore")
    assert found.result is Result.NEGATIVE_CURVATURE
    assert found.stats.smallest_curvature is not None
    assert found.stats.smallest_curvature < 0


@pytest.mark.parametrize("solver", [bilevel.Neumann(terms=2), bilevel.Neumann(terms=1)])
def test_a_truncated_neumann_series_names_an_indefinite_operator_it_has_looked_at(
    solver: bilevel.Solver,
) -> None:
    # b hardly feels the negative direction; the Lanczos steps for the step size do.
    with pytest.warns(bilevel.ConvergenceWarning, match="NEGATIVE_CURVATURE"):
        bilevel.solve(diagonal(1.0, -0.5, 3.0), vector(1.0, 1e-3, 1.0), solver)


@pytest.mark.parametrize("name", ["Exact", "MINRES", "GMRES", "BiCGStab", "Auto"])
def test_solvers_that_can_solve_indefinite_systems_do_and_report_the_curvature(name: str) -> None:
    A = with_spectrum(torch.linspace(-2.5, 8, 12, dtype=F64), 1)
    b = normal(12, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), b, ALL[name])
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-9
    if name in ("Exact", "MINRES", "Auto"):
        assert found.stats.smallest_curvature is not None
        assert found.stats.smallest_curvature < 0


SINGULAR_SOLVERS = {
    "Exact": bilevel.Exact(),
    "CG": bilevel.CG(),
    "CG Jacobi": bilevel.CG(preconditioner=bilevel.Jacobi()),
    "MINRES": bilevel.MINRES(),
    "GMRES": bilevel.GMRES(),
    "Auto": bilevel.Auto(),
    "Neumann": bilevel.Neumann(terms=500),
    "Chebyshev": bilevel.Chebyshev(),
}


@pytest.mark.parametrize("name", SINGULAR_SOLVERS)
def test_a_singular_operator_is_named(name: str) -> None:
    A = with_spectrum(vector(0.0, 0.0, 1.0, 2.0, 3.0), 5)
    with pytest.warns(bilevel.ConvergenceWarning, match="SINGULAR"):
        bilevel.solve(bilevel.Matrix(A), normal(5, seed=2), SINGULAR_SOLVERS[name])


@pytest.mark.parametrize("name", SINGULAR_SOLVERS | {"Nystrom": bilevel.Nystrom(3)})
def test_the_zero_operator_is_named(name: str) -> None:
    solver = (SINGULAR_SOLVERS | {"Nystrom": bilevel.Nystrom(3)})[name]
    with pytest.warns(bilevel.ConvergenceWarning, match="SINGULAR"):
        found = bilevel.solve(diagonal(0.0, 0.0, 0.0), vector(1.0, 2.0, 3.0), solver)
    assert bool((found.value == 0).all())


@pytest.mark.parametrize("name", SINGULAR_SOLVERS)
def test_a_singular_operator_whose_range_holds_b_is_solved(name: str) -> None:
    A = with_spectrum(vector(0.0, 0.0, 1.0, 2.0, 3.0), 5)
    b = A @ normal(5, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), b, SINGULAR_SOLVERS[name])
    assert found.result.ok
    assert error(A @ found.value, b) < 1e-7


@pytest.mark.parametrize("name", ["Exact", "MINRES", "GMRES"])
def test_a_singular_system_without_solution_gets_its_least_residual(name: str) -> None:
    A, b = with_spectrum(vector(0.0, 0.0, 1.0, 2.0, 3.0), 5), normal(5, seed=2)
    best = b - A @ (torch.linalg.pinv(A) @ b)
    found = bilevel.solve(bilevel.Matrix(A), b, SINGULAR_SOLVERS[name], on_failure="ignore")
    assert error(b - A @ found.value, best) < 1e-6


def test_exact_solves_a_singular_system_with_the_least_norm() -> None:
    found = bilevel.solve(
        diagonal(0.0, 2.0), vector(1.0, 2.0), bilevel.Exact(), on_failure="ignore"
    )
    torch.testing.assert_close(found.value, vector(0.0, 1.0))


@pytest.mark.parametrize("name", ALL)
def test_a_zero_right_hand_side_has_a_zero_answer_at_no_product(name: str) -> None:
    counting = Counting(spd(5, 1))
    found = bilevel.solve(counting.operator, torch.zeros(5, dtype=F64), ALL[name])
    assert bool((found.value == 0).all())
    assert found.result is Result.SUCCESS
    assert counting.calls == found.stats.products == 0
    assert (found.stats.residual, found.stats.relative_residual) == (0.0, 0.0)


DIVERGING: list[Callable[[], bilevel.Solver]] = [
    lambda: bilevel.Neumann(terms=5, step=10.0),
    lambda: bilevel.Neumann(terms=5000, step=10.0),
    lambda: bilevel.Neumann(terms=5000, step=10.0, rtol=1e-6),
    lambda: bilevel.Chebyshev(lower=0.1, upper=0.5),
    lambda: bilevel.Chebyshev(lower=0.1, upper=0.5, max_steps=20),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", DIVERGING)
def test_divergence_is_called_divergence_however_far_it_goes(
    make: Callable[[], bilevel.Solver], dtype: torch.dtype
) -> None:
    A = bilevel.Diagonal(vector(1.0, 2.0).to(dtype))
    with pytest.warns(bilevel.ConvergenceWarning, match="DIVERGED"):
        bilevel.solve(A, vector(1.0, 1.0).to(dtype), make())


def test_a_step_scaled_too_far_is_called_divergence() -> None:
    with pytest.warns(bilevel.ConvergenceWarning, match="ScaledIdentity, lower the scale"):
        bilevel.solve(diagonal(1.0, 2.0), vector(1.0, 1.0), bilevel.ScaledIdentity(10.0))


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES])
def test_a_preconditioner_that_is_not_positive_definite_is_named(solver: Any) -> None:
    with pytest.warns(bilevel.ConvergenceWarning, match=r"BREAKDOWN(.|\n)*preconditioner"):
        bilevel.solve(diagonal(1.0, 2.0), vector(1.0, 1.0), solver(preconditioner=torch.neg))


def test_a_preconditioner_that_changes_the_shape_is_named() -> None:
    with pytest.raises(bilevel.InputError, match="preconditioner returned"):
        bilevel.solve(
            diagonal(1.0, 2.0), vector(1.0, 1.0), bilevel.CG(preconditioner=lambda r: r[:1])
        )


def test_a_matrix_too_large_to_factor_says_how_large() -> None:
    with pytest.raises(bilevel.InputError, match=r"20 x 20.* max_size is 10"):
        bilevel.solve(bilevel.Identity(20), torch.ones(20), bilevel.Exact(max_size=10))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_solvers_for_symmetric_operators_refuse_others(name: str) -> None:
    A = bilevel.Matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=F64))
    with pytest.raises(bilevel.InputError, match="symmetric"):
        bilevel.solve(A, vector(1.0, 1.0), SYMMETRIC[name])


def test_a_residual_that_rises_on_the_way_of_cg_is_no_divergence() -> None:
    operator, b = diagonal(1.0, 1000.0), vector(1.0, 0.1)
    found = bilevel.solve(operator, b, bilevel.CG(rtol=None, max_steps=1))
    assert found.result is Result.TRUNCATED
    assert found.stats.relative_residual > 5
    # The error is smaller than that of a zero solution, in the norm that CG minimises.
    error = found.value - vector(1.0, 1e-4)
    assert float(error @ (operator @ error)) < float(vector(1.0, 1e-4) @ b)


def test_a_fixed_series_says_nothing_of_a_right_hand_side_of_zeros() -> None:
    columns = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    found = bilevel.solve(diagonal(0.5, 1.0), columns, bilevel.Neumann(20, step=1.0))
    assert found.result is Result.TRUNCATED


def test_a_series_that_is_lost_never_multiplies_what_is_not_finite() -> None:
    seen: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        seen.append(vector)
        return 1e3 * vector

    A = bilevel.FunctionOperator(product, 2, symmetric=True, dtype=F64)
    with pytest.warns(bilevel.ConvergenceWarning, match="DIVERGED"):
        bilevel.solve(A, vector(1.0, 2.0), bilevel.Neumann(500, step=1.0))
    assert all(bool(one.isfinite().all()) for one in seen)
