"""What other libraries were seen to get wrong in their solvers, each as a test by name."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.problems import MINIMA, quadratic
from tests.bilevel.shapes import SHAPES
from tests.bilevel.systems import solvers

F64 = torch.float64
QUADRATIC = quadratic()
EVERY = solvers(QUADRATIC)
DEFAULTS: dict[str, bilevel.Solver] = {
    "Auto": bilevel.Auto(),
    "Exact": bilevel.Exact(),
    "CG": bilevel.CG(),
    "CG Jacobi": bilevel.CG(preconditioner=bilevel.Jacobi()),
    "CG Nystrom": bilevel.CG(preconditioner=bilevel.NystromPreconditioner()),
    "MINRES": bilevel.MINRES(),
    "GMRES": bilevel.GMRES(),
    "BiCGStab": bilevel.BiCGStab(),
    "Chebyshev": bilevel.Chebyshev(),
    "Neumann": bilevel.Neumann(),
    "Nystrom": bilevel.Nystrom(rank=10),
}


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


@pytest.mark.parametrize("c", [1e-3, 1.0, 7.0])
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_hessian_that_is_a_multiple_of_the_identity_has_an_implicit_term(
    name: str, c: float
) -> None:
    """CG returned the iterate before last: zero, where the first step is already exact."""
    phi, theta = vector(1.0, 2.0), vector(1.0, 2.0) / c
    found, info = bilevel.implicit_grad(
        lambda p, t: (t**2).sum() / 2,
        lambda p, t: c * (t**2).sum() / 2 - p @ t,
        phi,
        theta,
        solver=DEFAULTS[name],
        return_info=True,
    )
    torch.testing.assert_close(found, theta / c)
    torch.testing.assert_close(info.adjoint, theta / c)
    assert info.solution.stats.smallest_curvature == pytest.approx(c)


def test_cg_takes_its_direction_from_the_residual_of_the_same_step() -> None:
    """A direction from a stale residual is not conjugate: two unknowns then need more than two."""
    A, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=F64), vector(1.0, 2.0)
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=None, max_steps=2))
    torch.testing.assert_close(found.value, torch.linalg.solve(A, b), rtol=1e-14, atol=0)
    first = bilevel.solve(bilevel.Matrix(A), b, bilevel.CG(rtol=None, max_steps=1))
    torch.testing.assert_close(first.value, (b @ b) / (b @ A @ b) * b, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "solver",
    [
        bilevel.Neumann(terms=3, step=0.1),
        bilevel.Neumann(terms=3),
        bilevel.ScaledIdentity(0.1),
        bilevel.Chebyshev(rtol=None, max_steps=3),
        bilevel.CG(rtol=None, max_steps=2),
        bilevel.Nystrom(rank=2),
    ],
)
def test_a_step_scale_applies_to_solution_and_residual_alike(solver: bilevel.Solver) -> None:
    """The scale was put on the solution but not on the residual, so that going on went astray."""
    A, b = spd(6, 1), normal(6, seed=2)
    start = torch.linalg.solve(A, b) + 0.1 * normal(6, seed=3)
    for initial in (None, start):
        found = bilevel.solve(bilevel.Matrix(A), b, solver, initial=initial, on_failure="ignore")
        residual = float((b - A @ found.value).norm())
        assert found.stats.residual == pytest.approx(residual, rel=1e-9)
    exact = torch.linalg.solve(A, b)
    assert float((found.value - exact).norm()) <= float((start - exact).norm())


@pytest.mark.parametrize("name", EVERY)
def test_leaves_that_influence_each_other_are_solved_together(name: str) -> None:
    """A "dense" solve used the diagonal blocks of the Hessian alone, one for each leaf."""
    shape = SHAPES[2]
    problem = QUADRATIC.in_shape(shape)
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=EVERY[name]
    )
    blocks = QUADRATIC.matrix.clone()
    blocks[0, 1:] = blocks[1:, 0] = 0.0
    assert error(torch.linalg.inv(blocks), torch.linalg.inv(QUADRATIC.matrix)) > 0.1
    assert error(shape.unpack(found), QUADRATIC.gradient) < 1e-8


@pytest.mark.parametrize("name", DEFAULTS)
def test_zero_dimensional_parameters_get_iterations(name: str) -> None:
    """The default cap was the number of dimensions: none at all for a 0-d tensor."""
    phi, theta = torch.tensor(3.0, dtype=F64), torch.tensor(1.5, dtype=F64)
    found = bilevel.implicit_grad(
        lambda p, t: t**2, lambda p, t: t**2 - p * t, phi, theta, solver=DEFAULTS[name]
    )
    assert float(found) == pytest.approx(1.5)


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e-200, 1e200])
@pytest.mark.parametrize("name", DEFAULTS)
def test_scaling_outer_scales_the_answer_and_nothing_else(name: str, scale: float) -> None:
    """Absolute tolerances called a small gradient solved, and a large one never."""
    problem = QUADRATIC

    def run(factor: float) -> Any:
        return bilevel.implicit_grad(
            lambda p, t: factor * problem.outer(p, t),
            problem.inner,
            problem.phi,
            problem.theta,
            solver=DEFAULTS[name],
            return_info=True,
        )

    (plain, before), (scaled, after) = run(1.0), run(scale)
    assert error(scaled / scale, plain) < 1e-12
    assert after.solution.stats.iterations == before.solution.stats.iterations
    assert after.solution.result is before.solution.result


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", sorted(set(DEFAULTS) - {"CG Nystrom"}))
def test_scaling_outer_scales_the_answer_in_float32_too(name: str, scale: float) -> None:
    phi, theta = QUADRATIC.phi.float(), QUADRATIC.theta.float()

    def run(factor: float) -> Tensor:
        return bilevel.implicit_grad(
            lambda p, t: factor * (t**2).sum() / 2,
            QUADRATIC.inner,
            phi,
            theta,
            solver=DEFAULTS[name],
        )

    assert error(run(scale) / scale, run(1.0)) < 1e-5


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_identity_as_hessian_gives_no_nan(name: str) -> None:
    """The step after an exact one divided 0 by 0."""
    phi = normal(40, seed=1)
    found = bilevel.implicit_grad(
        lambda p, t: (t**2).sum() / 2,
        lambda p, t: ((t - p) ** 2).sum() / 2,
        phi,
        phi,
        solver=DEFAULTS[name],
    )
    torch.testing.assert_close(found, phi)


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES])
def test_arriving_at_the_last_allowed_step_is_no_failure(solver: Any) -> None:
    problem = QUADRATIC
    _, info = bilevel.implicit_grad(
        problem.outer,
        problem.inner,
        problem.phi,
        problem.theta,
        solver=solver(max_steps=6),
        on_failure="raise",
        return_info=True,
    )
    assert info.solution.result is Result.SUCCESS
    assert info.solution.stats.iterations == 6


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_direction_of_zero_curvature_divides_nothing_by_zero(name: str) -> None:
    """p'Ap = 0 ended in ZeroDivisionError."""
    A, b = bilevel.Diagonal(vector(1.0, -1.0)), vector(1.0, 1.0)
    found = bilevel.solve(A, b, DEFAULTS[name], on_failure="ignore")
    assert bool(torch.isfinite(found.value).all())
    if found.result.ok:
        torch.testing.assert_close(found.value, vector(1.0, -1.0))


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_indefinite_hessian_is_never_accepted_without_a_word(name: str) -> None:
    A = with_spectrum(torch.linspace(-2.5, 8, 12, dtype=F64), 3)
    phi = normal(12, seed=4)
    words = (bilevel.ConvergenceWarning, bilevel.CurvatureWarning)
    with pytest.warns(words, match=r"indefinite|negative curvature"):
        bilevel.implicit_grad(
            lambda p, t: (t**3).sum(),
            lambda p, t: t @ A @ t / 2 - p @ t,
            phi,
            torch.linalg.solve(A, phi),
            solver=DEFAULTS[name],
        )


@pytest.mark.parametrize("name", sorted(set(DEFAULTS) - {"Neumann", "Nystrom", "Chebyshev"}))
def test_a_positive_definite_hessian_is_not_called_indefinite(name: str) -> None:
    for problem in MINIMA:
        _, info = bilevel.implicit_grad(
            problem.outer,
            problem.inner,
            problem.phi.float(),
            problem.theta.float(),
            solver=DEFAULTS[name],
            return_info=True,
        )
        assert info.solution.stats.smallest_curvature is not None
        assert info.solution.stats.smallest_curvature > 0


@pytest.mark.parametrize("name", sorted(set(DEFAULTS) - {"BiCGStab", "Neumann", "Nystrom"}))
def test_a_semidefinite_hessian_is_not_called_indefinite_for_its_rounding(name: str) -> None:
    values = torch.cat([torch.zeros(5, dtype=F64), torch.linspace(1, 4, 9, dtype=F64)])
    A = with_spectrum(values, 3)
    phi = A @ normal(14, seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = bilevel.implicit_grad(
            lambda p, t: (A @ t).pow(2).sum(),
            lambda p, t: t @ A @ t / 2 - p @ t,
            phi,
            torch.linalg.pinv(A) @ phi,
            solver=DEFAULTS[name],
            return_info=True,
        )
    # The least-norm adjoint; what a solver adds to it from the null space is its own affair.
    wanted = torch.linalg.pinv(A) @ (2 * A @ phi)
    assert error(A @ info.adjoint, A @ wanted) < 1e-6
    assert info.solution.stats.smallest_curvature is None or (
        info.solution.stats.smallest_curvature >= 0
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_outer_objective_without_theta_has_a_zero_implicit_part(name: str) -> None:
    """A zero right-hand side gave NaN, or was called a failure."""
    problem = QUADRATIC
    found, info = bilevel.implicit_grad(
        lambda p, t: (p**2).sum() + 0.0 * t.sum(),
        problem.inner,
        problem.phi,
        problem.theta,
        solver=DEFAULTS[name],
        return_info=True,
    )
    torch.testing.assert_close(found, 2 * problem.phi)
    assert not bool(info.implicit.any())
    assert not bool(info.adjoint.any())
    assert info.error_estimate == 0.0
    alone = bilevel.implicit_grad(
        lambda p, t: (p**2).sum(), problem.inner, problem.phi, problem.theta, solver=DEFAULTS[name]
    )
    torch.testing.assert_close(alone, 2 * problem.phi)


@pytest.mark.parametrize("solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab])
@pytest.mark.parametrize(
    "preconditioner",
    [bilevel.Jacobi(), bilevel.Jacobi(probes=2), bilevel.NystromPreconditioner(2), lambda r: 9 * r],
    ids=["Jacobi", "Jacobi probed", "Nystrom", "callable"],
)
def test_preconditioners_do_not_change_the_answer(solver: Any, preconditioner: Any) -> None:
    problem = QUADRATIC
    made = solver(rtol=1e-12, preconditioner=preconditioner)
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=made
    )
    assert error(found, problem.gradient) < 1e-8
