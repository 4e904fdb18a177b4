"""`implicit_grad` inside transforms, and what is refused there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import bilevel
from tests.bilevel.implicit_cases import (
    ARGMIN,
    F64,
    PHI,
    PHIS,
    A,
    C,
    N,
    P,
    W,
    assert_near,
    condition,
    inner,
    outer,
)
from tests.bilevel.problems import normal

Function = Callable[[Tensor], Tensor]


def hypergradient(phi: Tensor, theta: Tensor, **options: Any) -> Tensor:
    return bilevel.implicit_grad(outer, inner, phi, theta, **options)


@pytest.mark.parametrize("solver", [None, bilevel.CG(rtol=1e-13)])
def test_implicit_grad_under_vmap_equals_the_loop(solver: bilevel.Solver | None) -> None:
    thetas = torch.stack([ARGMIN.solution(phi) for phi in PHIS])
    together = vmap(lambda p, t: hypergradient(p, t, solver=solver))(PHIS, thetas)
    apart = [hypergradient(p, t, solver=solver) for p, t in zip(PHIS, thetas, strict=True)]
    assert_near(together, torch.stack(apart))


def test_implicit_grad_under_vmap_batches_its_arguments() -> None:
    scales = normal(4, seed=13)
    thetas = torch.stack([ARGMIN.solution(PHI, scale) for scale in scales])
    targets = normal(4, N, seed=14)

    def one(theta: Tensor, scale: Tensor, target: Tensor) -> Tensor:
        return bilevel.implicit_grad(
            lambda phi, theta, y: ((theta - y) ** 2).sum(),
            inner,
            PHI,
            theta,
            outer_args=(target,),
            inner_args=(scale,),
        )

    apart = [one(*item) for item in zip(thetas, scales, targets, strict=True)]
    assert_near(vmap(one)(thetas, scales, targets), torch.stack(apart))


def test_the_derivative_of_implicit_grad_is_the_hessian_of_the_outer_value() -> None:
    def through(phi: Tensor) -> Tensor:
        return hypergradient(phi, ARGMIN.solution(phi))

    wanted = hessian(lambda phi: outer(phi, ARGMIN.exact(phi)))(PHI)
    assert_near(jacrev(through)(PHI), wanted)
    assert_near(jacfwd(through)(PHI), wanted)
    assert_near(vmap(jacrev(through))(PHI.unsqueeze(0))[0], wanted)


def test_implicit_grad_inside_a_transform_keeps_its_options() -> None:
    theta = ARGMIN.solution(PHI)
    for options in (
        {"damping": 0.7},
        {"solver": bilevel.Neumann(terms=3, step=0.1)},
        {"hvp": "reverse"},
    ):
        together = vmap(lambda p, o=options: hypergradient(p, theta, **o))(PHI.unsqueeze(0))
        assert_near(together[0], hypergradient(PHI, theta, **options))


@pytest.mark.parametrize(
    "options", [{"return_info": True}, {"initial": torch.zeros(N, dtype=F64)}, {"state": {}}]
)
def test_what_a_transform_cannot_carry_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bilevel.TransformError, match="return_info, initial and state"):
        vmap(lambda p: hypergradient(p, W, **options))(PHIS)


@pytest.mark.parametrize(
    "options",
    [
        {"hvp": "finite_difference"},
        {"curvature": bilevel.GaussNewton(lambda p, t: t, lambda p, z: (z**2).sum())},
    ],
)
def test_products_that_are_not_the_hessians_own_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bilevel.InputError, match="exact Hessian"):
        vmap(lambda p: hypergradient(p, W, **options))(PHIS)


def _scaled_by(phi: Tensor) -> bilevel.LinearOperator:
    return bilevel.FunctionOperator(lambda v: phi.sum() * v, N, symmetric=True, dtype=F64)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: bilevel.solve(bilevel.Matrix(A), A @ C @ p).value,
        lambda p: bilevel.solve(_scaled_by(p), W).value,
        lambda p: bilevel.solve(_scaled_by(p), W, bilevel.CG(rtol=None, max_steps=1)).value,
        lambda p: bilevel.hessian(lambda t: inner(p, t), W).to_dense(),
        lambda p: bilevel.jacobian(lambda t: condition(p, t), W).to_dense(),
        lambda p: bilevel.ImplicitProblem(outer, inner).operator(p, W).to_dense(),
        lambda p: bilevel.ImplicitProblem(outer, inner).refine(p, W),
        lambda p: torch.tensor(bilevel.ImplicitProblem(outer, inner).stationarity(p, W)),
    ],
    ids=[
        "solve",
        "solve by closure",
        "solve by CG",
        "hessian",
        "jacobian",
        "operator",
        "refine",
        "stationarity",
    ],
)
@pytest.mark.parametrize("transform", [vmap, jacrev, jacfwd])
def test_functions_no_transform_can_enter_are_refused(
    transform: Callable[..., Any], call: Function
) -> None:
    points = PHIS if transform is vmap else PHI
    with pytest.raises(bilevel.TransformError, match="inside"):
        transform(call)(points)


def test_the_older_vmap_of_torch_autograd_is_refused() -> None:
    phi = PHI.clone().requires_grad_()
    eye = torch.eye(N, dtype=F64)
    for call in (
        lambda: torch.autograd.grad(ARGMIN.attached(phi), phi, eye, is_grads_batched=True),
        lambda: jacobian(ARGMIN.attached, phi, vectorize=True),
        lambda: jacobian(ARGMIN.attached, phi, vectorize=True, strategy="forward-mode"),
    ):
        with pytest.raises(bilevel.TransformError, match="vectorize"):
            call()
    assert_near(jacobian(ARGMIN.attached, phi), jacrev(ARGMIN.exact)(PHI))


def test_implicit_grad_refuses_tangents_that_it_would_drop() -> None:
    with forward_ad.dual_level():
        phi = forward_ad.make_dual(PHI, PHI)
        with pytest.raises(bilevel.TransformError, match="jvp"):
            hypergradient(phi, ARGMIN.solution(PHI))


def test_a_forward_derivative_of_a_forward_derivative_is_refused() -> None:
    def value(phi: Tensor) -> Tensor:
        return (W * ARGMIN.attached(phi)).sum()

    ones = torch.ones(P, dtype=F64)
    for call in (
        lambda: jacfwd(jacfwd(value))(PHI),
        lambda: jvp(lambda p: jvp(value, (p,), (ones,))[1], (PHI,), (ones,)),
        lambda: vmap(jacfwd(jacfwd(value)))(PHIS),
        lambda: jacfwd(lambda p: grad(lambda q: jacfwd(value)(q).sum())(p))(PHI),
    ):
        with pytest.raises(bilevel.TransformError, match="forward derivative of a forward"):
            call()
