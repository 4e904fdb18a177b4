"""What a solver prepares, and the figures it reports."""

from __future__ import annotations

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
    TIGHT,
    Counting,
    diagonal,
    krylov,
    vector,
)

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


@pytest.mark.parametrize("state", [[torch.ones(2)], bilevel.solve(diagonal(1.0), vector(1.0))])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(bilevel.InputError, match=r"state is a .*wanted the dict"):
        bilevel.solve(diagonal(1.0, 2.0), vector(1.0, 2.0), bilevel.Exact(), state=state)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_after_a_zero_right_hand_side_can_be_passed_on(name: str) -> None:
    solver, _ = STATEFUL[name]
    A, b = bilevel.Matrix(spd(12, 1)), normal(12, seed=2)
    nothing = bilevel.solve(A, torch.zeros_like(b), solver)
    found = bilevel.solve(A, b, solver, state=nothing.state)
    torch.testing.assert_close(found.value, bilevel.solve(A, b, solver).value, rtol=0, atol=0)


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
    kind: Any = type(ALL[name])
    found = bilevel.solve(counting.operator, normal(30, seed=2), kind(rtol=None, max_steps=10))
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
