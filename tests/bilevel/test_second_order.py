"""Derivatives of second and third order against their closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, normal
from tests.bilevel.problems import (
    EQUATIONS,
    Quadratic,
    ridge_inner,
    ridge_solution,
)

PRECISION = 1e-8


SECOND_ORDER = {
    "Exact": bilevel.Exact(),
    "Auto": None,
    "CG": bilevel.CG(rtol=1e-13),
    "CG Jacobi": bilevel.CG(rtol=1e-13, preconditioner=bilevel.Jacobi()),
    "MINRES": bilevel.MINRES(rtol=1e-13),
    "GMRES": bilevel.GMRES(rtol=1e-13),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-13),
    "Neumann": bilevel.Neumann(terms=4000, rtol=1e-13),
    "Chebyshev": bilevel.Chebyshev(rtol=1e-13),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_hessian_of_the_quadratic_is_its_constant(name: str) -> None:
    data, phi = Quadratic.random(), normal(4, seed=20)
    theta = data.solution(phi)

    def value(p: Tensor) -> Tensor:
        return data.outer(p, bilevel.argmin(data.inner, p, theta, solver=SECOND_ORDER[name]))

    wanted = data.hessian()
    plain = torch.autograd.functional.hessian(value, phi)
    assert isinstance(plain, Tensor)
    assert error(plain, wanted) < PRECISION
    assert error(torch.func.hessian(value)(phi), wanted) < PRECISION
    assert error(torch.func.jacrev(torch.func.jacrev(value))(phi), wanted) < PRECISION


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_second_derivative_of_ridge_is_twice_the_inverse_squared(name: str) -> None:
    lam = torch.tensor(0.7, dtype=torch.float64)
    theta, H = ridge_solution(lam)
    first = -torch.linalg.solve(H, theta)
    second = -2 * torch.linalg.solve(H, first)

    def solution(penalty: Tensor) -> Tensor:
        return bilevel.argmin(ridge_inner, penalty, theta, solver=SECOND_ORDER[name])

    assert error(torch.func.jacrev(solution)(lam), first) < PRECISION
    assert error(torch.func.jacfwd(solution)(lam), first) < PRECISION
    assert error(torch.func.jacfwd(torch.func.jacrev(solution))(lam), second) < PRECISION
    assert error(torch.func.jacrev(torch.func.jacfwd(solution))(lam), second) < PRECISION


def test_the_third_derivative_of_ridge_is_right_too() -> None:
    lam = torch.tensor(0.7, dtype=torch.float64)
    theta, H = ridge_solution(lam)
    third = theta
    for order in (1, 2, 3):
        third = -order * torch.linalg.solve(H, third)

    def solution(penalty: Tensor) -> Tensor:
        return bilevel.argmin(ridge_inner, penalty, theta)

    found = torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(solution)))(lam)
    assert error(found, third) < PRECISION


def test_the_second_derivative_of_the_cosine_fixed_point_is_right() -> None:
    problem = EQUATIONS[1]
    z = float(problem.theta)
    first = 1 / (1 + torch.sin(problem.theta))
    second = -torch.cos(problem.theta) * first**3  # d/dp of 1 / (1 + sin z(p))

    def solution(p: Tensor) -> Tensor:
        return bilevel.fixed_point(problem.inner, p, problem.theta)

    found = torch.func.hessian(lambda p: solution(p).sum())(problem.phi)
    assert abs(z - float(torch.cos(problem.theta) + problem.phi)) < 1e-14
    assert error(found.reshape(1), second) < PRECISION
