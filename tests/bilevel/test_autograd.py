"""`argmin`, `root` and `fixed_point` under torch.autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import jacrev

import bilevel
from tests.bilevel.implicit_cases import (
    ARGMIN,
    CASES,
    F64,
    PHI,
    SCALE,
    Case,
    N,
    P,
    W,
    assert_near,
    every_case,
    fits,
    inner,
)
from tests.bilevel.problems import normal


@pytest.mark.parametrize(
    ("case", "solver"),
    [(case, solver) for case in CASES for solver in fits(case)],
    ids=lambda item: item.name if isinstance(item, Case) else type(item).__name__,
)
def test_first_and_second_derivatives_pass_gradcheck_with_the_problem_solved_anew(
    case: Case, solver: bilevel.Solver
) -> None:
    def attached(phi: Tensor, scale: Tensor) -> Tensor:
        return case.attached(phi, scale, solver=solver)

    inputs = (PHI.clone().requires_grad_(), SCALE.clone().requires_grad_())
    assert gradcheck(attached, inputs)
    assert gradgradcheck(attached, inputs)


@every_case
def test_forward_derivatives_pass_gradcheck(case: Case) -> None:
    inputs = (PHI.clone().requires_grad_(), SCALE.clone().requires_grad_())
    assert gradcheck(case.attached, inputs, check_forward_ad=True)
    assert gradgradcheck(case.attached, inputs, check_fwd_over_rev=True)


@every_case
def test_forward_mode_works_where_nothing_requires_grad(case: Case) -> None:
    tangent = normal(P, seed=6)
    with forward_ad.dual_level():
        attached = case.attached(forward_ad.make_dual(PHI, tangent))
        found = forward_ad.unpack_dual(attached).tangent
    assert_near(found, jacrev(case.exact)(PHI) @ tangent)


def test_trees_of_any_shape_pass_gradcheck() -> None:
    def attached(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        phi = torch.stack([first, second[0, 0]])
        theta = ARGMIN.solution(phi)
        tree = {"a": theta[0], "b": [theta[1:].unsqueeze(1), theta[:0]]}
        found = bilevel.argmin(
            lambda p, t: inner(
                torch.stack([p[0], p[1]["x"][0, 0]]), torch.cat([t["a"].view(1), t["b"][0].view(2)])
            ),
            (first, {"x": second}),
            tree,
        )
        assert found["b"][1].shape == (0,)
        return found["a"], found["b"][0]

    inputs = (PHI[0].clone().requires_grad_(), PHI[1:].view(1, 1).clone().requires_grad_())
    assert gradcheck(attached, inputs, check_forward_ad=True)
    assert gradgradcheck(attached, inputs)


@every_case
def test_a_third_derivative_is_right_under_autograd(case: Case) -> None:
    def derivative(function: Callable[[Tensor], Tensor]) -> Tensor:
        phi = PHI.clone().requires_grad_()
        value = (W * function(phi)).sum()
        for weights in (normal(P, seed=7), normal(P, seed=8)):
            (slope,) = torch.autograd.grad(value, phi, create_graph=True)
            value = (slope * weights).sum()
        return torch.autograd.grad(value, phi)[0]

    assert_near(derivative(case.attached), derivative(case.exact))


def test_a_solution_feeds_any_differentiable_code() -> None:
    phi = PHI.clone().requires_grad_()
    layer = nn.Linear(N, 2, dtype=F64)
    loss = layer(ARGMIN.attached(phi * 2)).square().sum() + phi.sum()
    loss.backward()
    again = PHI.clone().requires_grad_()
    (layer(ARGMIN.exact(again * 2)).square().sum() + again.sum()).backward()
    assert phi.grad is not None
    assert again.grad is not None
    assert_near(phi.grad, again.grad)


def test_damping_is_part_of_the_derivative_at_first_and_second_order() -> None:
    # inner = a t^2 / 2 - p t: dt/dp = 1 / (a + damping), its derivative in a is -1 / (...)^2.
    def slope(a: Tensor) -> Tensor:
        p = torch.tensor(2.0, dtype=F64, requires_grad=True)
        theta = (p / a).detach()
        attached = bilevel.argmin(
            lambda p, t, a: a * t**2 / 2 - p * t, p, theta, args=(a,), damping=0.5
        )
        return torch.autograd.grad(attached, p, create_graph=True)[0]

    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    assert_near(slope(a), torch.tensor(1 / 3.5, dtype=F64))
    assert_near(torch.autograd.grad(slope(a), a)[0], torch.tensor(-1 / 3.5**2, dtype=F64))


def test_a_solution_may_be_written_to_in_place() -> None:
    phi = torch.ones(3, dtype=torch.float64, requires_grad=True)
    z = bilevel.fixed_point(lambda p, z: z / 2 + p, phi, torch.full_like(phi, 2.0).detach())
    value = torch.nn.functional.relu(z, inplace=True).square().sum()
    torch.testing.assert_close(torch.autograd.grad(value, phi)[0], torch.full_like(phi, 8.0))
    tree = {"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    found = bilevel.argmin(
        lambda p, t: ((t["a"] - p) ** 2).sum() + ((t["b"] - p[:2]) ** 2).sum(), phi, tree
    )
    found["a"] *= 2
    found["b"] += 1
    (slope,) = torch.autograd.grad(found["a"].sum() + found["b"].sum(), phi)
    torch.testing.assert_close(slope, torch.tensor([3.0, 3.0, 2.0], dtype=torch.float64))
