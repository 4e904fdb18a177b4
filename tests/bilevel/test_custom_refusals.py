"""What solvers of one's own return, and are given, that does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

import bilevel
from tests.bilevel.custom_cases import F64, PHI, RIDGE, ROOT, X, by_newton, cubic, penalized
from tests.bilevel.problems import normal

PHIS = normal(4, 3, seed=3)

REFUSED: dict[str, tuple[Any, str]] = {
    "a pair without has_aux": ((PHI, 7), r"what solve returned\[1\] is a int.*has_aux=True"),
    "nothing": (None, "what solve returned is a NoneType"),
    "integers": (torch.arange(3), "what solve returned has dtype torch.int64"),
    "a module": (torch.nn.Linear(1, 1), r"what solve returned is a module"),
    "another dtype": (PHI.float(), "x_star is torch.float32 on cpu, but phi is torch.float64"),
}


@pytest.mark.parametrize(("returned", "message"), REFUSED.values(), ids=REFUSED)
def test_a_solver_that_returns_no_solution_is_told_so(returned: Any, message: str) -> None:
    @bilevel.custom_root(lambda phi, x: x - phi)
    def solve(phi: Tensor) -> Any:
        return returned

    with pytest.raises(bilevel.InputError, match=message):
        solve(PHI)
    with pytest.raises(bilevel.InputError, match=message):
        grad(lambda phi: solve(phi).sum())(PHI)


@pytest.mark.parametrize("returned", [PHI, (PHI,), (PHI, 1, 2), [PHI, 1]])
def test_a_solver_that_returns_no_pair_with_has_aux_is_told_so(returned: Any) -> None:
    @bilevel.custom_root(lambda phi, x: x - phi, has_aux=True)
    def solve(phi: Tensor) -> Any:
        return returned

    with pytest.raises(
        bilevel.InputError, match=r"what solve returned is a .*wanted \(x_star, aux"
    ):
        solve(PHI)


def test_the_solution_of_a_pair_is_checked_too() -> None:
    solve = bilevel.custom_root(lambda phi, x: x - phi, has_aux=True)(lambda phi: (3, phi))
    with pytest.raises(bilevel.InputError, match=r"returned\[0\] is a int"):
        solve(PHI)


def test_options_and_functions_that_do_not_fit_are_refused_when_they_are_given() -> None:
    every: list[Any] = [bilevel.custom_argmin, bilevel.custom_root, bilevel.custom_fixed_point]
    for decorator in every:
        with pytest.raises(bilevel.InputError, match="must be a function"):
            decorator(PHI)
        with pytest.raises(bilevel.InputError, match=r"CG.*a class: call it"):
            decorator(cubic, solver=bilevel.CG)
        with pytest.raises(bilevel.InputError, match="on_failure must be"):
            decorator(cubic, on_failure="shout")
        with pytest.raises(bilevel.InputError, match=r"decorates a solver.*but was given Tensor"):
            decorator(by_newton)(PHI)  # the decorator's own function was forgotten
    with pytest.raises(bilevel.InputError, match="damping must be"):
        bilevel.custom_argmin(penalized, damping=-1.0)
    with pytest.raises(bilevel.InputError, match=r"phi has dtype torch\.int64"):
        ROOT.attached(torch.arange(3), X)


def test_a_function_that_closes_over_what_is_followed_is_refused() -> None:
    scale = torch.tensor(2.0, dtype=F64, requires_grad=True)

    @bilevel.custom_root(lambda phi, x: x - scale * phi)
    def solve(phi: Tensor) -> Tensor:
        return scale.detach() * phi

    with pytest.raises(bilevel.InputError, match="part of neither phi nor args"):
        solve(PHI)

    def doubled(scale: Tensor) -> Tensor:
        return bilevel.custom_root(lambda phi, x: x - scale * phi)(lambda phi: scale * phi)(PHI)

    with pytest.raises(bilevel.TransformError, match="part of neither phi nor args"):
        jacrev(doubled)(scale.detach())
    with pytest.raises(bilevel.TransformError, match=r"closes over a tensor that torch\.func.vmap"):
        vmap(doubled)(PHIS[0])


def test_errors_of_a_solver_say_how_it_is_called() -> None:
    @bilevel.custom_argmin(lambda phi, t: (t - phi).square().sum())
    def forgetful(phi: Tensor) -> Tensor:
        t = torch.zeros_like(phi, requires_grad=True)
        (t - phi).square().sum().backward()
        return t

    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        forgetful(PHI)
    assert "enable_grad" in caught.value.__notes__[0]
    reads = bilevel.custom_root(cubic)(lambda phi, inputs: phi * phi.sum().item())
    for attached in (RIDGE.attached, reads):
        with pytest.raises(RuntimeError) as caught:
            vmap(attached, (0, None))(PHIS, X)
        assert "has to be one that vmap can carry" in caught.value.__notes__[0]


def test_an_option_that_is_differentiated_is_refused_and_not_dropped() -> None:
    def penalized(p: Tensor, t: Tensor, weight: Any = 1.0) -> Tensor:
        return ((t - p) ** 2).sum() + weight * (t**2).sum()

    def shrink(p: Tensor, weight: Any = 1.0) -> Tensor:
        return p / (1 + weight)

    solve = bilevel.custom_argmin(penalized)(shrink)
    phi, weight = torch.ones(2, dtype=F64), torch.tensor(2.0, dtype=F64)
    with pytest.raises(bilevel.InputError, match=r"weight is an option .* Pass it as one of args"):
        solve(phi, weight=weight.clone().requires_grad_())
    with pytest.raises(bilevel.InputError, match="weight is an option"):
        torch.func.grad(lambda w: solve(phi, weight=w).sum())(weight)
    slope = torch.func.grad(lambda w: solve(phi, w).sum())(weight)
    torch.testing.assert_close(slope, torch.tensor(-2 / 9, dtype=F64))


def test_a_solver_may_write_to_phi_but_not_to_its_other_arguments() -> None:
    def square(p: Tensor) -> Tensor:
        p *= p
        return p

    phi = torch.tensor(3.0, dtype=F64, requires_grad=True)
    solve = bilevel.custom_argmin(lambda p, t: (t - p**2) ** 2)(square)
    found = solve(phi)
    assert (phi.item(), found.item()) == (3.0, 9.0)
    assert torch.autograd.grad(found, phi)[0].item() == pytest.approx(6.0)
    assert torch.func.grad(solve)(phi.detach()).item() == pytest.approx(6.0)

    @bilevel.custom_argmin(lambda p, t, x: ((t - p * x) ** 2).sum())
    def scaled(p: Tensor, x: Tensor) -> Tensor:
        x *= p
        return x

    with pytest.raises(bilevel.InputError, match=r"scaled has written to a tensor .* Clone it"):
        scaled(phi, torch.ones(2, dtype=F64))


def test_inference_tensors_are_taken() -> None:
    with torch.inference_mode():
        matrix = 2 * torch.eye(2, dtype=F64)
    phi = torch.ones(2, dtype=F64, requires_grad=True)
    root = bilevel.root(lambda p, x, A: A @ x - p, phi, phi.detach() / 2, args=(matrix,))
    found = bilevel.linear_solve(lambda A, x: A @ x, matrix, phi)
    for x in (root, found):
        torch.testing.assert_close(
            torch.autograd.grad(x.sum(), phi)[0], torch.full_like(phi, 0.5).detach()
        )


def test_an_option_named_like_an_argument_of_the_condition_is_refused() -> None:
    phi = torch.ones(2, dtype=F64, requires_grad=True)

    def shrink(p: Tensor, scale: float = 1.0) -> Tensor:
        return p / (1 + scale)

    def penalized(p: Tensor, t: Tensor, scale: float = 1.0) -> Tensor:
        return ((t - p) ** 2).sum() + scale * (t**2).sum()

    def slope(p: Tensor, t: Tensor, *, scale: float = 1.0) -> Tensor:
        return t - p + scale * t

    def step(p: Tensor, t: Tensor, scale: float = 1.0, /) -> Tensor:
        return t - (t - p + scale * t) / 8

    for decorate, name in (
        (bilevel.custom_argmin(penalized), "inner"),
        (bilevel.custom_root(slope), "condition"),
        (bilevel.custom_fixed_point(step), "map"),
    ):
        message = f"scale is given by keyword, which reaches shrink alone, but {name} has"
        with pytest.raises(bilevel.InputError, match=message):
            decorate(shrink)(phi, scale=3.0)
    found = bilevel.custom_argmin(penalized)(shrink)(phi, 3.0)
    assert torch.autograd.grad(found.sum(), phi)[0].tolist() == pytest.approx([0.25, 0.25])


def test_an_option_may_be_named_like_the_solution() -> None:
    def settle(p: Tensor, theta: Tensor) -> Tensor:
        return theta + (p - theta)

    solve = bilevel.custom_argmin(lambda p, theta, *args: ((theta - p) ** 2).sum())(settle)
    phi = torch.ones(2, dtype=F64, requires_grad=True)
    found = solve(phi, theta=torch.zeros(2, dtype=F64))
    assert torch.autograd.grad(found.sum(), phi)[0].tolist() == pytest.approx([1.0, 1.0])
