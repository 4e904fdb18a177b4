"""What each solver promises: its iterates, its figures, its state, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import Result
from tests.bilevel.problems import TIGHT, error, normal, orthogonal, spd, with_spectrum

F64 = torch.float64


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def diagonal(*numbers: float) -> bilevel.LinearOperator:
    return bilevel.Diagonal(vector(*numbers))


class Counting:
    """An operator given by a function that counts its calls."""

    def __init__(self, matrix: Tensor, symmetric: bool = True) -> None:
        self.calls = 0
        self.matrix = matrix
        self.operator = bilevel.FunctionOperator(
            self._multiply, matrix.shape[0], symmetric=symmetric, dtype=matrix.dtype
        )

    def _multiply(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.matrix @ v


SYMMETRIC: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=TIGHT),
    "CG Jacobi": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "CG Jacobi probed": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.Jacobi(probes=3)),
    "CG Nystrom": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.NystromPreconditioner(4)),
    "CG callable": bilevel.CG(rtol=TIGHT, preconditioner=lambda r: 3 * r),
    "MINRES": bilevel.MINRES(rtol=TIGHT),
    "MINRES Jacobi": bilevel.MINRES(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "Chebyshev": bilevel.Chebyshev(rtol=TIGHT),
    "Chebyshev bounds": bilevel.Chebyshev(rtol=TIGHT, lower=1.0, upper=8.0),
    "Neumann": bilevel.Neumann(terms=2000, rtol=TIGHT),
    "Nystrom": bilevel.Nystrom(rank=40),
}
GENERAL: dict[str, bilevel.Solver] = {
    "Exact": bilevel.Exact(),
    "GMRES": bilevel.GMRES(rtol=TIGHT),
    "GMRES restarted": bilevel.GMRES(rtol=TIGHT, restart=8, max_steps=400),
    "GMRES Jacobi": bilevel.GMRES(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "BiCGStab": bilevel.BiCGStab(rtol=TIGHT),
    "BiCGStab Jacobi": bilevel.BiCGStab(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "Neumann fixed step": bilevel.Neumann(terms=2000, step=0.2, rtol=TIGHT),
    "Auto": bilevel.Auto(rtol=TIGHT),
}
ALL = SYMMETRIC | GENERAL
ITERATIVE = {name: s for name, s in ALL.items() if name not in ("Exact", "Auto", "Nystrom")}


# --- several right-hand sides, batches ---------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_columns_are_solved_as_if_each_were_alone(name: str) -> None:
    A = bilevel.Matrix(spd(12, 1))
    eigenvector = torch.linalg.eigh(spd(12, 1)).eigenvectors[:, 3]
    b = torch.stack([eigenvector, normal(12, seed=2), torch.zeros(12, dtype=F64)], dim=1)
    b = torch.cat([b, 1e-9 * normal(12, 1, seed=3)], dim=1)
    together = bilevel.solve(A, b, ALL[name])
    assert together.value.shape == b.shape
    assert len(together.stats.columns) == 4
    for index, column in enumerate(b.T):
        alone = bilevel.solve(A, column, ALL[name])
        assert error(together.value[:, index] + 1, alone.value + 1) < 1e-12
        if index != 2:
            assert error(together.value[:, index], torch.linalg.solve(spd(12, 1), column)) < 1e-11
    assert bool((together.value[:, 2] == 0).all())


@pytest.mark.parametrize("name", ["CG", "MINRES", "BiCGStab", "Neumann fixed step"])
def test_each_column_counts_its_own_iterations(name: str) -> None:
    A = bilevel.Matrix(with_spectrum(torch.linspace(1, 8, 12, dtype=F64), 1))
    eigenvector = torch.linalg.eigh(A.to_dense()).eigenvectors[:, 3]
    b = torch.stack([eigenvector, normal(12, seed=2), torch.zeros(12, dtype=F64)], dim=1)
    columns = bilevel.solve(A, b, ALL[name]).stats.columns
    alone = [bilevel.solve(A, column, ALL[name]).stats.iterations for column in b.T]
    assert [column.iterations for column in columns] == alone
    assert alone[0] < alone[1]
    assert alone[2] == 0


def test_one_column_that_fails_leaves_the_others_solved() -> None:
    A = diagonal(-1.0, 2.0, 3.0)
    b = torch.eye(3, dtype=F64)
    with pytest.warns(bilevel.ConvergenceWarning, match=r"concerned: \[0\]"):
        solution = bilevel.solve(A, b, bilevel.CG())
    results = [column.result for column in solution.stats.columns]
    assert results == [Result.NEGATIVE_CURVATURE, Result.SUCCESS, Result.SUCCESS]
    assert solution.result is Result.NEGATIVE_CURVATURE
    torch.testing.assert_close(solution.value[:, 1:], (b / vector(-1, 2, 3)[:, None])[:, 1:])


@pytest.mark.parametrize("name", sorted(set(ALL) - {"Nystrom", "CG Nystrom"}))
def test_a_batch_of_matrices_takes_one_right_hand_side_each(name: str) -> None:
    matrices = torch.stack([spd(8, seed) for seed in range(5)])
    b = normal(8, 5, seed=9)
    solution = bilevel.solve(bilevel.Matrix(matrices), b, ALL[name])
    wanted = torch.linalg.solve(matrices, b.T.unsqueeze(-1)).squeeze(-1).T
    assert error(solution.value, wanted) < 1e-11


def test_a_batch_of_matrices_that_are_not_symmetric_is_solved() -> None:
    matrices = torch.stack([spd(8, s) + normal(8, 8, seed=s) / 3 for s in range(5)])
    b = normal(8, 5, seed=9)
    wanted = torch.linalg.solve(matrices, b.T.unsqueeze(-1)).squeeze(-1).T
    for name in ("Exact", "GMRES", "GMRES restarted", "BiCGStab", "Auto"):
        found = bilevel.solve(bilevel.Matrix(matrices), b, ALL[name]).value
        assert error(found, wanted) < 1e-11


@pytest.mark.parametrize("solver", [bilevel.Nystrom(2), ALL["CG Nystrom"]])
def test_a_low_rank_picture_refuses_a_batch(solver: bilevel.Solver) -> None:
    A = bilevel.Matrix(torch.eye(3, dtype=F64).expand(2, 3, 3))
    with pytest.raises(bilevel.InputError, match="one matrix at a time"):
        bilevel.solve(A, torch.ones(3, 2, dtype=F64), solver)


def test_a_batch_refuses_another_number_of_right_hand_sides() -> None:
    A = bilevel.Matrix(torch.eye(3, dtype=F64).expand(2, 3, 3))
    with pytest.raises(bilevel.InputError, match="1 right-hand sides for a batch of 2"):
        bilevel.solve(A, torch.ones(3, dtype=F64))


def test_no_columns_and_no_rows_are_solved_by_nothing() -> None:
    assert bilevel.solve(diagonal(1.0, 2.0), torch.zeros(2, 0, dtype=F64)).value.shape == (2, 0)
    empty = bilevel.solve(bilevel.Identity(0), torch.zeros(0))
    assert empty.value.shape == (0,)
    assert empty.result is Result.SUCCESS


# --- the iterates are the ones the method defines ----------------------------------------------


def krylov(A: Tensor, b: Tensor, steps: int) -> Tensor:
    """An orthonormal basis of the Krylov space, ``[n, steps]``."""
    basis = [b / b.norm()]
    for _ in range(steps - 1):
        w = A @ basis[-1]
        for _ in range(2):
            for v in basis:
                w = w - (v @ w) * v
        basis.append(w / w.norm())
    return torch.stack(basis, dim=1)


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_cg_minimises_the_energy_norm_over_the_krylov_space(steps: int) -> None:
    A, b = spd(20, 4), normal(20, seed=5)
    V = krylov(A, b, steps)
    wanted = V @ torch.linalg.solve(V.T @ A @ V, V.T @ b)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=None, max_steps=steps))
    assert error(found.value, wanted) < 1e-12
    assert found.result is Result.TRUNCATED
    assert found.stats.iterations == steps


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("solver", [bilevel.MINRES, bilevel.GMRES])
@pytest.mark.parametrize("low", [1.0, -5.0], ids=["definite", "indefinite"])
def test_minres_and_gmres_minimise_the_residual_over_the_krylov_space(
    solver: type[bilevel.MINRES] | type[bilevel.GMRES], steps: int, low: float
) -> None:
    A, b = with_spectrum(torch.linspace(low, 8, 20, dtype=F64), 4), normal(20, seed=5)
    V = krylov(A, b, steps)
    wanted = V @ torch.linalg.lstsq(A @ V, b.unsqueeze(1)).solution.squeeze(1)
    found = bilevel.solve(bilevel.Matrix(A), b, solver(rtol=None, max_steps=steps))
    assert error(found.value, wanted) < 1e-10
    assert found.stats.iterations == steps


def test_gmres_minimises_the_residual_of_a_general_matrix() -> None:
    A, b = normal(20, 20, seed=6), normal(20, seed=5)
    V = krylov(A, b, 7)
    wanted = V @ torch.linalg.lstsq(A @ V, b.unsqueeze(1)).solution.squeeze(1)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.GMRES(rtol=None, max_steps=7))
    assert error(found.value, wanted) < 1e-10


@pytest.mark.parametrize("steps", [1, 3, 10, 30])
def test_chebyshev_stays_within_its_error_bound(steps: int) -> None:
    A, b = spd(20, 4), normal(20, seed=5)
    solver = bilevel.Chebyshev(rtol=None, max_steps=steps, lower=1.0, upper=8.0)
    found = bilevel.solve(bilevel.Matrix(A), b, solver)
    rate = (math.sqrt(8) - 1) / (math.sqrt(8) + 1)
    assert found.stats.relative_residual <= 2 * rate**steps * 1.0001
    assert found.stats.iterations == steps


def test_chebyshev_with_equal_bounds_solves_a_multiple_of_the_identity_in_one_step() -> None:
    found = bilevel.solve(
        diagonal(3.0, 3.0), vector(1.0, 2.0), bilevel.Chebyshev(lower=3.0, upper=3.0)
    )
    assert found.result is Result.SUCCESS
    assert found.stats.iterations == 1
    torch.testing.assert_close(found.value, vector(1.0, 2.0) / 3)


def test_chebyshev_with_a_lower_bound_too_large_still_converges() -> None:
    solver = bilevel.Chebyshev(lower=4.0, upper=8.0, rtol=1e-10)
    found = bilevel.solve(bilevel.Matrix(spd(20, 4)), normal(20, seed=5), solver)
    assert found.result is Result.SUCCESS


def test_chebyshev_solves_a_singular_operator_whose_range_holds_b() -> None:
    found = bilevel.solve(diagonal(0.0, 1.0, 2.0), vector(0.0, 1.0, 1.0), bilevel.Chebyshev())
    assert found.result is Result.SUCCESS
    torch.testing.assert_close(found.value, vector(0.0, 1.0, 0.5), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("terms", [1, 2, 7, 50])
def test_neumann_takes_exactly_its_terms_and_reports_the_true_residual(terms: int) -> None:
    counting = Counting(spd(10, 6))
    b = normal(10, seed=7)
    found = bilevel.solve(counting.operator, b, bilevel.Neumann(terms=terms, step=0.1))
    residual = b - counting.matrix @ found.value
    shrink = torch.eye(10, dtype=F64) - 0.1 * counting.matrix
    assert error(residual, torch.linalg.matrix_power(shrink, terms) @ b) < 1e-11
    assert found.stats.residual == pytest.approx(float(residual.norm()), rel=1e-10)
    assert (found.stats.iterations, found.stats.products, counting.calls) == (terms,) * 3
    assert found.result is Result.TRUNCATED


def test_nystrom_inverts_low_rank_plus_a_multiple_of_the_identity() -> None:
    factor, rho = normal(30, 4, seed=8), 0.01
    A = factor @ factor.T + rho * torch.eye(30, dtype=F64)
    b = normal(30, seed=9)
    # Four directions and the level of the rest: the fifth eigenvalue kept is the level itself.
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Nystrom(rank=5))
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-8
    given = bilevel.solve(bilevel.Matrix(A), b, bilevel.Nystrom(rank=5, rho=rho))
    assert error(given.value, torch.linalg.solve(A, b)) < 1e-8


def test_scaled_identity_multiplies_by_its_scale_and_reports_the_residual() -> None:
    found = bilevel.solve(diagonal(1.0, 2.0), vector(3.0, 4.0), bilevel.ScaledIdentity(0.25))
    torch.testing.assert_close(found.value, vector(0.75, 1.0))
    assert found.stats.residual == pytest.approx(math.hypot(3 - 0.75, 4 - 2.0))
    assert found.result is Result.TRUNCATED


@pytest.mark.parametrize("restart", [1, 3, 10])
def test_restarted_gmres_converges_on_a_definite_operator(restart: int) -> None:
    A = spd(20, 4) + 0.5 * (normal(20, 20, seed=6) - normal(20, 20, seed=6).T)
    b = normal(20, seed=5)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.GMRES(restart=restart, max_steps=500))
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-8


def test_gmres_that_restarts_too_early_on_a_cyclic_shift_says_it_stagnated() -> None:
    # The residual of a shift does not move before step n: no progress at all before that.
    A = bilevel.Matrix(torch.eye(6, dtype=F64).roll(1, 0))
    b = vector(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with pytest.warns(bilevel.ConvergenceWarning, match="STAGNATED"):
        bilevel.solve(A, b, bilevel.GMRES(restart=3, max_steps=100))
    assert bilevel.solve(A, b, bilevel.GMRES(restart=6)).result is Result.SUCCESS


# --- tolerances and budgets --------------------------------------------------------------------


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


# --- warm start --------------------------------------------------------------------------------


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


# --- state -------------------------------------------------------------------------------------

STATEFUL: dict[str, tuple[bilevel.Solver, int]] = {
    "Exact": (bilevel.Exact(), 12),
    "CG Jacobi": (bilevel.CG(preconditioner=bilevel.Jacobi()), 12),
    "CG Jacobi probed": (bilevel.CG(preconditioner=bilevel.Jacobi(probes=5)), 5),
    "CG Nystrom": (bilevel.CG(preconditioner=bilevel.NystromPreconditioner(7)), 7),
    "MINRES Jacobi": (bilevel.MINRES(preconditioner=bilevel.Jacobi()), 12),
    "GMRES Jacobi": (bilevel.GMRES(preconditioner=bilevel.Jacobi()), 12),
    "BiCGStab Jacobi": (bilevel.BiCGStab(preconditioner=bilevel.Jacobi()), 12),
    "Neumann": (bilevel.Neumann(terms=30), 8),
    "Chebyshev": (bilevel.Chebyshev(), 12),
    "Nystrom": (bilevel.Nystrom(rank=9), 9),
    "Auto": (bilevel.Auto(), 12),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_used_again_saves_its_products_and_changes_no_answer(name: str) -> None:
    solver, prepared = STATEFUL[name]
    counting = Counting(spd(12, 1))
    b = normal(12, seed=2)
    first = bilevel.solve(counting.operator, b, solver)
    assert first.stats.products == counting.calls
    counting.calls = 0
    again = bilevel.solve(counting.operator, b, solver, state=first.state)
    assert again.stats.products == counting.calls == first.stats.products - prepared
    torch.testing.assert_close(again.value, first.value, rtol=0, atol=0)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_tensors_alone_and_comes_from_init_as_well(name: str) -> None:
    solver, _ = STATEFUL[name]
    A, b = bilevel.Matrix(spd(12, 1)), normal(12, seed=2)
    state = solver.init(A)
    assert type(state) is dict
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    found = bilevel.solve(A, b, solver, state=state)
    assert type(found.state) is dict
    torch.testing.assert_close(found.value, bilevel.solve(A, b, solver).value, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(set(STATEFUL) - {"Exact", "Auto", "Nystrom", "Neumann"}))
def test_a_state_of_a_nearby_operator_still_gives_the_answer(name: str) -> None:
    solver, _ = STATEFUL[name]
    state = solver.init(bilevel.Matrix(spd(12, 1)))
    A, b = spd(12, 1) + 0.05 * spd(12, 2), normal(12, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), b, solver, state=state)
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-7


def test_an_exact_factorization_that_has_aged_is_refined_to_the_answer() -> None:
    state = bilevel.Exact().init(bilevel.Matrix(spd(12, 1)))
    A, b = spd(12, 1) + 1e-4 * spd(12, 2), normal(12, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Exact(), state=state)
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-8


@pytest.mark.parametrize(
    ("maker", "user"),
    [
        (bilevel.Neumann(), bilevel.Exact()),
        (bilevel.Exact(), bilevel.Neumann()),
        (bilevel.Exact(), bilevel.CG(preconditioner=bilevel.Jacobi())),
        (bilevel.Nystrom(2), bilevel.Chebyshev()),
        (bilevel.Chebyshev(), bilevel.Nystrom(2)),
    ],
)
def test_the_state_of_another_solver_is_named(maker: bilevel.Solver, user: bilevel.Solver) -> None:
    A = bilevel.Matrix(spd(4, 1))
    with pytest.raises(bilevel.InputError, match=r"state holds .* prepared by another solver"):
        bilevel.solve(A, normal(4, seed=1), user, state=maker.init(A))


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_after_a_zero_right_hand_side_can_be_passed_on(name: str) -> None:
    solver, _ = STATEFUL[name]
    A, b = bilevel.Matrix(spd(12, 1)), normal(12, seed=2)
    nothing = bilevel.solve(A, torch.zeros_like(b), solver)
    found = bilevel.solve(A, b, solver, state=nothing.state)
    torch.testing.assert_close(found.value, bilevel.solve(A, b, solver).value, rtol=0, atol=0)


# --- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_products_reported_are_the_products_made(name: str) -> None:
    counting = Counting(spd(12, 1))
    found = bilevel.solve(counting.operator, normal(12, seed=2), ALL[name])
    assert found.stats.products == counting.calls
    counting.calls = 0
    found = bilevel.solve(
        counting.operator, normal(12, seed=2), ALL[name], initial=normal(12, seed=3)
    )
    assert found.stats.products == counting.calls


@pytest.mark.parametrize(
    ("name", "most"), [("CG", 1), ("MINRES", 1), ("GMRES", 2), ("BiCGStab", 1)]
)
def test_a_step_costs_one_product_and_the_true_residual_one_more(name: str, most: int) -> None:
    counting = Counting(spd(30, 1))
    found = bilevel.solve(
        counting.operator, normal(30, seed=2), type(ALL[name])(rtol=None, max_steps=10)
    )
    each = 2 if name == "BiCGStab" else 1
    assert found.stats.iterations == 10
    assert counting.calls <= 10 * each + most


@pytest.mark.parametrize("solver", [bilevel.CG(rtol=TIGHT), bilevel.MINRES(rtol=TIGHT)])
def test_the_smallest_curvature_seen_bounds_the_smallest_eigenvalue_from_above(
    solver: bilevel.Solver,
) -> None:
    A = with_spectrum(torch.linspace(0.5, 8, 12, dtype=F64), 1)
    found = bilevel.solve(bilevel.Matrix(A), normal(12, seed=2), solver)
    assert found.stats.smallest_curvature is not None
    assert 0.5 - 1e-12 <= found.stats.smallest_curvature < 4.0


def test_ritz_values_of_a_full_run_are_the_extreme_eigenvalues() -> None:
    A = spd(10, 3)
    found = bilevel.solve(bilevel.Matrix(A), normal(10, seed=4), bilevel.CG(rtol=1e-14))
    eigenvalues = torch.linalg.eigvalsh(A)
    assert found.stats.ritz == pytest.approx((float(eigenvalues[0]), float(eigenvalues[-1])))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_ritz_values_of_a_short_run_are_those_of_the_krylov_space(steps: int) -> None:
    A, b = spd(20, 3), normal(20, seed=4)
    V = krylov(A, b, steps)
    wanted = torch.linalg.eigvalsh(V.T @ A @ V)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=None, max_steps=steps))
    assert found.stats.ritz == pytest.approx((float(wanted[0]), float(wanted[-1])))


def test_ritz_values_of_several_columns_span_those_of_each() -> None:
    A = diagonal(1.0, 2.0, 5.0)
    found = bilevel.solve(A, torch.eye(3, dtype=F64), bilevel.CG())
    assert found.stats.ritz == pytest.approx((1.0, 5.0))


def test_the_worst_column_speaks_for_all() -> None:
    b = torch.stack([vector(1.0, 0.0, 0.0), normal(3, seed=1)], dim=1)
    found = bilevel.solve(diagonal(1.0, 2.0, 5.0), b, bilevel.CG(rtol=None, max_steps=2))
    assert found.stats.iterations == 2
    assert found.stats.residual == max(column.residual for column in found.stats.columns)
    assert found.stats.columns[0].residual == 0.0


# --- what Auto chooses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "symmetric", "wanted"),
    [
        (1, False, bilevel.Exact),
        (128, True, bilevel.Exact),
        (129, True, bilevel.CG),
        (129, False, bilevel.GMRES),
    ],
)
def test_auto_chooses_by_size_and_symmetry(size: int, symmetric: bool, wanted: type) -> None:
    A = bilevel.FunctionOperator(lambda v: v, size, symmetric=symmetric)
    assert type(bilevel.Auto().chosen(A)) is wanted
    given = bilevel.Auto(rtol=1e-3, atol=1e-9, max_steps=7).chosen(A)
    if isinstance(given, bilevel.CG | bilevel.GMRES):
        assert (given.rtol, given.atol, given.max_steps) == (1e-3, 1e-9, 7)


@pytest.mark.parametrize("low", [-3.0, 0.0], ids=["negative curvature", "zero curvature"])
def test_auto_hands_what_cg_cannot_solve_to_minres(low: float) -> None:
    values = torch.linspace(1, 4, 150, dtype=F64)
    values[:5] = low
    A, b = with_spectrum(values, 3), normal(150, seed=4)
    b = A @ b
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Auto(rtol=1e-11))
    assert found.result is Result.SUCCESS
    assert error(A @ found.value, b) < 1e-10
    if low < 0:
        assert found.stats.smallest_curvature is not None
        assert found.stats.smallest_curvature < 0


def test_auto_solves_a_system_whose_first_direction_has_no_curvature() -> None:
    values = torch.ones(200, dtype=F64)
    values[100:] = -1.0
    A = bilevel.Diagonal(values * torch.linspace(1, 2, 100, dtype=F64).repeat(2))
    found = bilevel.solve(A, torch.ones(200, dtype=F64))
    assert found.result is Result.SUCCESS


# --- failures ----------------------------------------------------------------------------------


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


# --- extremes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_tiny_and_huge_right_hand_sides_are_solved_alike(name: str, scale: float) -> None:
    A, b = spd(6, 1), normal(6, seed=2)
    found = bilevel.solve(bilevel.Matrix(A), scale * b, ALL[name])
    assert error(found.value / scale, torch.linalg.solve(A, b)) < 1e-11
    assert found.result.ok


@pytest.mark.parametrize("name", sorted(set(ALL) - {"Chebyshev bounds", "Neumann fixed step"}))
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_operators_are_solved_alike(name: str, scale: float) -> None:
    A, b = spd(6, 1), normal(6, seed=2)
    found = bilevel.solve(bilevel.Matrix(scale * A), b, ALL[name])
    assert error(found.value * scale, torch.linalg.solve(A, b)) < 1e-11
    assert found.result.ok


@pytest.mark.parametrize("name", ALL)
def test_a_single_unknown_is_solved(name: str) -> None:
    solver = bilevel.Chebyshev(lower=1.0, upper=4.0) if name == "Chebyshev bounds" else ALL[name]
    found = bilevel.solve(diagonal(4.0), vector(3.0), solver)
    assert float(found.value) == pytest.approx(0.75, rel=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_the_identity_is_solved(name: str) -> None:
    found = bilevel.solve(bilevel.Identity(40, dtype=F64), normal(40, seed=2), ALL[name])
    assert error(found.value, normal(40, seed=2)) < 1e-11


@pytest.mark.parametrize("name", ["Exact", "GMRES", "Auto"])
def test_a_rotation_is_solved_though_its_curvature_is_zero_everywhere(name: str) -> None:
    A = bilevel.Matrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64))
    found = bilevel.solve(A, vector(1.0, 2.0), ALL[name])
    torch.testing.assert_close(found.value, vector(2.0, -1.0))


@pytest.mark.parametrize("name", GENERAL)
def test_an_orthogonal_change_of_basis_changes_nothing_but_the_basis(name: str) -> None:
    Q, A, b = orthogonal(8, 3), spd(8, 1), normal(8, seed=2)
    plain = bilevel.solve(bilevel.Matrix(A, symmetric=False), b, GENERAL[name])
    turned = bilevel.solve(bilevel.Matrix(Q @ A @ Q.T, symmetric=False), Q @ b, GENERAL[name])
    assert error(Q.T @ turned.value, plain.value) < 1e-10


@pytest.mark.parametrize("name", ALL)
def test_a_solve_leaves_b_the_start_and_the_random_state_as_they_were(name: str) -> None:
    b, start = normal(12, seed=2), normal(12, seed=3)
    before = b.clone(), start.clone(), torch.get_rng_state()
    bilevel.solve(bilevel.Matrix(spd(12, 1)), b, ALL[name], initial=start)
    assert torch.equal(b, before[0])
    assert torch.equal(start, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("name", ALL)
def test_the_same_solve_twice_gives_the_same_numbers(name: str) -> None:
    A, b = bilevel.Matrix(spd(12, 1)), normal(12, seed=2)
    first, second = bilevel.solve(A, b, ALL[name]), bilevel.solve(A, b, ALL[name])
    assert torch.equal(first.value, second.value)
    assert first.stats == second.stats


def test_solves_work_under_inference_mode_and_no_grad() -> None:
    with torch.inference_mode():
        inside = bilevel.solve(bilevel.Matrix(spd(5, 1)), normal(5, seed=2), bilevel.CG())
    with torch.no_grad():
        outside = bilevel.solve(bilevel.Matrix(spd(5, 1)), normal(5, seed=2), bilevel.CG())
    assert torch.equal(inside.value.clone(), outside.value)


@pytest.mark.parametrize("name", ALL)
def test_solvers_are_values_that_compare_and_cannot_change(name: str) -> None:
    solver = ALL[name]
    assert solver == type(solver)(**vars(solver))
    with pytest.raises(AttributeError):
        solver.rtol = 0.1  # type: ignore[attr-defined]
