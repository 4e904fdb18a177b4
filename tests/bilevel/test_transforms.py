"""`argmin`, `root` and `fixed_point` under torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import bilevel
from tests.bilevel.implicit_cases import (
    ARGMIN,
    F64,
    GENERAL,
    PHI,
    PHIS,
    SCALE,
    SYMMETRIC,
    TRUNCATED,
    Case,
    N,
    P,
    W,
    assert_near,
    every_case,
    inner,
    outer,
)
from tests.bilevel.problems import normal

Function = Callable[[Tensor], Tensor]

TRANSFORMS: dict[str, Callable[[Function], Tensor]] = {
    "grad": lambda f: grad(f)(PHI),
    "jacrev": lambda f: jacrev(f)(PHI),
    "jacfwd": lambda f: jacfwd(f)(PHI),
    "jvp": lambda f: jvp(f, (PHI,), (normal(P, seed=9),))[1],
    "hessian": lambda f: hessian(f)(PHI),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(PHI),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f))(PHI),
    "grad of grad": lambda f: grad(lambda p: grad(f)(p).square().sum())(PHI),
    "grad of jvp": lambda f: grad(lambda p: jvp(f, (p,), (normal(P, seed=9),))[1])(PHI),
    "jvp of grad": lambda f: jvp(grad(f), (PHI,), (normal(P, seed=9),))[1],
    "third order": lambda f: jacrev(jacrev(jacrev(f)))(PHI),
    "jacfwd of jacrev of jacrev": lambda f: jacfwd(jacrev(jacrev(f)))(PHI),
    "vmap": lambda f: vmap(f)(PHIS),
    "vmap of vmap": lambda f: vmap(vmap(f))(PHIS.view(2, 2, P)),
    "vmap of grad": lambda f: vmap(grad(f))(PHIS),
    "vmap of vmap of grad": lambda f: vmap(vmap(grad(f)))(PHIS.view(2, 2, P)),
    "vmap of jacfwd": lambda f: vmap(jacfwd(f))(PHIS),
    "vmap of hessian": lambda f: vmap(hessian(f))(PHIS),
    "vmap of jacrev of jacrev": lambda f: vmap(jacrev(jacrev(f)))(PHIS),
    "grad of vmap": lambda f: grad(lambda p: vmap(f)(p).square().sum())(PHIS),
    "grad of vmap of grad": lambda f: grad(lambda p: vmap(grad(f))(p).square().sum())(PHIS),
    "jvp of vmap": lambda f: jvp(vmap(f), (PHIS,), (PHIS.cos(),))[1],
    "jacrev of vmap": lambda f: jacrev(vmap(f))(PHIS),
    "hessian of vmap": lambda f: hessian(lambda p: vmap(f)(p).square().sum())(PHIS[:2]),
    "vmap over the tangents": lambda f: vmap(lambda t: jvp(f, (PHI,), (t,))[1])(PHIS),
    "vmap over axis 1": lambda f: vmap(grad(f), in_dims=1, out_dims=1)(PHIS.T.contiguous()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@every_case
def test_every_transform_gives_the_derivatives_of_the_exact_solution(
    case: Case, transform: Callable[[Function], Tensor]
) -> None:
    def of(solution: Callable[[Tensor], Tensor]) -> Function:
        return lambda phi: outer(phi, solution(phi))

    assert_near(transform(of(case.attached)), transform(of(case.exact)))


@every_case
def test_a_pullback_can_be_used_after_its_transform_is_over(case: Case) -> None:
    value, pull = vjp(case.attached, PHI)[:2]
    jacobian = jacrev(case.exact)(PHI)
    assert_near(value, case.exact(PHI))
    assert_near(pull(W)[0], W @ jacobian)
    assert_near(pull(2 * W)[0], 2 * W @ jacobian)
    cotangents = normal(4, N, seed=10)
    assert_near(vmap(lambda row: pull(row)[0])(cotangents), cotangents @ jacobian)


@every_case
def test_a_pullback_depends_on_what_requires_grad_outside(case: Case) -> None:
    def pulled(solution: Callable[..., Tensor]) -> Tensor:
        scale = SCALE.clone().requires_grad_()
        pull = vjp(lambda phi: solution(phi, scale), PHI)[1]
        return torch.autograd.grad((pull(W)[0] ** 2).sum(), scale)[0]

    assert_near(pulled(case.attached), pulled(case.exact))


@pytest.mark.parametrize("batched", ["phi", "scale", "both"])
@every_case
def test_vmap_over_some_of_the_inputs_equals_the_loop(case: Case, batched: str) -> None:
    phis = PHIS if batched != "scale" else PHI.expand(4, P)
    scales = normal(4, seed=11) if batched != "phi" else SCALE.expand(4)
    in_dims = (0 if batched != "scale" else None, 0 if batched != "phi" else None)
    inputs = (phis if in_dims[0] == 0 else PHI, scales if in_dims[1] == 0 else SCALE)

    def slopes(phi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = jacrev(case.attached, (0, 1))(phi, scale)
        return *both, hessian(lambda p: (W * case.attached(p, scale)).sum())(phi)

    together = vmap(slopes, in_dims)(*inputs)
    apart = [slopes(phi, scale) for phi, scale in zip(phis, scales, strict=True)]
    assert_near(together, tuple(torch.stack(list(column)) for column in zip(*apart, strict=True)))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 0), (0, 1)])
def test_vmap_over_phi_or_a_given_theta_equals_the_loop(dims: tuple[int | None, ...]) -> None:
    phis, thetas = PHIS, normal(4, N, seed=12)

    def slope(phi: Tensor, theta: Tensor) -> Tensor:
        return grad(lambda p: outer(p, bilevel.argmin(inner, p, theta)))(phi)

    batches = [
        values[0] if dim is None else values.movedim(0, dim)
        for values, dim in zip((phis, thetas), dims, strict=True)
    ]
    together = vmap(slope, dims)(*batches)
    apart = [
        slope(phis[0 if dims[0] is None else i], thetas[0 if dims[1] is None else i])
        for i in range(4)
    ]
    assert_near(together, torch.stack(apart))


EVERY_SOLVER = {**GENERAL, **SYMMETRIC, **TRUNCATED}


@pytest.mark.parametrize("solver", EVERY_SOLVER.values(), ids=EVERY_SOLVER)
@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(f))], ids=["vmap", "vmap twice"])
def test_vmap_equals_the_loop_for_every_solver(
    solver: bilevel.Solver, transform: Callable[..., Any]
) -> None:
    # Points of very different conditioning, which converge after different numbers of steps.
    phis = torch.stack([PHI, PHI + 3.0, PHI - 3.0, PHI + 1.0])
    thetas = torch.stack([ARGMIN.solution(phi) for phi in phis])

    def slope(phi: Tensor, theta: Tensor) -> Tensor:
        return grad(
            lambda p: outer(p, bilevel.argmin(inner, p, theta, solver=solver, on_failure="ignore"))
        )(phi)

    if transform is grad:
        together = vmap(slope)(phis, thetas)
    else:
        together = vmap(vmap(slope))(phis.view(2, 2, P), thetas.view(2, 2, N)).view(4, P)
    apart = torch.stack([slope(phi, theta) for phi, theta in zip(phis, thetas, strict=True)])
    assert_near(together, apart, rtol=1e-8)


def test_a_solver_that_takes_one_matrix_at_a_time_says_so_under_vmap() -> None:
    solver = bilevel.Nystrom(rank=3)
    assert_near(grad(lambda p: (W * ARGMIN.attached(p, solver=solver)).sum())(PHI).shape, (P,))
    with pytest.raises(bilevel.InputError, match="one matrix at a time"):
        vmap(grad(lambda p: ARGMIN.attached(p, solver=solver).sum()))(PHIS)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
def test_jvp_and_vjp_are_adjoint(seed: int, n: int, large: bool) -> None:
    matrix = (0.4 if large else 0.1) * normal(n, n, seed=seed)
    b, u, w = normal(3, n, seed=seed + 1)
    z = torch.linalg.solve(torch.eye(n, dtype=F64) - matrix, b)

    def solution(b: Tensor) -> Tensor:
        return bilevel.fixed_point(lambda p, z: matrix @ z + p, b, z)

    forward = u @ jvp(solution, (b,), (w,))[1]
    backward = vjp(solution, b)[1](u)[0] @ w
    scale = torch.linalg.cond(torch.eye(n, dtype=F64) - matrix) * u.norm() * w.norm()
    assert abs(forward - backward) <= 1e-12 * scale


def test_a_solution_inside_another_is_refused_to_hessian_and_not_to_jacrev_of_jacrev() -> None:
    def value(phi: Tensor) -> Tensor:
        square = lambda p: bilevel.argmin(lambda q, x: ((x - q**2) ** 2).sum(), p, p.detach() ** 2)  # noqa: E731
        fourth = bilevel.argmin(lambda p, t: ((t - square(p) ** 2) ** 2).sum(), phi, PHI**4)
        return fourth.sum()

    for forward in (hessian, lambda f: jacfwd(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        with pytest.raises(bilevel.TransformError, match=r"Use torch\.func\.jacrev\(jacrev\(f\)\)"):
            forward(value)(PHI)
    assert_near(jacrev(jacrev(value))(PHI), torch.diag(12 * PHI**2))
