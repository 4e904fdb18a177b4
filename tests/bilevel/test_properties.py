"""Properties of linear solves over random systems."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, with_spectrum

F64 = torch.float64
few = settings(max_examples=25)
seeds = st.integers(0, 10_000)
sizes = st.integers(1, 10)


@st.composite
def definite(draw: st.DrawFn, low: float = 0.1, high: float = 10.0) -> Tensor:
    """A random symmetric positive definite matrix of at most 10 x 10."""
    values = draw(st.lists(st.floats(low, high), min_size=1, max_size=10))
    return with_spectrum(torch.tensor(values, dtype=F64), draw(seeds))


def right_hand_side(matrix: Tensor, seed: int) -> Tensor:
    return normal(matrix.shape[0], seed=seed)


@few
@given(definite(), seeds, st.floats(0.05, 1.95), st.integers(1, 40))
def test_the_neumann_error_is_its_formula(A: Tensor, seed: int, pace: float, terms: int) -> None:
    b = right_hand_side(A, seed)
    step = pace / float(torch.linalg.eigvalsh(A)[-1])
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Neumann(terms, step=step))
    exact = torch.linalg.solve(A, b)
    shrink = torch.eye(len(b), dtype=F64) - step * A
    wanted = torch.linalg.matrix_power(shrink, terms) @ exact
    assert float((exact - found.value - wanted).norm()) < 1e-11 * float(exact.norm())
    residual = torch.linalg.matrix_power(shrink, terms) @ b
    assert abs(found.stats.residual - float(residual.norm())) < 1e-11 * float(b.norm())


@few
@given(definite(), seeds, st.floats(0.05, 1.95))
def test_more_neumann_terms_are_never_worse(A: Tensor, seed: int, pace: float) -> None:
    b = right_hand_side(A, seed)
    exact = torch.linalg.solve(A, b)
    step = pace / float(torch.linalg.eigvalsh(A)[-1])
    errors = [
        float(
            (
                bilevel.solve(bilevel.Matrix(A), b, bilevel.Neumann(k, step=step)).value - exact
            ).norm()
        )
        for k in (1, 2, 3, 5, 8, 13, 21)
    ]
    rounding = 1e-13 * float(exact.norm())
    assert all(later <= earlier + rounding for earlier, later in pairwise(errors))
    assert errors[0] <= float(exact.norm()) + rounding


@few
@given(definite(), seeds)
def test_the_automatic_neumann_step_converges_to_the_exact_inverse(A: Tensor, seed: int) -> None:
    b = right_hand_side(A, seed)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Neumann(6000, rtol=1e-12))
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-9
    largest = float(torch.linalg.eigvalsh(A)[-1])
    assert 0.3 / largest < float(found.state["step"]) < 1.0000001 / largest


@few
@given(definite(), seeds, st.floats(1.05, 20.0), st.integers(300, 2000))
def test_a_neumann_step_too_long_is_noticed(A: Tensor, seed: int, pace: float, terms: int) -> None:
    values, vectors = torch.linalg.eigh(A)
    b = right_hand_side(A, seed)
    assume(abs(float(vectors[:, -1] @ b)) > 1e-3 * float(b.norm()))
    solver = bilevel.Neumann(terms, step=2 * pace / float(values[-1]))
    found = bilevel.solve(bilevel.Matrix(A), b, solver, on_failure="ignore")
    assert found.result is Result.DIVERGED


@few
@given(definite(), seeds)
def test_cg_is_exact_within_n_steps(A: Tensor, seed: int) -> None:
    b = right_hand_side(A, seed)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=None, max_steps=len(b)))
    assert found.result is Result.TRUNCATED
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-8


@few
@given(st.integers(1, 4), st.integers(5, 12), seeds)
def test_cg_needs_as_many_steps_as_there_are_distinct_eigenvalues(
    distinct: int, n: int, seed: int
) -> None:
    levels = torch.linspace(1, 5, distinct, dtype=F64)
    A = with_spectrum(levels[torch.arange(n) % distinct], seed)
    found = bilevel.solve(bilevel.Matrix(A), normal(n, seed=seed), bilevel.CG(rtol=1e-9))
    assert found.result is Result.SUCCESS
    assert found.stats.iterations <= distinct


@few
@given(definite(0.5, 5.0), seeds)
def test_solvers_agree(A: Tensor, seed: int) -> None:
    b, operator = right_hand_side(A, seed), bilevel.Matrix(A)
    exact = torch.linalg.solve(A, b)
    for solver in (
        bilevel.Exact(),
        bilevel.CG(rtol=1e-12),
        bilevel.MINRES(rtol=1e-12),
        bilevel.GMRES(rtol=1e-12),
        bilevel.GMRES(rtol=1e-12, restart=2, max_steps=2000),
        bilevel.Chebyshev(rtol=1e-12),
        bilevel.Nystrom(rank=10),
        bilevel.Auto(rtol=1e-12),
    ):
        assert error(bilevel.solve(operator, b, solver).value, exact) < 1e-9, solver


@few
@given(sizes, seeds)
def test_general_solvers_agree_and_solve_the_transpose_too(n: int, seed: int) -> None:
    A = 3 * torch.eye(n, dtype=F64) + normal(n, n, seed=seed) / 2
    b, operator = normal(n, seed=seed + 1), bilevel.Matrix(A)
    for solver in (bilevel.Exact(), bilevel.GMRES(rtol=1e-12), bilevel.BiCGStab(rtol=1e-11)):
        assert error(bilevel.solve(operator, b, solver).value, torch.linalg.solve(A, b)) < 1e-8
        adjoint = bilevel.solve(operator.T, b, solver).value
        assert error(adjoint, torch.linalg.solve(A.T, b)) < 1e-8


@few
@given(st.lists(st.floats(0.3, 3.0), min_size=2, max_size=10), seeds, st.data())
def test_minres_solves_any_signature(values: list[float], seed: int, data: st.DataObject) -> None:
    signs = data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=10, max_size=10))
    spectrum = torch.tensor(values, dtype=F64) * torch.tensor(signs[: len(values)], dtype=F64)
    A = with_spectrum(spectrum, seed)
    b = right_hand_side(A, seed)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.MINRES(rtol=1e-11))
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(A, b)) < 1e-9


@few
@given(st.integers(2, 10), seeds, st.sampled_from([bilevel.MINRES, bilevel.GMRES]))
def test_the_residual_of_minres_and_gmres_never_grows(n: int, seed: int, solver: Any) -> None:
    M = normal(n, n, seed=seed)
    A, b = bilevel.Matrix(M + M.T), normal(n, seed=seed + 1)
    residuals = [
        bilevel.solve(A, b, solver(rtol=None, max_steps=k), on_failure="ignore").stats.residual
        for k in range(1, n + 1)
    ]
    rounding = 1e-10 * float(b.norm())
    assert all(b <= a + rounding for a, b in pairwise(residuals))


@few
@given(definite(), seeds)
def test_ritz_values_and_curvature_lie_within_the_spectrum(A: Tensor, seed: int) -> None:
    found = bilevel.solve(bilevel.Matrix(A), right_hand_side(A, seed), bilevel.CG(rtol=1e-6))
    values = torch.linalg.eigvalsh(A)
    low, high = float(values[0]) * (1 - 1e-9), float(values[-1]) * (1 + 1e-9)
    assert found.stats.ritz is not None
    assert low <= found.stats.ritz[0] <= found.stats.ritz[1] <= high
    assert found.stats.smallest_curvature is not None
    assert low <= found.stats.smallest_curvature <= high


PRECONDITIONERS = {
    "none": None,
    "Jacobi": bilevel.Jacobi(),
    "Jacobi probed": bilevel.Jacobi(probes=3),
    "Nystrom": bilevel.NystromPreconditioner(3),
    "Nystrom of rank 1": bilevel.NystromPreconditioner(1),
    "callable": lambda row: row * torch.linspace(1, 3, row.numel(), dtype=row.dtype),
    "scaled": lambda row: 1e6 * row,
}


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab])
@settings(max_examples=8)
@given(definite(), seeds)
def test_preconditioners_change_no_answer(solver: Any, A: Tensor, seed: int) -> None:
    b, operator = right_hand_side(A, seed), bilevel.Matrix(A)
    exact = torch.linalg.solve(A, b)
    for name, preconditioner in PRECONDITIONERS.items():
        made = solver(rtol=1e-11, max_steps=500, preconditioner=preconditioner)
        found = bilevel.solve(operator, b, made)
        assert found.result is Result.SUCCESS, name
        assert error(found.value, exact) < 1e-8, name


@few
@given(st.integers(1, 4), st.floats(1e-3, 1.0), seeds)
def test_a_low_rank_approximation_inverts_low_rank_above_a_level(
    rank: int, level: float, seed: int
) -> None:
    factor = normal(12, rank, seed=seed)
    A = factor @ factor.T + level * torch.eye(12, dtype=F64)
    b, operator = normal(12, seed=seed + 1), bilevel.Matrix(A)
    exact = torch.linalg.solve(A, b)
    assert error(bilevel.solve(operator, b, bilevel.Nystrom(rank + 1)).value, exact) < 1e-8
    preconditioned = bilevel.CG(preconditioner=bilevel.NystromPreconditioner(rank + 1))
    assert bilevel.solve(operator, b, preconditioned).stats.iterations <= 2


LINEAR: dict[str, bilevel.Solver] = {
    "Exact": bilevel.Exact(),
    "Nystrom": bilevel.Nystrom(rank=4),
    "Neumann": bilevel.Neumann(terms=9),
    "Chebyshev": bilevel.Chebyshev(rtol=None, max_steps=9),
    "ScaledIdentity": bilevel.ScaledIdentity(0.3),
}
TO_TOLERANCE: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=1e-12),
    "MINRES": bilevel.MINRES(rtol=1e-12),
    "GMRES": bilevel.GMRES(rtol=1e-12),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-11, max_steps=500),
    "Auto": bilevel.Auto(rtol=1e-12),
}


@settings(max_examples=10)
@given(definite(0.5, 5.0), seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_answers_are_linear_in_the_right_hand_side(
    A: Tensor, seed: int, alpha: float, beta: float
) -> None:
    operator, b, c = bilevel.Matrix(A), right_hand_side(A, seed), right_hand_side(A, seed + 1)
    size = abs(alpha) + abs(beta) + 1e-3
    for name, solver in (LINEAR | TO_TOLERANCE).items():

        def answer(rhs: Tensor, solver: bilevel.Solver = solver) -> Tensor:
            return bilevel.solve(operator, rhs, solver, on_failure="ignore").value

        gap = answer(alpha * b + beta * c) - alpha * answer(b) - beta * answer(c)
        assert float(gap.norm()) < 1e-8 * size * float(b.norm() + c.norm()), name


@settings(max_examples=10)
@given(definite(), seeds, st.sampled_from([2.0**-40, 2.0**40, 2.0**-900, 2.0**900]))
def test_a_power_of_two_on_b_scales_the_answer_and_changes_no_other_bit(
    A: Tensor, seed: int, scale: float
) -> None:
    operator, b = bilevel.Matrix(A), right_hand_side(A, seed)
    for name, solver in (LINEAR | TO_TOLERANCE).items():
        plain = bilevel.solve(operator, b, solver, on_failure="ignore")
        scaled = bilevel.solve(operator, scale * b, solver, on_failure="ignore")
        assert torch.equal(scaled.value / scale, plain.value), name
        assert scaled.stats.iterations == plain.stats.iterations
        assert scaled.stats.relative_residual == plain.stats.relative_residual
        assert scaled.result is plain.result


# --- any system at all ---------------------------------------------------------------------------

SPECTRA: dict[str, Any] = {
    "definite": lambda r: r + 0.1,
    "ill-conditioned": lambda r: 10 ** (-12 * r),
    "singular": lambda r: torch.where(r < 0.3, 0.0, r),
    "indefinite": lambda r: r - 0.5,
    "negative": lambda r: -r - 0.1,
    "repeated": lambda r: (3 * r).round() + 1,
    "zero": lambda r: 0 * r,
}
ANY: list[bilevel.Solver] = [
    *LINEAR.values(),
    *TO_TOLERANCE.values(),
    bilevel.CG(rtol=1e-15, preconditioner=bilevel.Jacobi(probes=2)),
    bilevel.CG(preconditioner=bilevel.NystromPreconditioner(2)),
    bilevel.MINRES(rtol=None, max_steps=40, preconditioner=bilevel.Jacobi()),
    bilevel.GMRES(restart=2),
    bilevel.BiCGStab(rtol=None, max_steps=30),
    bilevel.Neumann(50, rtol=1e-6),
]


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(SPECTRA)),
    sizes,
    st.sampled_from([1, 3]),
    seeds,
    st.sampled_from([1.0, 1e-20, 1e20]),
    st.booleans(),
    st.booleans(),
)
def test_whatever_the_system_a_solve_ends_with_its_true_residual_and_no_surprise(
    spectrum: str, n: int, columns: int, seed: int, scale: float, in_range: bool, started: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    A = with_spectrum(SPECTRA[spectrum](torch.rand(n, generator=generator, dtype=F64)), seed)
    B = scale * normal(n, columns, seed=seed + 1)
    B = A @ B if in_range else B
    B[:, 0] *= seed % 4 != 0
    start = scale * normal(n, columns, seed=seed + 2) if started else None
    for solver in ANY:
        found = bilevel.solve(
            bilevel.Matrix(A, symmetric=True), B, solver, initial=start, on_failure="ignore"
        )
        residuals = torch.linalg.vector_norm(B - A @ found.value, dim=0)
        sizes_ = torch.linalg.vector_norm(B, dim=0)
        growth = torch.linalg.matrix_norm(A, 2) * torch.linalg.vector_norm(found.value, dim=0)
        rounding = 1e-13 * n * (sizes_ + growth)
        for column, true, slack, size in zip(
            found.stats.columns, residuals, rounding, sizes_, strict=True
        ):
            assert abs(column.residual - float(true)) <= float(slack), solver
            rtol, _ = solver.tolerances(F64)
            if rtol is not None and column.result is Result.SUCCESS:
                assert float(true) <= 1.02 * max(rtol, 3e-16) * float(size) + float(slack), solver
        lowest = found.stats.smallest_curvature
        if spectrum not in ("indefinite", "negative") and lowest is not None:
            assert lowest >= -1e-13, solver
