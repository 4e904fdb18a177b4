"""Solvers of one's own, and their solutions in operations that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bilevel
from tests.bilevel.problems import normal

F64 = torch.float64
X, Y = normal(8, 3, seed=0), normal(8, seed=1)
PHI = normal(3, seed=2)
W = normal(3, seed=4)
M = 0.4 * normal(3, 3, seed=5)
Function = Callable[..., Any]


def assert_near(found: Any, wanted: Any, rtol: float = 1e-8) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-9)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a number, by central differences."""
    units = step * torch.eye(at.numel(), dtype=F64).view(-1, *at.shape)
    found = [float(function(at + unit) - function(at - unit)) / (2 * step) for unit in units]
    return torch.tensor(found, dtype=F64).view(at.shape)


def outer(x: Tensor) -> Tensor:
    return (W * x).sum().sin() + (x**2).sum()


# Ridge regression by LBFGS, a root by Newton's method, a fixed point by iterating.


def penalized(phi: Tensor, w: Tensor, inputs: Tensor) -> Tensor:
    return ((inputs @ w - Y) ** 2).sum() / 2 + (phi.exp() * w**2).sum() / 2


def by_lbfgs(phi: Tensor, inputs: Tensor) -> Tensor:
    w = torch.zeros(3, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"tolerance_grad": 1e-13, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([w], max_iter=200, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = penalized(phi, w, inputs)
        loss.backward()
        return loss

    optimizer.step(closure)
    return w


def ridge(phi: Tensor, inputs: Tensor) -> Tensor:
    # Not torch.linalg.solve: vmap of its forward derivative is wrong in torch 2.13.
    return torch.linalg.inv(inputs.T @ inputs + phi.exp().diag()) @ inputs.T @ Y


def cubic(phi: Tensor, x: Tensor, inputs: Tensor) -> Tensor:
    return x**3 + 4 * x + M @ x - phi.sin() - inputs.sum(0)


def by_newton(phi: Tensor, inputs: Tensor, steps: int = 12) -> Tensor:
    x = torch.zeros(3, dtype=F64)
    for _ in range(steps):
        x = newton_step(phi, x, inputs)
    return x


def newton_step(phi: Tensor, x: Tensor, inputs: Tensor) -> Tensor:
    matrix = torch.diag(3 * x**2 + 4) + M
    return x - torch.linalg.inv(matrix) @ cubic(phi, x, inputs)


def layer(phi: Tensor, z: Tensor, inputs: Tensor) -> Tensor:
    return torch.tanh(M @ z + phi + inputs.mean(0))


def by_iterating(phi: Tensor, inputs: Tensor) -> Tensor:
    z = torch.zeros(3, dtype=F64)
    for _ in range(100):
        z = layer(phi, z, inputs)
    return z


def two_steps_more(phi: Tensor, z: Tensor, inputs: Tensor) -> Tensor:
    """Two Newton steps from the fixed point: right to the third order of derivatives."""
    for _ in range(2):
        image = layer(phi, z, inputs)
        matrix = torch.eye(3, dtype=F64) - (1 - image**2).unsqueeze(1) * M
        z = z - torch.linalg.inv(matrix) @ (z - image)
    return z


@dataclass(frozen=True)
class Case:
    """A solver, the same with the derivative attached, and the solution in differentiable steps."""

    name: str
    solver: Callable[..., Tensor]
    decorator: Function
    exact: Callable[[Tensor, Tensor], Tensor]

    @property
    def attached(self) -> Callable[..., Tensor]:
        return self.decorator(self.solver)


def _exact_root(phi: Tensor, inputs: Tensor) -> Tensor:
    x = by_newton(phi.detach(), inputs.detach())
    return newton_step(phi, newton_step(phi, x, inputs), inputs)


def _exact_point(phi: Tensor, inputs: Tensor) -> Tensor:
    return two_steps_more(phi, by_iterating(phi.detach(), inputs.detach()), inputs)


RIDGE = Case("argmin", by_lbfgs, bilevel.custom_argmin(penalized), ridge)
ROOT = Case("root", by_newton, bilevel.custom_root(cubic), _exact_root)
POINT = Case("fixed_point", by_iterating, bilevel.custom_fixed_point(layer), _exact_point)
