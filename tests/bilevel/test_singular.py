"""Singular operators, and those that only look it: what MINRES makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import MINRES, Result
from tests.bilevel.arrays import error, normal, orthogonal
from tests.bilevel.systems import F64

N = 200
EIGENVALUES: dict[str, Tensor] = {
    "one zero": torch.linspace(1, 100, N - 1, dtype=F64),
    "a gap": torch.linspace(1, 2, N - 40, dtype=F64),
    "spread": torch.logspace(-2, 0, N - 5, dtype=F64),
    "one level": torch.ones(N - 50, dtype=F64),
    "both signs": torch.linspace(1, 3, N - 40, dtype=F64) * torch.tensor([1.0, -1.0]).repeat(80),
}
ROUNDING = {torch.float32: 1e-2, F64: 1e-5}

every_precision = pytest.mark.parametrize("dtype", ROUNDING)
every_spectrum = pytest.mark.parametrize("name", EIGENVALUES)


def problem(nonzero: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix with these eigenvalues and zeros, b, a basis of its range, and ``pinv(A) b``."""
    basis, b = orthogonal(N, 3)[:, : nonzero.numel()], normal(N, seed=4)
    matrix = basis * nonzero @ basis.T
    solution = basis @ ((basis.T @ b) / nonzero)
    return ((matrix + matrix.T) / 2).to(dtype), b.to(dtype), basis, solution


@every_precision
@every_spectrum
def test_minres_ends_at_a_least_squares_solution_of_a_singular_operator_and_says_so(
    name: str, dtype: torch.dtype
) -> None:
    matrix, b, basis, solution = problem(EIGENVALUES[name], dtype)
    with pytest.warns(bilevel.ConvergenceWarning, match="SINGULAR"):
        found = bilevel.solve(bilevel.Matrix(matrix, symmetric=True), b, MINRES())
    out_of_range = b.double() - basis @ (basis.T @ b.double())
    assert found.stats.residual == pytest.approx(float(out_of_range.norm()), rel=1e-3)
    assert error(basis @ (basis.T @ found.value.double()), solution) < ROUNDING[dtype]


@every_precision
@every_spectrum
def test_a_right_hand_side_in_the_range_of_a_singular_operator_is_solved(
    name: str, dtype: torch.dtype
) -> None:
    matrix, _, basis, _ = problem(EIGENVALUES[name], dtype)
    wanted = basis @ normal(basis.shape[1], seed=5)
    b = (matrix.double() @ wanted).to(dtype)
    found = bilevel.solve(bilevel.Matrix(matrix, symmetric=True), b, MINRES())
    assert found.result is Result.SUCCESS
    assert error(basis @ (basis.T @ found.value.double()), wanted) < 1e-2


@pytest.mark.parametrize(("small", "dtype"), [(1e-4, torch.float32), (1e-9, F64), (1e-12, F64)])
def test_minres_goes_on_where_a_tiny_eigenvalue_makes_a_first_step_look_like_the_last(
    small: float, dtype: torch.dtype
) -> None:
    basis = orthogonal(N, 3)
    values = torch.cat([torch.full((50,), small, dtype=F64), torch.ones(N - 50, dtype=F64)])
    matrix, b = (basis * values) @ basis.T, normal(N, seed=4)
    operator = bilevel.Matrix(((matrix + matrix.T) / 2).to(dtype), symmetric=True)
    found = bilevel.solve(operator, b.to(dtype), MINRES(), on_failure="ignore")
    assert found.result is not Result.SINGULAR
    assert error(found.value, basis @ ((basis.T @ b) / values)) < 1e-2


def test_the_multipliers_of_a_constrained_problem_are_no_sign_of_a_singular_operator() -> None:
    # The first curvature is zero, and so is that of every multiplier.
    constraints = normal(40, N - 40, seed=6)
    matrix = torch.zeros(N, N, dtype=F64)
    matrix[: N - 40, : N - 40] = torch.diag(torch.linspace(1, 5, N - 40, dtype=F64))
    matrix[N - 40 :, : N - 40], matrix[: N - 40, N - 40 :] = constraints, constraints.T
    b = torch.zeros(N, dtype=F64)
    b[N - 40 :] = 1.0
    found = bilevel.solve(bilevel.Matrix(matrix, symmetric=True), b, MINRES())
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(matrix, b)) < 1e-6


@every_precision
def test_each_right_hand_side_is_told_apart_and_a_preconditioner_changes_none(
    dtype: torch.dtype,
) -> None:
    matrix, b, basis, solution = problem(EIGENVALUES["a gap"], dtype)
    columns = torch.stack([b, (basis @ (basis.T @ b.double())).to(dtype)], dim=1)
    operator = bilevel.Matrix(matrix, symmetric=True)
    for solver in (MINRES(), MINRES(preconditioner=lambda r: 3 * r)):
        found = bilevel.solve(operator, columns, solver, on_failure="ignore")
        results = [column.result for column in found.stats.columns]
        assert results == [Result.SINGULAR, Result.SUCCESS]
        for value in found.value.double().unbind(1):
            assert error(basis @ (basis.T @ value), solution) < ROUNDING[dtype]


@every_precision
def test_the_hypergradient_of_overparametrised_least_squares_is_right_and_warned_of(
    dtype: torch.dtype,
) -> None:
    X, y = normal(N // 2, N, seed=7).to(dtype), normal(N // 2, seed=8).to(dtype)
    inverse = torch.linalg.pinv(X.double())
    theta = inverse @ y.double()
    with pytest.warns(bilevel.ConvergenceWarning, match="SINGULAR"):
        found = bilevel.implicit_grad(
            lambda p, t: ((t - 1) ** 2).mean(),
            lambda p, t: ((X @ t - y - p) ** 2).mean(),
            torch.zeros((), dtype=dtype),
            theta.to(dtype),
            solver=MINRES(),
        )
    # Moving p by one moves the least-norm theta by pinv(X) 1.
    wanted = 2 / N * (theta - 1) @ inverse.sum(1)
    torch.testing.assert_close(found.double(), wanted, rtol=ROUNDING[dtype], atol=0)


def test_a_row_that_saw_no_curvature_reports_none() -> None:
    b = normal(N, 3, seed=9)
    b[:, 1] = 0
    operator = bilevel.Diagonal(torch.linspace(1, 3, N, dtype=F64))
    found = bilevel.solve(operator, b, MINRES())
    assert found.stats.columns[1].smallest_curvature is None
    assert found.stats.smallest_curvature == pytest.approx(1, rel=0.1)


def test_each_right_hand_side_of_auto_reports_the_curvature_it_saw_itself() -> None:
    values = torch.linspace(1, 3, N // 2, dtype=F64)
    b = torch.block_diag(torch.ones(N // 2, 1), torch.ones(N // 2, 1)).to(F64)
    found = bilevel.solve(bilevel.Diagonal(torch.cat([values, -values])), b)
    positive, negative = (column.smallest_curvature for column in found.stats.columns)
    assert positive is not None
    assert negative is not None
    assert 1 <= positive <= 3
    assert -3 <= negative <= -1


SCALES = [1e-30, 1e-20, 1e20, 1e30]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "solver",
    [MINRES(), MINRES(preconditioner=bilevel.Jacobi()), bilevel.GMRES(), bilevel.BiCGStab()],
    ids=["MINRES", "MINRES Jacobi", "GMRES", "BiCGStab"],
)
@pytest.mark.parametrize("columns", [1, 3])
def test_operators_near_the_ends_of_single_precision_are_solved_like_any_other(
    solver: bilevel.Solver, scale: float, columns: int
) -> None:
    values = torch.linspace(1, 2, N)
    b = normal(N, columns, seed=10).float()
    found = bilevel.solve(bilevel.Diagonal(values * scale), b, solver)
    assert found.result is Result.SUCCESS
    torch.testing.assert_close(found.value * scale, b / values.unsqueeze(1), rtol=0, atol=1e-3)
    if isinstance(solver, MINRES) and solver.preconditioner is None:
        assert found.stats.ritz is not None
        assert found.stats.ritz[1] == pytest.approx(2 * scale, rel=0.05)
    if getattr(solver, "preconditioner", None) is None:
        assert found.stats.smallest_curvature is not None
        assert 0.99 * scale < found.stats.smallest_curvature < 1.5 * scale


@every_precision
@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("signs", [1.0, -1.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0])
def test_a_right_hand_side_that_is_taken_to_rounding_gets_no_answer_worse_than_zero(
    n: int, signs: float, scale: float, dtype: torch.dtype
) -> None:
    values = torch.logspace(0, 2, n, dtype=F64)
    values[::2] *= signs
    values[:3] = 0
    basis = orthogonal(n, 3)
    matrix = (basis * values) @ basis.T * scale
    # A product with b is rounding, and the first to show how large others are is the second.
    b = (basis[:, :3] @ normal(3, seed=4)).to(dtype)
    operator = bilevel.Matrix(((matrix + matrix.T) / 2).to(dtype), symmetric=True)
    wanted = {
        MINRES(): Result.SINGULAR,
        MINRES(rtol=None, max_steps=20): Result.SINGULAR,
        MINRES(preconditioner=lambda r: 3 * r): Result.SINGULAR,
        bilevel.Auto(): Result.SINGULAR,
        bilevel.BiCGStab(): Result.BREAKDOWN,
    }
    for solver, result in wanted.items():
        found = bilevel.solve(operator, b, solver, on_failure="ignore")
        assert found.result is result, solver
        assert found.stats.relative_residual <= 1.01, solver
        assert float(found.value.norm()) < 0.1 / scale, solver
    columns = torch.stack([b, (matrix @ normal(n, seed=5)).to(dtype) / scale], dim=1)
    found = bilevel.solve(operator, columns, MINRES(max_steps=2000), on_failure="ignore")
    assert [column.result for column in found.stats.columns] == [Result.SINGULAR, Result.SUCCESS]


def test_an_answer_of_bicgstab_that_leaves_more_than_zero_is_zero_and_called_divergence() -> None:
    operator, b = bilevel.Matrix(normal(30, 30, seed=1)), normal(30, seed=2)
    with pytest.warns(bilevel.ConvergenceWarning, match="DIVERGED"):
        found = bilevel.solve(operator, b, bilevel.BiCGStab(max_steps=4))
    assert bool((found.value == 0).all())
    assert found.stats.relative_residual == 1


def test_minres_solves_what_is_tiny_in_all_directions() -> None:
    values = torch.linspace(1e-20, 2e-20, N, dtype=F64)
    found = bilevel.solve(bilevel.Diagonal(values), values[:1].new_ones(N), MINRES())
    torch.testing.assert_close(found.value * values, torch.ones(N, dtype=F64))
