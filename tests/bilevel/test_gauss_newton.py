"""Gauss-Newton curvature where it equals the Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, normal
from tests.bilevel.problems import (
    LABELS,
    X,
    data_weighting,
    logistic,
)

PRECISION = 1e-8


@pytest.mark.parametrize("solver", [bilevel.CG(rtol=1e-13), bilevel.Exact(), bilevel.GMRES()])
def test_gauss_newton_of_a_linear_model_is_the_hessian(solver: bilevel.Solver) -> None:
    problem = logistic()
    curvature = bilevel.GaussNewton(
        lambda p, t: X @ t,
        lambda p, z: (torch.nn.functional.softplus(z) - LABELS * z).mean(),
        lambda p, t: (p.exp() * t * t).sum() / 2,
    )
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=solver, curvature=curvature
    )
    assert error(found, problem.gradient) < PRECISION


def test_gauss_newton_whose_loss_depends_on_phi_is_the_hessian() -> None:
    problem = data_weighting()

    def loss(p: Tensor, z: Tensor) -> Tensor:
        return (torch.sigmoid(p) * (torch.nn.functional.softplus(z) - LABELS * z)).mean()

    curvature = bilevel.GaussNewton(lambda p, t: X @ t, loss, lambda p, t: 0.1 * (t @ t))
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, curvature=curvature
    )
    assert error(found, problem.gradient) < PRECISION


def test_gauss_newton_of_a_model_that_fits_exactly_is_the_hessian() -> None:
    goal = torch.tanh(X @ normal(5, seed=70))

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return ((torch.tanh(X @ t) - goal - p) ** 2).sum() / 2

    def outer(p: Tensor, t: Tensor) -> Tensor:
        return (t**3).sum()

    phi, theta = torch.zeros(12, dtype=torch.float64), normal(5, seed=70)
    curvature = bilevel.GaussNewton(
        lambda p, t: torch.tanh(X @ t), lambda p, z: ((z - goal - p) ** 2).sum() / 2
    )
    exact = bilevel.implicit_grad(outer, inner, phi, theta)
    found = bilevel.implicit_grad(outer, inner, phi, theta, curvature=curvature)
    assert error(found, exact) < PRECISION
