"""Solutions of nonlinear problems, attached by the package and by differentiated Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.problems import normal, spd

F64 = torch.float64
N, P = 3, 2
A, C, M = spd(N, seed=0), normal(N, P, seed=1), normal(N, N, seed=2)
W = normal(N, seed=3)
PHI = normal(P, seed=4)
PHIS = normal(4, P, seed=5)
SCALE = torch.tensor(1.3, dtype=F64)


def inner(phi: Tensor, theta: Tensor, scale: Tensor = SCALE) -> Tensor:
    """Convex in theta; no derivative of any order is constant."""
    quadratic = (theta @ A @ theta) / 2 + (theta @ C @ phi.sin()) * scale
    return quadratic + (theta**4).sum() / 4 + (phi[0].exp() * theta**2).sum() / 3


def condition(phi: Tensor, x: Tensor, scale: Tensor = SCALE) -> Tensor:
    """Its Jacobian is not symmetric."""
    return _condition_field(phi, x, scale)[0]


def contraction(phi: Tensor, x: Tensor, scale: Tensor = SCALE) -> Tensor:
    return 0.4 * torch.tanh(M @ x / 2 + C @ phi * scale) + phi[0].sin() / 2


def outer(phi: Tensor, theta: Tensor) -> Tensor:
    return (W * theta).sum().sin() + (theta**2).sum() * phi[1] + (phi**3).sum()


def _inner_field(phi: Tensor, theta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of inner and its Hessian, by hand."""
    curvature = 2 / 3 * phi[0].exp()
    slope = A @ theta + C @ phi.sin() * scale + theta**3 + curvature * theta
    return slope, A + torch.diag(3 * theta**2) + curvature * torch.eye(N, dtype=F64)


def _condition_field(phi: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    slope, matrix = _inner_field(phi, x, scale)
    bend = torch.tanh(M @ x)
    more = 0.3 * phi[1].cos() * (1 - bend**2).unsqueeze(1) * M
    return slope + 0.3 * bend * phi[1].cos(), matrix + more


def _contraction_field(phi: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    bend = torch.tanh(M @ x / 2 + C @ phi * scale)
    matrix = torch.eye(N, dtype=F64) - 0.2 * (1 - bend**2).unsqueeze(1) * M
    return x - 0.4 * bend - phi[0].sin() / 2, matrix


@dataclass(frozen=True)
class Case:
    """A solution attached by the package, and the field (with its Jacobian) it is the root of."""

    name: str
    field: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    function: Callable[..., Tensor]
    attach: Callable[..., Tensor]

    def solution(self, phi: Tensor, scale: Tensor = SCALE) -> Tensor:
        """Newton's method to rounding, in operations that every transform carries."""
        phi, scale = phi.detach(), scale.detach()
        x = torch.zeros(N, dtype=F64)
        for _ in range(12):
            x = self._newton(phi, x, scale)
        return x

    def attached(self, phi: Tensor, scale: Tensor = SCALE, **options: Any) -> Tensor:
        """The package's answer."""
        return self.attach(self.function, phi, self.solution(phi, scale), args=(scale,), **options)

    def exact(self, phi: Tensor, scale: Tensor = SCALE) -> Tensor:
        """The same by two Newton steps from the root: right to the third order of derivatives."""
        x = self.solution(phi, scale)
        return self._newton(phi, self._newton(phi, x, scale), scale)

    def _newton(self, phi: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        value, matrix = self.field(phi, x, scale)
        # Not torch.linalg.solve: vmap of its forward derivative is wrong in torch 2.13.
        return x - torch.linalg.inv(matrix) @ value


ARGMIN = Case("argmin", _inner_field, inner, bilevel.argmin)
ROOT = Case("root", _condition_field, condition, bilevel.root)
FIXED_POINT = Case("fixed_point", _contraction_field, contraction, bilevel.fixed_point)
CASES = (ARGMIN, ROOT, FIXED_POINT)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

GENERAL: dict[str, bilevel.Solver] = {
    "Auto": bilevel.Auto(),
    "GMRES": bilevel.GMRES(rtol=1e-13),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-13),
    "Neumann": bilevel.Neumann(terms=400, step=0.1, rtol=1e-13),
}
SYMMETRIC: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=1e-13),
    "preconditioned CG": bilevel.CG(rtol=1e-13, preconditioner=bilevel.Jacobi()),
    "MINRES": bilevel.MINRES(rtol=1e-13),
    "Chebyshev": bilevel.Chebyshev(rtol=1e-13),
    "Neumann with automatic step": bilevel.Neumann(terms=2000, rtol=1e-13),
}
TRUNCATED: dict[str, bilevel.Solver] = {
    "ScaledIdentity": bilevel.ScaledIdentity(0.1),
    "three Neumann terms": bilevel.Neumann(terms=3, step=0.1),
    "two CG steps": bilevel.CG(rtol=None, max_steps=2),
    "two GMRES steps": bilevel.GMRES(rtol=None, max_steps=2),
}


def assert_near(found: Any, wanted: Any, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-10)


def fits(case: Case) -> list[bilevel.Solver]:
    return [*GENERAL.values(), *(SYMMETRIC.values() if case is ARGMIN else ())]
