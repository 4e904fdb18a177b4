"""Numbers that are not finite are named where they are seen first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.refusals import (
    F64,
    INF,
    NAN,
    PHI,
    THETA,
    inner,
    never,
    outer,
    raises,
)

pytestmark = pytest.mark.usefixtures("nothing_changes")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["phi", "theta"])
def test_a_leaf_that_is_not_finite_is_named_before_anything_runs(name: str, bad: float) -> None:
    spoilt = {"a": THETA, "b": [torch.tensor([1.0, bad, bad], dtype=F64)]}
    trees: dict[str, Any] = {"phi": PHI, "theta": THETA, name: spoilt}
    problem = bilevel.ImplicitProblem(never, never)
    for call in (problem.implicit_grad, problem.operator, problem.stationarity, problem.refine):
        with raises(f"{name}['b'][0] holds 2 non-finite value(s) of 3", bilevel.NonFiniteError):
            call(**trees)


def test_finite_numbers_whose_sum_is_not_are_no_error() -> None:
    big = torch.full((4,), 3e38, dtype=torch.float32)
    gradient = bilevel.implicit_grad(
        lambda p, t: (t / 4).sum(), lambda p, t: ((t - p) ** 2).sum(), big, big
    )
    torch.testing.assert_close(gradient, torch.full((4,), 0.25))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("hvp", ["auto", "forward_over_reverse", "finite_difference"])
def test_a_derivative_that_is_not_finite_is_named(hvp: Any, bad: float) -> None:
    # A product with a zero that is masked out: finite values, derivatives that are not.
    def poisoned(x: Tensor, order: int) -> Tensor:
        return torch.where(x > -1e9, x**2, x) + Poison.apply(x, order, bad)

    for order, where in ((0, "the value of"), (1, "the gradient of")):
        with raises(f"{where} outer", bilevel.NonFiniteError):
            bilevel.implicit_grad(
                lambda p, t, n=order: poisoned(t, n).sum(), inner, PHI, THETA, hvp=hvp
            )
        with raises(f"{where} inner", bilevel.NonFiniteError):
            bilevel.implicit_grad(
                outer,
                lambda p, t, n=order: poisoned(t - p, n).sum(),
                PHI,
                THETA,
                hvp=hvp,
            )


class Poison(torch.autograd.Function):
    """Zero, with a bad value (order 0) or a bad derivative (order 1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: int, bad: float) -> Tensor:
        return torch.zeros_like(x) + (bad if order == 0 else 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.order, ctx.bad = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * (ctx.bad if ctx.order == 1 else 0.0), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0] * (ctx.bad if ctx.order == 1 else 0.0)


@pytest.mark.parametrize("on_failure", ["warn", "ignore", "raise"])
@pytest.mark.parametrize(
    "solver",
    [
        None,
        bilevel.Exact(),
        bilevel.CG(),
        bilevel.MINRES(),
        bilevel.GMRES(),
        bilevel.BiCGStab(),
        bilevel.Chebyshev(),
        bilevel.Neumann(),
        bilevel.Neumann(terms=3, step=0.1),
        bilevel.Nystrom(rank=2),
        bilevel.ScaledIdentity(),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.filterwarnings("ignore::bilevel.ConvergenceWarning")
def test_a_product_that_is_not_finite_raises_whatever_is_said_of_failures(
    solver: bilevel.Solver | None, on_failure: Any
) -> None:
    # |t|^1.5 at 0 has the slope 0 and an infinite curvature.
    with pytest.raises(bilevel.NonFiniteError):
        bilevel.implicit_grad(
            lambda p, t: (t + 1).square().sum(),
            lambda p, t: (t.abs() ** 1.5).sum() + ((t - p) ** 2).sum(),
            PHI,
            torch.zeros(2, dtype=F64),
            solver=solver,
            on_failure=on_failure,
        )


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_warm_start_that_is_not_finite_is_named(bad: float) -> None:
    with raises("initial holds 1 non-finite value(s) of 2", bilevel.NonFiniteError):
        bilevel.implicit_grad(never, never, PHI, THETA, initial=torch.tensor([1.0, bad], dtype=F64))


def test_a_mixed_derivative_that_is_not_finite_is_named() -> None:
    with raises("the hypergradient in phi holds 1 non-finite", bilevel.NonFiniteError):
        bilevel.implicit_grad(
            outer,
            lambda p, t: ((t - p.abs().sqrt()) ** 2).sum(),
            torch.tensor([1.0, 0.0], dtype=F64),
            torch.tensor([1.0, 2.0], dtype=F64),
        )
