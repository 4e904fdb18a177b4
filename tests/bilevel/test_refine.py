"""Polishing theta: to the tolerance, from anywhere sensible, without touching the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bilevel


def logistic(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).double()
    logits = x @ theta["w"] + theta["b"]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    return loss + 0.5 * phi.exp() * ((theta["w"] ** 2).sum() + theta["b"] ** 2)


def start() -> dict[str, Tensor]:
    return {"w": torch.zeros(4, dtype=torch.float64), "b": torch.ones((), dtype=torch.float64)}


PHI = torch.tensor(-3.0, dtype=torch.float64)
PROBLEM = bilevel.ImplicitProblem(lambda phi, theta: theta["w"].sum() + phi, logistic)


@pytest.mark.parametrize(
    ("optimizer", "max_steps"),
    [
        (None, 100),
        (
            lambda leaves: torch.optim.LBFGS(
                leaves, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
            ),
            50,
        ),
        (lambda leaves: torch.optim.SGD(leaves, lr=1.0), 3000),
    ],
    ids=["newton", "lbfgs", "sgd"],
)
def test_every_way_reaches_the_tolerance(
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None, max_steps: int
) -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-7, optimizer=optimizer, max_steps=max_steps)
    assert PROBLEM.stationarity(PHI, theta) <= 1e-7


def test_newton_gets_to_rounding_in_double_precision() -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-13)
    assert PROBLEM.stationarity(PHI, theta) <= 1e-13


def test_the_start_is_not_changed_and_the_answer_needs_no_grad() -> None:
    theta = start()
    refined = PROBLEM.refine(PHI, theta)
    assert all(torch.equal(leaf, start()[name]) for name, leaf in theta.items())
    assert not any(leaf.requires_grad for leaf in refined.values())


def test_it_descends_from_a_start_of_negative_curvature() -> None:
    problem = bilevel.ImplicitProblem(
        lambda phi, theta: theta.sum(), lambda phi, theta: ((theta**2 - phi) ** 2).sum()
    )
    phi = torch.ones(3, dtype=torch.float64)
    theta = problem.refine(phi, torch.full((3,), 0.1, dtype=torch.float64), tolerance=1e-10)
    torch.testing.assert_close(theta, torch.ones(3, dtype=torch.float64))


def test_a_missed_tolerance_warns_with_both_figures() -> None:
    with pytest.warns(bilevel.ConvergenceWarning, match=r"refine stopped.*tolerance 1.00e-12"):
        PROBLEM.refine(PHI, start(), tolerance=1e-12, max_steps=1)


def test_a_minimum_is_left_where_it_is() -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-12)
    again = PROBLEM.refine(PHI, theta, tolerance=1e-11)
    assert all(torch.equal(leaf, again[name]) for name, leaf in theta.items())


def test_an_objective_that_becomes_infinite_is_named() -> None:
    problem = bilevel.ImplicitProblem(
        lambda phi, theta: theta.sum(), lambda phi, theta: (phi * theta).log().sum()
    )
    with pytest.raises(bilevel.NonFiniteError):
        problem.refine(torch.ones(2), torch.full((2,), -1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_steps": 0}, "max_steps"), ({"tolerance": -1.0}, "tolerance")],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        PROBLEM.refine(PHI, start(), **options)  # type: ignore[arg-type]
