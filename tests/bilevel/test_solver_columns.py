"""Several right-hand sides, batches of matrices, and the choice of a solver."""

from __future__ import annotations

import pytest
import torch

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.systems import (
    ALL,
    F64,
    diagonal,
    vector,
)


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
    b = normal(5, 8, seed=9)
    solution = bilevel.solve(bilevel.Matrix(matrices), b, ALL[name])
    wanted = torch.linalg.solve(matrices, b.unsqueeze(-1)).squeeze(-1)
    assert error(solution.value, wanted) < 1e-11


def test_a_batch_of_matrices_that_are_not_symmetric_is_solved() -> None:
    matrices = torch.stack([spd(8, s) + normal(8, 8, seed=s) / 3 for s in range(5)])
    b = normal(5, 8, seed=9)
    wanted = torch.linalg.solve(matrices, b.unsqueeze(-1)).squeeze(-1)
    for name in ("Exact", "GMRES", "GMRES restarted", "BiCGStab", "Auto"):
        found = bilevel.solve(bilevel.Matrix(matrices), b, ALL[name]).value
        assert error(found, wanted) < 1e-11


@pytest.mark.parametrize("solver", [bilevel.Nystrom(2), ALL["CG Nystrom"]])
def test_a_low_rank_approximation_refuses_a_batch(solver: bilevel.Solver) -> None:
    A = bilevel.Matrix(torch.eye(3, dtype=F64).expand(2, 3, 3))
    with pytest.raises(bilevel.InputError, match="one matrix at a time"):
        bilevel.solve(A, torch.ones(2, 3, dtype=F64), solver)


def test_a_batch_refuses_another_number_of_right_hand_sides() -> None:
    A = bilevel.Matrix(torch.eye(3, dtype=F64).expand(2, 3, 3))
    for wrong in (torch.ones(3, dtype=F64), torch.ones(3, 2, dtype=F64)):
        with pytest.raises(bilevel.InputError, match=r"b is .* wanted \[2, 3\], a vector for each"):
            bilevel.solve(A, wrong)


def test_a_batch_of_as_many_matrices_as_unknowns_is_not_read_transposed() -> None:
    matrices, b = torch.stack([spd(4, seed) for seed in range(4)]), normal(4, 4, seed=1)
    found = bilevel.solve(bilevel.Matrix(matrices), b).value
    assert error(found, torch.linalg.solve(matrices, b.unsqueeze(-1)).squeeze(-1)) < 1e-11


def test_no_columns_and_no_rows_are_solved_by_nothing() -> None:
    assert bilevel.solve(diagonal(1.0, 2.0), torch.zeros(2, 0, dtype=F64)).value.shape == (2, 0)
    empty = bilevel.solve(bilevel.Identity(0), torch.zeros(0))
    assert empty.value.shape == (0,)
    assert empty.result is Result.SUCCESS


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
