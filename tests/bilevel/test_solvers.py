"""What each solver computes: its iterates, and extremes of size and shape."""

from __future__ import annotations

import math

import pytest
import torch

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, orthogonal, spd, with_spectrum
from tests.bilevel.systems import (
    ALL,
    F64,
    GENERAL,
    Counting,
    diagonal,
    krylov,
    vector,
)


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


def test_gmres_keeps_its_basis_orthogonal_where_one_pass_would_lose_it() -> None:
    A = with_spectrum(torch.logspace(0, 11, 80, dtype=F64), 3)
    b = A @ normal(80, seed=5)
    solver = bilevel.GMRES(rtol=1e-12, restart=80, max_steps=80)
    assert bilevel.solve(bilevel.Matrix(A), b, solver).result is Result.SUCCESS


def test_gmres_that_restarts_too_early_on_a_cyclic_shift_says_it_stagnated() -> None:
    # The residual of a shift does not move before step n: no progress at all before that.
    A = bilevel.Matrix(torch.eye(6, dtype=F64).roll(1, 0))
    b = vector(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with pytest.warns(bilevel.ConvergenceWarning, match="STAGNATED"):
        bilevel.solve(A, b, bilevel.GMRES(restart=3, max_steps=100))
    assert bilevel.solve(A, b, bilevel.GMRES(restart=6)).result is Result.SUCCESS


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
