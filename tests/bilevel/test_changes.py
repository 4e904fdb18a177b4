"""A function that is not what it was when its solution was attached is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vjp, vmap

import bilevel
from tests.bilevel.problems import normal, spd

F64 = torch.float64
CHANGED = "gives another value than when the solution was attached"
TURNED = "gives another derivative than when the solution was attached"
ONE = torch.ones(3, dtype=F64)

Attached = Callable[..., Tensor]


def argmin(a: Tensor, phi: Tensor) -> Tensor:
    """``a * phi``, from a function that closes over ``a``."""
    return bilevel.argmin(lambda p, t: ((t - a * p) ** 2).sum(), phi, (a * phi).detach())


def root(a: Tensor, phi: Tensor) -> Tensor:
    return bilevel.root(lambda p, x: x - a * p, phi, (a * phi).detach())


def fixed_point(a: Tensor, phi: Tensor) -> Tensor:
    return bilevel.fixed_point(lambda p, x: x / 2 + a * p / 2, phi, (a * phi).detach())


every_way = pytest.mark.parametrize("attached", [argmin, root, fixed_point])


@pytest.mark.parametrize("how", [bilevel.argmin, bilevel.root, bilevel.fixed_point])
def test_functions_of_a_loop_are_refused_where_they_share_a_variable_and_right_with_args(
    how: Callable[..., Tensor],
) -> None:
    function = {
        bilevel.argmin: lambda p, t, a: (t - a * p) ** 2,
        bilevel.root: lambda p, t, a: t - a * p,
        bilevel.fixed_point: lambda p, t, a: a * p + 0 * t,
    }[how]
    phi = torch.tensor(1.0, dtype=F64, requires_grad=True)
    shared, passed = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    for a in (1.0, 2.0, 3.0):
        shared = shared + how(lambda p, t: function(p, t, a), phi, (a * phi).detach())  # noqa: B023
        passed = passed + how(function, phi, (a * phi).detach(), args=(a,))
    assert float(torch.autograd.grad(passed, phi)[0]) == pytest.approx(6)
    with pytest.raises(bilevel.InputError, match=CHANGED):
        torch.autograd.grad(shared, phi)


@every_way
def test_a_buffer_refilled_before_the_backward_is_refused(attached: Attached) -> None:
    batch, phi = ONE.clone(), ONE.clone().requires_grad_()
    solution = attached(batch, phi)
    (found,) = torch.autograd.grad(solution.sum(), phi, retain_graph=True)
    torch.testing.assert_close(found, ONE)
    batch.fill_(5.0)
    with pytest.raises(bilevel.InputError, match=CHANGED):
        torch.autograd.grad(solution.sum(), phi)


@every_way
def test_a_change_between_the_first_derivative_and_the_second_is_refused(
    attached: Attached,
) -> None:
    batch, phi = ONE.clone(), ONE.clone().requires_grad_()
    solution = attached(batch, phi**2)
    (first,) = torch.autograd.grad((solution**2).sum(), phi, create_graph=True)
    torch.testing.assert_close(first, 4 * ONE)
    batch.data.fill_(5.0)  # past the version counter, by which autograd would notice itself
    with pytest.raises(bilevel.InputError, match=CHANGED):
        torch.autograd.grad(first.sum(), phi)


@pytest.mark.parametrize("batched", [False, True])
@every_way
def test_a_pullback_called_after_a_change_is_refused(attached: Attached, batched: bool) -> None:
    batch = ONE.clone()
    function = lambda phi: attached(batch, phi)  # noqa: E731
    phi = torch.stack([ONE, 2 * ONE]) if batched else ONE
    value, pull = vjp(vmap(function) if batched else function, phi)[:2]
    torch.testing.assert_close(pull(torch.ones_like(value))[0], torch.ones_like(phi))
    batch.fill_(5.0)
    with pytest.raises(bilevel.InputError, match=CHANGED):
        pull(torch.ones_like(value))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_condition_that_is_rounding_and_never_the_same_is_no_change(dtype: torch.dtype) -> None:
    matrix, phi = spd(40, 1).to(dtype), normal(40, seed=2).to(dtype).requires_grad_()
    orders = itertools.cycle([torch.arange(40), torch.arange(40).flip(0), torch.arange(40).roll(7)])
    seen = set()

    def condition(p: Tensor, x: Tensor) -> Tensor:
        order = next(orders)
        found = (matrix[:, order] * x[order]).sum(1) - p
        seen.add(float(found.detach()[0]))
        return found

    x = bilevel.root(condition, phi, torch.linalg.solve(matrix, phi.detach()), symmetric=True)
    (found,) = torch.autograd.grad(x.sum(), phi)
    wanted = torch.linalg.solve(matrix, torch.ones(40, dtype=dtype))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert len(seen) > 1


def test_a_problem_inside_that_is_solved_a_little_further_each_time_is_no_change() -> None:
    phi = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    state = {"x": phi.detach().sqrt() + 1e-4}

    def inner(p: Tensor, t: Tensor) -> Tensor:
        x = state["x"] = (state["x"] + p.detach() / state["x"]) / 2  # Newton for sqrt(p)
        return ((t - bilevel.root(lambda q, y: y**2 - q, p, x)) ** 2).sum()

    theta = bilevel.argmin(inner, phi, phi.detach().sqrt())
    (found,) = torch.autograd.grad(theta.sum(), phi)
    torch.testing.assert_close(found, 0.5 / phi.detach().sqrt(), rtol=1e-6, atol=0)


def test_a_value_that_is_not_a_number_is_left_to_the_solve_to_report() -> None:
    weight, phi = ONE.clone(), ONE.clone().requires_grad_()
    solution = bilevel.argmin(lambda p, t: (weight * (t - p) ** 2).sum(), phi, ONE)
    weight.fill_(torch.nan)
    with pytest.raises(bilevel.NonFiniteError):
        torch.autograd.grad(solution.sum(), phi)


ZERO, CENTRE = torch.zeros(3, dtype=F64), torch.tensor([0.3, -0.7, 1.1], dtype=F64)
SPD, DATA = spd(3, 1), normal(5, 3, seed=3)

# What is the same at the solution, and not around it: the function, phi, the solution, both states.
Unseen = tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor, Tensor, Tensor, Tensor]
UNSEEN: dict[str, Unseen] = {
    "a curvature where theta is 0": (
        bilevel.argmin,
        lambda a, p, t: 0.5 * a * t @ SPD @ t - (p * t).sum(),
        ZERO,
        ZERO,
        torch.tensor(1.0, dtype=F64),
        torch.tensor(3.0, dtype=F64),
    ),
    "a coupling where phi is 0": (
        bilevel.argmin,
        lambda a, p, t: 0.5 * t @ SPD @ t - a * (p * t).sum(),
        ZERO,
        ZERO,
        torch.tensor(1.0, dtype=F64),
        torch.tensor(4.0, dtype=F64),
    ),
    "weights of examples that are fitted exactly": (
        bilevel.argmin,
        lambda a, p, t: (a * (DATA @ t - p) ** 2).sum(),
        DATA @ CENTRE,
        CENTRE,
        torch.ones(5, dtype=F64),
        torch.tensor([1.0, 0.0, 0.0, 5.0, 9.0], dtype=F64),
    ),
    "the weight of a proximal term at its centre": (
        bilevel.argmin,
        lambda a, p, t: ((t - p) ** 2).sum() + 1e3 + a * ((t - CENTRE) ** 2).sum(),
        CENTRE,
        CENTRE,
        torch.tensor(0.0, dtype=F64),
        torch.tensor(1e-2, dtype=F64),
    ),
    "the matrix of a root at 0": (
        bilevel.root,
        lambda a, p, x: a * (SPD @ x) - p,
        ZERO,
        ZERO,
        torch.tensor(1.0, dtype=F64),
        torch.tensor(2.0, dtype=F64),
    ),
    "the coupling of a root at 0": (
        bilevel.root,
        lambda a, p, x: SPD @ x - a * p,
        ZERO,
        ZERO,
        torch.tensor(1.0, dtype=F64),
        torch.tensor(2.0, dtype=F64),
    ),
    "the rate of a fixed point at 0": (
        bilevel.fixed_point,
        lambda a, p, x: a * x.sin() + p,
        ZERO,
        ZERO,
        torch.tensor(0.1, dtype=F64),
        torch.tensor(0.5, dtype=F64),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", UNSEEN)
def test_a_change_that_cannot_be_seen_at_the_solution_is_refused(
    name: str, dtype: torch.dtype
) -> None:
    how, function, phi, solution, before, after = UNSEEN[name]
    if dtype is torch.float32:
        function = in_single_precision(function)
    phi, solution = phi.to(dtype).clone().requires_grad_(), solution.to(dtype)
    state = before.to(dtype)
    attached = how(lambda p, x: function(state, p, x), phi, solution)
    (wanted,) = torch.autograd.grad(attached.sum(), phi, retain_graph=True)
    state = after.to(dtype)
    with pytest.raises(bilevel.InputError, match=TURNED):
        torch.autograd.grad(attached.sum(), phi)
    state = before.to(dtype)
    assert torch.equal(torch.autograd.grad(attached.sum(), phi)[0], wanted)


def in_single_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: function(*(one.double() for one in given)).float()


@pytest.mark.parametrize("name", UNSEEN)
def test_a_change_that_cannot_be_seen_at_the_solution_is_refused_by_transforms_too(
    name: str,
) -> None:
    how, function, phi, solution, before, after = UNSEEN[name]
    state = before
    attached = lambda p: how(lambda q, x: function(state, q, x), p, solution)  # noqa: E731
    value, pull = vjp(vmap(attached), torch.stack([phi, phi]))[:2]
    pull(torch.ones_like(value))
    state = after
    with pytest.raises(bilevel.InputError, match=TURNED):
        pull(torch.ones_like(value))


def test_a_coupling_with_args_that_changes_is_refused() -> None:
    a, arg = ONE.clone(), ZERO.clone().requires_grad_()
    solution = bilevel.argmin(lambda p, t, u: ((t - a * u) ** 2).sum(), ONE, ZERO, args=(arg,))
    a.fill_(2.0)
    with pytest.raises(bilevel.InputError, match=TURNED):
        torch.autograd.grad(solution.sum(), arg)


def test_dropout_and_a_generator_draw_the_same_at_every_point() -> None:
    layer = torch.nn.Dropout(0.5)
    torch.manual_seed(0)
    phi = torch.zeros(200, dtype=F64, requires_grad=True)
    solution = bilevel.argmin(
        lambda p, t: (layer(t) ** 2 + t**2 / 2 - p * t).sum(), phi, torch.zeros(200, dtype=F64)
    )
    torch.rand(7)
    (found,) = torch.autograd.grad(solution.sum(), phi)
    assert {round(float(x), 6) for x in found} == {1.0, round(1 / 9, 6)}


def strict(x: Tensor) -> Tensor:
    if bool((x > 1).any()):
        raise ValueError("outside of the domain")
    return x


@pytest.mark.parametrize("barrier", [lambda t: (1 - t).log(), strict], ids=["log", "raises"])
def test_a_function_with_no_value_off_the_solution_is_differentiated_all_the_same(
    barrier: Callable[[Tensor], Tensor],
) -> None:
    at, phi = torch.full((3,), 0.99, dtype=F64), ONE.clone().requires_grad_()

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return ((t - 0.99 * p) ** 2).sum() + 0.0 * barrier(t).sum()

    (found,) = torch.autograd.grad(bilevel.argmin(inner, phi, at).sum(), phi)
    torch.testing.assert_close(found, 0.99 * ONE)


def test_a_domain_that_has_shrunk_is_a_change() -> None:
    limit, phi = torch.tensor(9.0, dtype=F64), ONE.clone().requires_grad_()
    solution = bilevel.argmin(
        lambda p, t: (torch.where(t > limit, torch.nan, 1.0) * (t - p) ** 2).sum(), phi, ONE
    )
    limit.fill_(1.01)
    with pytest.raises(bilevel.InputError, match=TURNED):
        torch.autograd.grad(solution.sum(), phi)


class Cube(torch.autograd.Function):
    """A custom function that is differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def test_custom_functions_are_taken_and_their_changes_found() -> None:
    a, phi = ONE.clone(), ZERO.clone().requires_grad_()
    solution = bilevel.root(lambda p, x: a * (x + Cube.apply(x)) - p, phi, ZERO)
    (found,) = torch.autograd.grad(solution.sum(), phi, retain_graph=True)
    torch.testing.assert_close(found, ONE)
    a.fill_(2.0)
    with pytest.raises(bilevel.InputError, match=TURNED):
        torch.autograd.grad(solution.sum(), phi)


@pytest.mark.parametrize("tracked", [False, True])
def test_looking_for_changes_costs_an_evaluation_when_attaching_and_one_a_solve(
    tracked: bool,
) -> None:
    calls = []

    def inner(p: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return ((t - p) ** 2).sum()

    solution = bilevel.argmin(inner, ONE.clone().requires_grad_(tracked), ONE)
    assert len(calls) == 1 + tracked
    if tracked:
        solution.sum().backward()
        assert len(calls) == 2 + 3  # for the Hessian, for the mixed derivative, and off the point
