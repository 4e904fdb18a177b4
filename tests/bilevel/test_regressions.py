"""What other libraries were seen to get wrong, each as a test by name."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bilevel
from bilevel import Result
from tests.bilevel.problems import (
    MINIMA,
    SHAPES,
    Quadratic,
    error,
    flat,
    normal,
    quadratic,
    ridge_inner,
    ridge_solution,
    scalar,
    solvers,
    spd,
    strided,
    with_spectrum,
)

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


# --- the solvers ---------------------------------------------------------------------------------


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


# --- trees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse", "finite_difference"])
def test_leaves_that_are_not_contiguous_are_taken(hvp: Any) -> None:
    """``view`` refused transposed and strided leaves."""
    matrix = normal(2, 3, seed=1).T
    theta = {"transposed": matrix, "strided": strided(normal(3, seed=2)), "flipped": matrix.flip(0)}
    phi = [normal(3, 2, seed=3).T, strided(normal(2, seed=4))]
    assert not any(leaf.is_contiguous() for leaf in (matrix, theta["strided"], *phi))

    def inner(p: Any, t: Any) -> Tensor:
        return (flat(t) ** 2).sum() / 2 - (flat(t)[:8] * flat(p)).sum()

    found, info = bilevel.implicit_grad(
        lambda p, t: (flat(t) ** 2).sum() / 2,
        inner,
        phi,
        theta,
        hvp=hvp,
        initial=theta,
        return_info=True,
    )
    torch.testing.assert_close(flat(found), flat(theta)[:8], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(flat(info.adjoint), flat(theta), rtol=1e-7, atol=1e-8)
    assert found[0].shape == phi[0].shape


def test_a_phi_leaf_that_nothing_uses_gets_zeros() -> None:
    phi = {"used": torch.tensor(2.0), "unused": torch.ones(2, 3)}
    found = bilevel.implicit_grad(
        lambda p, t: t**2, lambda p, t: (t - p["used"]) ** 2, phi, torch.tensor(2.0)
    )
    assert float(found["used"]) == pytest.approx(4.0)
    assert torch.equal(found["unused"], torch.zeros(2, 3))


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse", "finite_difference"])
def test_a_theta_leaf_that_inner_does_not_use_is_named_unless_damped(hvp: Any) -> None:
    theta = {"used": torch.tensor(2.0, dtype=F64), "idle": [torch.ones(2, dtype=F64)]}
    phi = torch.tensor(2.0, dtype=F64)

    def outer(p: Tensor, t: Any) -> Tensor:
        return t["used"] ** 2 + t["idle"][0].sum()

    def inner(p: Tensor, t: Any) -> Tensor:
        return (t["used"] - p) ** 2

    with pytest.raises(bilevel.InputError, match=r"theta\['idle'\]\[0\]"):
        bilevel.implicit_grad(outer, inner, phi, theta, hvp=hvp)
    found, info = bilevel.implicit_grad(
        outer, inner, phi, theta, hvp=hvp, damping=0.5, return_info=True
    )
    torch.testing.assert_close(info.adjoint["idle"][0], torch.full((2,), 2.0, dtype=F64))
    assert float(found) == pytest.approx(2 * 4.0 / 2.5)


@pytest.mark.parametrize(
    ("phi", "theta", "names"),
    [
        (torch.ones(2), torch.ones(2, dtype=F64), ["theta", "float64", "phi", "float32"]),
        (torch.ones(2), [torch.ones(2), torch.ones(2, dtype=F64)], [r"theta\[1\]", r"theta\[0\]"]),
        ({"a": torch.ones(2, dtype=F64), "b": torch.ones(2)}, torch.ones(2), [r"phi\['b'\]"]),
        (torch.ones(2, device="meta"), torch.ones(2), ["theta", "cpu", "phi", "meta"]),
        (torch.ones(2), [torch.ones(2), torch.ones(2, device="meta")], [r"theta\[1\]", "meta"]),
    ],
)
def test_mixed_dtypes_and_devices_are_refused_with_the_names_of_the_leaves(
    phi: Any, theta: Any, names: list[str]
) -> None:
    def objective(p: Any, t: Any) -> Tensor:
        raise AssertionError("nothing may be evaluated before the check")

    for name in names:
        with pytest.raises(bilevel.InputError, match=name):
            bilevel.implicit_grad(objective, objective, phi, theta)
        with pytest.raises(bilevel.InputError, match=name.replace("theta", "theta_star")):
            bilevel.argmin(objective, phi, theta)


# --- derivatives ---------------------------------------------------------------------------------


def test_second_derivatives_are_right() -> None:
    """They came out wrong without a word, the dependence of theta* on phi being lost."""
    data, phi = Quadratic.random(), normal(4, seed=20).requires_grad_()
    theta = data.solution(phi.detach())
    problem = bilevel.ImplicitProblem(data.outer, data.inner)
    value = data.outer(phi, problem.solution(phi, theta))
    (first,) = torch.autograd.grad(value, phi, create_graph=True)
    rows = [torch.autograd.grad(entry, phi, retain_graph=True)[0] for entry in first]
    assert error(first.detach(), data.gradient(phi.detach())) < 1e-8
    assert error(torch.stack(rows), data.hessian()) < 1e-8


def test_implicit_grad_returns_a_gradient_that_claims_no_graph() -> None:
    problem = QUADRATIC
    phi, theta = problem.phi.clone().requires_grad_(), problem.theta.clone().requires_grad_()
    found = bilevel.implicit_grad(problem.outer, problem.inner, phi, theta)
    assert not found.requires_grad


def test_damping_is_applied_once_by_every_entry() -> None:
    """One library added it in the operator and again in the solver."""
    problem, damping = QUADRATIC, 0.7
    theta = problem.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.outer(problem.phi, theta), theta)
    damped = problem.matrix + damping * torch.eye(6, dtype=F64)
    data = Quadratic.random()
    wanted = (
        data.M @ problem.phi
        + data.K @ problem.theta
        + data.h
        - data.C.T @ torch.linalg.solve(damped, slope)
    )
    whole = bilevel.ImplicitProblem(problem.outer, problem.inner, damping=damping)
    assert error(whole.operator(problem.phi, problem.theta).to_dense(), damped) < 1e-12
    for name, solver in EVERY.items():
        if name == "Neumann fixed step":
            continue
        once = bilevel.implicit_grad(
            problem.outer, problem.inner, problem.phi, problem.theta, solver=solver, damping=damping
        )
        assert error(once, wanted) < 1e-8, name
    phi = problem.phi.clone().requires_grad_()
    for solution in (
        whole.solution(phi, problem.theta),
        bilevel.argmin(problem.inner, phi, problem.theta, damping=damping),
    ):
        (found,) = torch.autograd.grad(problem.outer(phi, solution), phi)
        assert error(found, wanted) < 1e-8


@pytest.mark.parametrize(
    ("outer", "inner", "where"),
    [
        (lambda p, t: t.sqrt(), lambda p, t: (t - p) ** 2, "gradient of outer in theta"),
        (lambda p, t: t.log(), lambda p, t: (t - p) ** 2, "value of outer"),
        (lambda p, t: t, lambda p, t: (t - p) ** 2 + t.sqrt(), "gradient of inner in theta"),
        (lambda p, t: t, lambda p, t: (t - p) ** 2 + 1 / t, "value of inner"),
        (lambda p, t: t, lambda p, t: (t - p) ** 2 + t.abs() ** 1.5, "NaN or an infinity"),
        (lambda p, t: t, lambda p, t: (t - p.sqrt()) ** 2, "hypergradient in phi"),
        (lambda p, t: t + p.sqrt(), lambda p, t: (t - p) ** 2, "hypergradient in phi"),
    ],
)
@pytest.mark.parametrize("on_failure", ["warn", "ignore"])
def test_a_derivative_that_is_not_finite_raises_and_is_not_replaced_by_zeros(
    outer: Callable[..., Tensor], inner: Callable[..., Tensor], where: str, on_failure: Any
) -> None:
    zero = torch.tensor(0.0, dtype=F64)
    with pytest.raises(bilevel.NonFiniteError, match=where):
        bilevel.implicit_grad(outer, inner, zero, zero, on_failure=on_failure)


def test_vmap_equals_the_loop() -> None:
    data = Quadratic.random()
    points = normal(5, 4, seed=1)
    thetas = torch.stack([data.solution(p) for p in points])
    along = normal(5, 6, seed=2)

    def pulled(p: Tensor, theta: Tensor, cotangent: Tensor) -> Tensor:
        solve = lambda q: bilevel.argmin(data.inner, q, theta)  # noqa: E731
        return torch.func.vjp(solve, p)[1](cotangent)[0]

    def hypergradient(p: Tensor, theta: Tensor) -> Tensor:
        return bilevel.implicit_grad(data.outer, data.inner, p, theta)

    together = torch.func.vmap(pulled)(points, thetas, along)
    alone = torch.stack([pulled(*row) for row in zip(points, thetas, along, strict=True)])
    assert error(together, alone) < 1e-10
    together = torch.func.vmap(hypergradient)(points, thetas)
    alone = torch.stack([hypergradient(*row) for row in zip(points, thetas, strict=True)])
    assert error(together, alone) < 1e-10


def test_a_pullback_called_after_its_transform_has_ended_is_right_to_second_order() -> None:
    """What a rule had saved still wore the wrapper of the transform: a zero without a word."""
    lam = torch.tensor(0.7, dtype=F64, requires_grad=True)
    theta, H = ridge_solution(lam.detach())
    first = -torch.linalg.solve(H, theta)
    second = -2 * torch.linalg.solve(H, first)
    u = normal(5, seed=1)
    pullback = torch.func.vjp(lambda penalty: bilevel.argmin(ridge_inner, penalty, theta), lam)[1]
    (pulled,) = pullback(u)
    torch.testing.assert_close(pulled.detach(), u @ first)
    torch.testing.assert_close(torch.autograd.grad(pulled, lam)[0], u @ second)
    every = torch.func.vmap(pullback)(torch.eye(5, dtype=F64))[0]
    torch.testing.assert_close(every.detach(), first)


@pytest.mark.parametrize("solver", [None, bilevel.GMRES(rtol=1e-12), bilevel.BiCGStab(rtol=1e-12)])
def test_jvp_and_vjp_are_adjoint(solver: bilevel.Solver | None) -> None:
    W = 0.4 * normal(5, 5, seed=3)
    z = torch.linalg.solve(torch.eye(5, dtype=F64) - W, normal(5, seed=4))

    def solution(b: Tensor) -> Tensor:
        return bilevel.fixed_point(lambda p, z: W @ z + p, b, z, solver=solver)

    u, w = normal(5, seed=5), normal(5, seed=6)
    pushed = torch.func.jvp(solution, (normal(5, seed=4),), (w,))[1]
    pulled = torch.func.vjp(solution, normal(5, seed=4))[1](u)[0]
    torch.testing.assert_close(u @ pushed, pulled @ w, rtol=1e-10, atol=0)


# --- what stays behind -------------------------------------------------------------------------


def _alive() -> int:
    # By type: isinstance asks lazy objects of torch for their class, and they answer with warnings.
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def _calls() -> dict[str, Callable[[], Any]]:
    problem = scalar()
    fixed = bilevel.ImplicitProblem(problem.outer, problem.inner, solver=bilevel.CG())
    phi = problem.phi.clone().requires_grad_()
    A, b = bilevel.Matrix(spd(4, 1)), normal(4, seed=2)

    def backward() -> None:
        value = problem.outer(phi, bilevel.argmin(problem.inner, phi, problem.theta))
        (first,) = torch.autograd.grad(value, phi, create_graph=True)
        torch.autograd.grad(first.sum(), phi)

    return {
        "implicit_grad": lambda: bilevel.implicit_grad(
            problem.outer, problem.inner, problem.phi, problem.theta
        ),
        "implicit_grad with info": lambda: fixed.implicit_grad(
            problem.phi, problem.theta, return_info=True
        ),
        "second order": backward,
        "solve": lambda: bilevel.solve(A, b, bilevel.CG()),
    }


@pytest.mark.parametrize("name", _calls())
def test_a_thousand_calls_leave_no_tensor_behind(name: str) -> None:
    """Counted with the garbage collector off: a cycle would hold a whole graph until it runs."""
    call = _calls()[name]
    for _ in range(3):
        call()
    gc.collect()
    gc.disable()
    try:
        before = _alive()
        for _ in range(20):
            call()
        assert _alive() == before
    finally:
        gc.enable()
    for _ in range(1000 if name in ("implicit_grad", "solve") else 100):
        call()
    gc.collect()
    assert _alive() <= before


class _Waits(TorchDispatchMode):
    """Counts the reads of a number off a tensor, each of which waits for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [80, 160])
@pytest.mark.parametrize("tolerance", [None, 1e-14])
@pytest.mark.parametrize(
    "solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab, bilevel.Chebyshev]
)
def test_a_solve_reads_no_number_in_every_iteration(
    solver: Any, tolerance: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators look at the tolerance every eight steps; nothing else may wait for a number."""
    module = __import__(solver.__module__, fromlist=["check_interval"])
    monkeypatch.setattr(module, "check_interval", lambda device: 8)
    A = bilevel.Matrix(with_spectrum(torch.logspace(0, 8, 200, dtype=F64), 1))
    waits = _Waits()
    with waits:
        found = bilevel.solve(
            A, normal(200, seed=2), solver(rtol=tolerance, max_steps=steps), on_failure="ignore"
        )
    assert found.stats.iterations == steps
    cycles = steps // 30 + 1 if solver is bilevel.GMRES else 0
    assert waits.count <= steps // 8 + 4 * cycles + 15


@pytest.mark.parametrize("terms", [20, 200])
def test_a_neumann_series_waits_for_no_number_at_all(terms: int) -> None:
    A, b = bilevel.Matrix(spd(50, 1)), normal(50, seed=2)
    waits = _Waits()
    with waits:
        bilevel.solve(A, b, bilevel.Neumann(terms, step=0.1))
    assert waits.count < 10


def test_an_implicit_gradient_waits_for_a_handful_of_numbers() -> None:
    problem = QUADRATIC
    counts = []
    for terms in (10, 100):
        waits = _Waits()
        with waits, warnings.catch_warnings():
            warnings.simplefilter("error")
            bilevel.implicit_grad(
                problem.outer,
                problem.inner,
                problem.phi,
                problem.theta,
                solver=bilevel.Neumann(terms, step=0.1),
            )
        counts.append(waits.count)
    assert counts[0] == counts[1] < 15
    assert math.isfinite(counts[0])
