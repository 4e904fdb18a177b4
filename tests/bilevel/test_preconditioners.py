"""Preconditioners: what they prepare, and what they apply."""

from __future__ import annotations

import pytest
import torch

import bilevel
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.systems import F64, Counting, vector


def test_jacobi_takes_the_exact_diagonal() -> None:
    A = spd(9, 1)
    state = bilevel.Jacobi().init(bilevel.Matrix(A))
    torch.testing.assert_close(state["diagonal"], A.diagonal())
    rows = normal(2, 9, seed=2)
    torch.testing.assert_close(bilevel.Jacobi().apply(state, rows), rows / A.diagonal())


@pytest.mark.parametrize("probes", [1, 3])
def test_random_signs_read_a_diagonal_matrix_exactly(probes: int) -> None:
    diagonal = vector(1.0, 4.0, 0.5, 9.0)
    state = bilevel.Jacobi(probes=probes).init(bilevel.Diagonal(diagonal))
    torch.testing.assert_close(state["diagonal"], diagonal)


def test_more_random_signs_come_closer_to_the_diagonal() -> None:
    A = spd(30, 1)
    errors = [
        error(bilevel.Jacobi(probes=k).init(bilevel.Matrix(A))["diagonal"], A.diagonal())
        for k in (4, 64, 1024)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_random_signs_cost_one_product_each_and_leave_the_global_state_alone() -> None:
    counting = Counting(spd(9, 1))
    before = torch.get_rng_state()
    first = bilevel.Jacobi(probes=5).init(counting.operator)["diagonal"]
    assert counting.calls == 5
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, bilevel.Jacobi(probes=5).init(counting.operator)["diagonal"])
    assert not torch.equal(first, bilevel.Jacobi(5, seed=1).init(counting.operator)["diagonal"])


@pytest.mark.parametrize("probes", [None, 2])
def test_random_signs_and_diagonals_of_a_batch_are_those_of_each_matrix(probes: int | None) -> None:
    diagonals = torch.stack([vector(1.0, 2.0, 3.0), vector(7.0, 5.0, 4.0)])
    A = bilevel.Matrix(torch.diag_embed(diagonals))
    torch.testing.assert_close(bilevel.Jacobi(probes=probes).init(A)["diagonal"], diagonals)


def test_a_diagonal_with_signs_and_zeros_still_makes_a_positive_preconditioner() -> None:
    state = bilevel.Jacobi().init(bilevel.Diagonal(vector(-2.0, 0.0, 1.0)))
    torch.testing.assert_close(state["diagonal"], vector(2.0, 2e-6, 1.0))
    nothing = bilevel.Jacobi().init(bilevel.Diagonal(vector(0.0, 0.0)))
    torch.testing.assert_close(nothing["diagonal"], vector(1.0, 1.0))


def test_jacobi_makes_badly_scaled_unknowns_easy() -> None:
    scale = torch.logspace(0, 4, 60, dtype=F64)
    A = bilevel.Matrix(scale[:, None].sqrt() * spd(60, 1, 1.0, 3.0) * scale.sqrt())
    b = normal(60, seed=2)
    plain = bilevel.solve(A, b, bilevel.CG(max_steps=500))
    scaled = bilevel.solve(A, b, bilevel.CG(preconditioner=bilevel.Jacobi()))
    assert scaled.stats.iterations < plain.stats.iterations / 3


def test_nystrom_flattens_the_leading_eigenvalues_to_the_smallest_it_keeps() -> None:
    eigenvalues = torch.cat([vector(500.0, 90.0, 40.0), torch.full((17,), 2.0, dtype=F64)])
    A = with_spectrum(eigenvalues, 3)
    preconditioner = bilevel.NystromPreconditioner(rank=5)
    state = preconditioner.init(bilevel.Matrix(A))
    flattened = torch.linalg.eigvals(preconditioner.apply(state, A.contiguous())).real
    wanted = torch.cat([torch.full((17,), 2.0, dtype=F64), torch.full((3,), 40.0, dtype=F64)])
    torch.testing.assert_close(flattened.sort().values, wanted, rtol=1e-8, atol=0)
    solved = bilevel.solve(
        bilevel.Matrix(A), normal(20, seed=4), bilevel.CG(preconditioner=preconditioner)
    )
    assert solved.stats.iterations == 2  # one for each level that is left


def test_nystrom_speeds_up_a_spectrum_that_decays() -> None:
    A = bilevel.Matrix(with_spectrum(torch.logspace(4, 0, 100, dtype=F64) + 1.0, 3))
    b = normal(100, seed=2)
    plain = bilevel.solve(A, b, bilevel.CG(max_steps=1000))
    better = bilevel.solve(A, b, bilevel.CG(preconditioner=bilevel.NystromPreconditioner(40)))
    assert better.stats.iterations < plain.stats.iterations / 1.5


def test_nystrom_of_the_identity_and_of_nothing_apply_the_identity() -> None:
    rows = normal(2, 6, seed=1)
    for A in (bilevel.Identity(6, dtype=F64), bilevel.Diagonal(torch.zeros(6, dtype=F64))):
        preconditioner = bilevel.NystromPreconditioner(rank=3)
        torch.testing.assert_close(preconditioner.apply(preconditioner.init(A), rows), rows)


def test_a_preconditioner_of_one_s_own_class_is_prepared_once_and_kept() -> None:
    prepared = []

    class Halving(bilevel.Preconditioner):
        def init(self, operator: bilevel.LinearOperator) -> dict[str, torch.Tensor]:
            prepared.append(operator.size)
            return {"factor": torch.tensor(0.5, dtype=operator.dtype)}

        def apply(self, state: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            return state["factor"] * rows

    A, b = bilevel.Matrix(spd(8, 1)), normal(8, seed=2)
    solver = bilevel.CG(rtol=1e-12, preconditioner=Halving())
    first = bilevel.solve(A, b, solver)
    again = bilevel.solve(A, b, solver, state=first.state)
    assert prepared == [8]
    assert torch.equal(first.value, again.value)
    assert error(first.value, torch.linalg.solve(A.to_dense(), b)) < 1e-10
