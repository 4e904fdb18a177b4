"""Tensors that reach a function behind its arguments are refused, or are harmless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import bilevel
from tests.bilevel.implicit_cases import (
    ARGMIN,
    F64,
    PHI,
    PHIS,
    C,
    N,
    P,
    W,
    assert_near,
    condition,
    contraction,
    inner,
    outer,
)
from tests.bilevel.problems import normal

Function = Callable[[Tensor], Tensor]

HIDDEN = torch.tensor([1.5, -0.5], dtype=F64)
HIDDENS = torch.stack([HIDDEN, 2 * HIDDEN])


def _argmin_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    def solution(phi: Tensor) -> Tensor:
        return bilevel.argmin(lambda p, t: inner(p * hidden, t), phi, W).sum()

    return solution


def _root_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.root(lambda p, t: condition(p * hidden, t), phi, W).sum()


def _map_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.fixed_point(lambda p, t: contraction(p * hidden, t), phi, W).sum()


def _hypergradient_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.implicit_grad(outer, lambda p, t: inner(p * hidden, t), phi, W).sum()


def _under_a_dual_level(use: Callable[[Tensor], Function]) -> Any:
    with forward_ad.dual_level():
        return use(forward_ad.make_dual(HIDDEN, HIDDEN))(PHI)


LEAKS: dict[str, Callable[[Callable[[Tensor], Function]], Any]] = {
    "grad": lambda use: grad(lambda c: use(c)(PHI))(HIDDEN),
    "jvp": lambda use: jvp(lambda c: use(c)(PHI), (HIDDEN,), (HIDDEN,)),
    "vmap": lambda use: vmap(lambda c: use(c)(PHI))(HIDDENS),
    "grad of vmap": lambda use: grad(lambda c: vmap(use(c))(PHIS).sum())(HIDDEN),
    "jvp of vmap": lambda use: jvp(lambda c: vmap(use(c))(PHIS), (HIDDEN,), (HIDDEN,)),
    "vmap of grad": lambda use: vmap(lambda c: grad(use(c))(PHI))(HIDDENS),
    "vmap of vmap": lambda use: vmap(lambda c: vmap(use(c))(PHIS[:2]))(HIDDENS),
    "grad of grad": lambda use: grad(lambda c: grad(use(c))(PHI).sum())(HIDDEN),
    "jvp of grad": lambda use: jvp(lambda c: grad(use(c))(PHI), (HIDDEN,), (HIDDEN,)),
    "jvp of vmap of grad": lambda use: jvp(
        lambda c: vmap(grad(use(c)))(PHIS), (HIDDEN,), (HIDDEN,)
    ),
    "grad of jvp": lambda use: grad(lambda c: jvp(use(c), (PHI,), (PHI,))[1])(HIDDEN),
    "autograd under vmap": lambda use: vmap(use(HIDDEN.clone().requires_grad_()))(PHIS),
    "autograd under grad": lambda use: grad(use(HIDDEN.clone().requires_grad_()))(PHI),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("use", [_argmin_with, _root_with, _map_with, _hypergradient_with])
def test_a_tensor_that_a_transform_follows_and_that_is_no_argument_is_refused(
    use: Callable[[Tensor], Function], leak: Callable[..., Any]
) -> None:
    with pytest.raises(bilevel.TransformError, match="neither phi nor args"):
        leak(use)


@pytest.mark.parametrize("use", [_argmin_with, _root_with, _map_with])
def test_a_tensor_that_autograd_follows_and_that_is_no_argument_is_refused(
    use: Callable[[Tensor], Function],
) -> None:
    for hidden in (HIDDEN.clone().requires_grad_(), HIDDEN.clone().requires_grad_() * 2):
        with pytest.raises(bilevel.InputError, match="requires grad but is part of neither"):
            use(hidden)(PHI)
    with pytest.raises(bilevel.InputError, match="forward derivative but is part of neither"):
        _under_a_dual_level(use)
    with torch.no_grad():  # nothing is differentiated, so nothing can be lost
        assert torch.equal(use(HIDDEN.clone().requires_grad_())(PHI), W.sum())


def test_frozen_parameters_are_no_such_tensors() -> None:
    layer = nn.Linear(P, P, dtype=F64)
    phi = PHI.clone().requires_grad_()

    def solution(phi: Tensor) -> Tensor:
        return bilevel.argmin(lambda p, t: inner(layer(p), t), phi, W)

    with pytest.raises(bilevel.InputError, match="frozen"):
        solution(phi)
    layer.requires_grad_(False)
    assert_near(
        torch.autograd.grad(solution(phi).sum(), phi)[0],
        grad(lambda p: solution(p).sum())(PHI),
    )


def test_tensors_that_a_function_makes_for_itself_are_no_such_tensors() -> None:
    def penalised(phi: Tensor, theta: Tensor) -> Tensor:
        x = (C @ PHI).detach().requires_grad_()  # a gradient penalty in an input
        (slope,) = torch.autograd.grad((x * theta * phi[0]).sin().sum(), x, create_graph=True)
        return inner(phi, theta) + (slope**2).sum()

    def written_out(phi: Tensor, theta: Tensor) -> Tensor:
        factor = theta * phi[0]
        return inner(phi, theta) + ((factor * (C @ PHI * factor).cos()) ** 2).sum()

    phi, theta = PHI.clone().requires_grad_(), normal(N, seed=15)
    found, wanted = (
        torch.autograd.grad(bilevel.argmin(function, phi, theta).sum(), phi)[0]
        for function in (penalised, written_out)
    )
    assert_near(found, wanted)


def test_an_outer_objective_may_close_over_anything() -> None:
    theta = ARGMIN.solution(PHI)

    def value(weights: Tensor) -> Tensor:
        objective = lambda p, t: outer(p, t * weights)  # noqa: E731
        return bilevel.implicit_grad(objective, inner, PHI, theta)

    weights = normal(4, N, seed=16)
    assert_near(vmap(value)(weights), torch.stack([value(row) for row in weights]))
    numeric = (value(weights[0] + 1e-6 * W) - value(weights[0] - 1e-6 * W)) / 2e-6
    assert_near(jvp(value, (weights[0],), (W,))[1], numeric, rtol=1e-6)
