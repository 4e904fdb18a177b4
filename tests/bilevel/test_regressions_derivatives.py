"""What other libraries were seen to get wrong in trees and derivatives, each by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, flat, normal
from tests.bilevel.problems import Quadratic, quadratic, ridge_inner, ridge_solution
from tests.bilevel.shapes import strided
from tests.bilevel.systems import solvers

F64 = torch.float64
QUADRATIC = quadratic()

EVERY = solvers(QUADRATIC)


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


def test_a_pullback_of_what_requires_no_grad_requires_none_and_holds_no_graph() -> None:
    lam = torch.tensor(0.7, dtype=F64)
    theta, H = ridge_solution(lam)
    pullback = torch.func.vjp(lambda penalty: bilevel.argmin(ridge_inner, penalty, theta), lam)[1]
    (pulled,) = pullback(normal(5, seed=1))
    assert not pulled.requires_grad
    torch.testing.assert_close(pulled, -normal(5, seed=1) @ torch.linalg.solve(H, theta))


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
