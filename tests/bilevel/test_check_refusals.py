"""What the check of a gradient refuses, before anything is called or where a solve goes astray."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import ImplicitProblem, check_gradient
from tests.bilevel.refusals import F64, PHI, THETA, inner, never, outer, raises


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": outer}, "problem is a function; wanted a bilevel.ImplicitProblem"),
        ({"directions": 0}, "directions must be an integer of at least 1, found 0"),
        ({"directions": True}, "directions must be an integer of at least 1, found True"),
        ({"directions": 2.0}, "directions must be an integer of at least 1, found 2.0"),
        ({"step": 0.0}, "step must be finite and above 0, found 0.0"),
        ({"step": float("nan")}, "step must be finite and above 0, found nan"),
        ({"step": "auto"}, "step must be finite and above 0, found 'auto'"),
        ({"tolerance": -1}, "tolerance must be finite and above 0, found -1"),
        ({"tolerance": float("inf")}, "tolerance must be finite and above 0"),
        ({"tolerance": True}, "tolerance must be finite and above 0, found True"),
        ({"solve": THETA}, "solve must be None or a function of (phi, theta), found tensor"),
        ({"seed": 0.5}, "seed must be an integer of at least 0, found 0.5"),
        ({"seed": 2**64}, "seed must be below 2**64"),
        ({"phi": PHI.half(), "theta": THETA.half()}, "check_gradient refuses torch.float16"),
        ({"phi": PHI.bfloat16(), "theta": THETA.bfloat16()}, "refuses torch.bfloat16"),
        ({"phi": PHI[:0]}, "phi has no elements"),
        ({"phi": PHI.float()}, "theta is torch.float64 on cpu, but phi is torch.float32"),
        ({"theta": [THETA, 1]}, "theta[1] is a int"),
        ({"inner_args": PHI}, "inner_args is a Tensor; wanted a tuple"),
        ({"outer_args": PHI}, "outer_args is a Tensor; wanted a tuple"),
    ],
)
def test_bad_input_is_refused_before_anything_is_called(
    changes: dict[str, Any], message: str
) -> None:
    given = {"problem": ImplicitProblem(never, never), "phi": PHI, "theta": THETA} | changes
    with raises(message):
        check_gradient(**given)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda theta: [theta], "what solve returned has another tree structure than theta"),
        (lambda theta: theta[:1], "what solve returned has shape (1,), but theta has (2,)"),
        (lambda theta: None, "what solve returned is a NoneType"),
        (lambda theta: theta.float(), "what solve returned is torch.float32"),
    ],
)
def test_a_solution_that_does_not_fit_is_refused(found: Any, message: str) -> None:
    with raises(message):
        check_gradient(ImplicitProblem(outer, inner), PHI, THETA, solve=lambda p, t: found(t))


def test_a_solution_that_is_not_finite_is_refused() -> None:
    with raises("what solve returned holds 2 non-finite", bilevel.NonFiniteError):
        check_gradient(ImplicitProblem(outer, inner), PHI, THETA, solve=lambda p, t: t / 0)


def test_an_objective_that_is_not_finite_a_step_away_is_named() -> None:
    problem = ImplicitProblem(lambda p, t: t.sqrt().sum(), inner)
    phi = torch.full((2,), 1e-3, dtype=F64)
    with raises("NaN or infinite a step of 1.0e-01 from phi", bilevel.NonFiniteError):
        check_gradient(problem, phi, phi, step=0.1)


def test_transforms_are_refused() -> None:
    def value(phi: Tensor) -> Tensor:
        return check_gradient(ImplicitProblem(outer, inner), phi, THETA).info.implicit.sum()

    with raises("check_gradient() cannot be used inside torch.func", bilevel.TransformError):
        torch.func.grad(value)(PHI)
