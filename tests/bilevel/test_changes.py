"""A function that is not what it was when its solution was attached is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vjp, vmap

import bilevel
from tests.bilevel.problems import normal, spd

F64 = torch.float64
CHANGED = "gives another value than when the solution was attached"
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
