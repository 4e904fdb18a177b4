"""Options that do not fit are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import bilevel
from tests.bilevel.refusals import (
    F64,
    INF,
    NAN,
    PHI,
    THETA,
    never,
    outer,
    raises,
)

pytestmark = pytest.mark.usefixtures("nothing_changes")


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"damping": -1e-9}, "damping must be a finite number of at least 0, found -1e-09"),
    ({"damping": NAN}, "damping must be a finite number of at least 0, found nan"),
    ({"damping": INF}, "damping must be a finite number of at least 0, found inf"),
    ({"damping": "1"}, "damping must be a finite number of at least 0, found '1'"),
    ({"damping": None}, "damping must be a finite number of at least 0, found None"),
    ({"solver": "cg"}, "solver must be a bilevel solver such as bilevel.CG(), found 'cg'"),
    ({"solver": bilevel.CG}, "(a class: call it)"),
    ({"solver": 3}, "solver must be a bilevel solver such as bilevel.CG(), found 3"),
    ({"on_failure": "log"}, 'on_failure must be "warn", "raise" or "ignore", found \'log\''),
    ({"on_failure": None}, 'on_failure must be "warn", "raise" or "ignore", found None'),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_an_option_that_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with raises(message):
        bilevel.implicit_grad(never, never, PHI, THETA, **options)
    with raises(message):
        bilevel.ImplicitProblem(never, never, **options)
    with raises(message):
        bilevel.argmin(never, PHI, THETA, **options)
    if "damping" not in options:
        for attach in (bilevel.root, bilevel.fixed_point):
            with raises(message):
                attach(never, PHI, THETA, **options)
        with raises(message):
            bilevel.solve(bilevel.Identity(2), torch.ones(2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hvp": "forward"}, "hvp must be one of auto, reverse, forward_over_reverse, finite"),
        ({"hvp": None}, "found None"),
        ({"curvature": "gauss-newton"}, "curvature must be None or a bilevel.GaussNewton"),
        ({"curvature": bilevel.GaussNewton}, "curvature must be None or a bilevel.GaussNewton"),
        ({"outer": 3.0}, "outer must be a function"),
        ({"inner": THETA}, "inner must be a function"),
        ({"inner": None}, "inner must be a function"),
    ],
)
def test_a_problem_that_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    options = {"outer": never, "inner": never, **options}
    with raises(message):
        bilevel.ImplicitProblem(**options)
    with raises(message):
        bilevel.implicit_grad(phi=PHI, theta=THETA, **options)


@pytest.mark.parametrize("attach", [bilevel.argmin, bilevel.root, bilevel.fixed_point])
def test_something_that_cannot_be_called_is_named(attach: Callable[..., Any]) -> None:
    with raises("must be a function"):
        attach(3.0, PHI, THETA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bilevel.Neumann(terms=0), "Neumann: terms must be an integer of at least 1"),
        (lambda: bilevel.Neumann(terms=-3), "found -3"),
        (lambda: bilevel.Neumann(terms=2.5), "found 2.5"),  # type: ignore[arg-type]
        (lambda: bilevel.Neumann(terms=True), "found True"),
        (lambda: bilevel.Neumann(step=0.0), "Neumann: step must be finite and above 0"),
        (lambda: bilevel.Neumann(step=NAN), "Neumann: step must be finite and above 0"),
        (lambda: bilevel.Neumann(step="best"), 'Neumann: step must be a number or "auto"'),  # type: ignore[arg-type]
        (lambda: bilevel.CG(rtol=1.0), "CG: rtol must be in [0, 1)"),
        (lambda: bilevel.CG(rtol=-1e-3), "CG: rtol must be in [0, 1)"),
        (lambda: bilevel.CG(rtol=NAN), "CG: rtol must be in [0, 1)"),
        (lambda: bilevel.MINRES(atol=-1.0), "MINRES: atol must be a finite number"),
        (lambda: bilevel.BiCGStab(max_steps=0), "BiCGStab: max_steps must be an integer"),
        (lambda: bilevel.GMRES(restart=0), "GMRES: restart must be an integer of at least 1"),
        (lambda: bilevel.Nystrom(rank=0), "Nystrom: rank must be an integer of at least 1"),
        (lambda: bilevel.Nystrom(rank=2, rho=0.0), "Nystrom: rho must be finite and above 0"),
        (lambda: bilevel.Exact(max_size=0), "Exact: max_size must be an integer of at least 1"),
        (lambda: bilevel.ScaledIdentity(-1.0), "ScaledIdentity: scale must be finite"),
        (lambda: bilevel.Chebyshev(lower=2.0, upper=1.0), "Chebyshev: lower 2.0 is above upper"),
    ],
)
def test_a_solver_of_impossible_numbers_is_refused_where_it_is_made(
    make: Callable[[], Any], message: str
) -> None:
    with raises(message):
        make()


def test_a_problem_too_large_to_write_down_is_refused_before_it_is() -> None:
    theta = torch.zeros(9, dtype=F64)
    with raises("Exact: the operator is 9 x 9"):
        bilevel.implicit_grad(
            outer,
            lambda p, t: (t**2).sum() * p.sum(),
            PHI,
            theta + 1,
            solver=bilevel.Exact(max_size=8),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bilevel.CG(atol="x"), "atol must be a finite number of at least 0, found 'x'"),  # type: ignore[arg-type]
        (lambda: bilevel.Jacobi(probes="3"), "probes must be an integer of at least 1, found '3'"),  # type: ignore[arg-type]
        (lambda: bilevel.NystromPreconditioner(rank=0), "rank must be an integer of at least 1"),
        (lambda: bilevel.ScaledIdentity("a"), "scale must be finite and above 0, found 'a'"),  # type: ignore[arg-type]
        (lambda: bilevel.Chebyshev(lower="a"), "lower must be finite and above 0, found 'a'"),  # type: ignore[arg-type]
        (lambda: bilevel.Nystrom(2, rho="a"), "rho must be finite and above 0, found 'a'"),  # type: ignore[arg-type]
    ],
)
def test_a_number_of_a_solver_that_is_none_is_named(make: Callable[[], Any], message: str) -> None:
    with raises(message):
        make()


@pytest.mark.parametrize("given", ["Jacobi", bilevel.Jacobi, 3.0])
def test_a_preconditioner_that_is_none_is_named(given: Any) -> None:
    for solver in (bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab):
        with raises("wanted an object such as bilevel.Jacobi(), or a function of a vector [n]"):
            bilevel.solve(bilevel.Identity(2), torch.ones(2), solver(preconditioner=given))
