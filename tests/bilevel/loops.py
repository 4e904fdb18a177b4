"""Loops over a quadratic and over a small network with dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import bilevel

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
GOAL = torch.tensor([1.0, -2.0], dtype=torch.float64)


def inner(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return 0.5 * theta[0] @ A @ theta[0] - theta[0] @ C @ phi[0]


def outer(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return ((theta[0] - GOAL) ** 2).sum() + 0.1 * (phi[0] ** 2).sum()


def pair() -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    return torch.zeros(2, **kind), torch.ones(2, **kind)


def quadratic(**options: Any) -> bilevel.BilevelOptimizer:
    phi, theta = pair()
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner, solver=bilevel.CG(rtol=1e-12)),
        torch.optim.SGD([phi], lr=0.3),
        torch.optim.SGD([theta], lr=0.25),
        **options,
    )


class Regression:
    """A small network with dropout: phi weighs its penalties, theta are its parameters."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.x, self.y = torch.randn(16, 4), torch.randn(16, 1)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
        )
        self.theta: dict[str, Tensor] = dict(self.network.named_parameters())
        self.phi = {"log_penalty": torch.full((), -2.0, requires_grad=True)}

    def loss(self, theta: dict[str, Tensor]) -> Tensor:
        prediction = torch.func.functional_call(self.network, theta, (self.x,))
        return ((prediction - self.y) ** 2).mean()

    def inner(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        penalty = torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()
        return self.loss(theta) + phi["log_penalty"].exp() * penalty

    def outer(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        return self.loss(theta)

    def loop(self) -> bilevel.BilevelOptimizer:
        inner_optimizer = torch.optim.SGD(self.theta.values(), lr=0.05, momentum=0.9)
        outer_optimizer = torch.optim.Adam(self.phi.values(), lr=0.1)
        return bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(
                self.outer,
                self.inner,
                solver=bilevel.CG(rtol=None, max_steps=4, preconditioner=bilevel.Jacobi(probes=4)),
                damping=0.5,
                on_failure="ignore",
            ),
            outer_optimizer,
            inner_optimizer,
            phi=self.phi,
            theta=self.theta,
            inner_steps=2,
            accumulate=2,
            reuse_state=3,
            outer_scheduler=torch.optim.lr_scheduler.ExponentialLR(outer_optimizer, 0.9),
            inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 5),
        )


def momentum() -> bilevel.BilevelOptimizer:
    phi, theta = pair()
    inner_optimizer = torch.optim.SGD([theta], lr=0.25, momentum=0.5)
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        torch.optim.Adam([phi], lr=0.3),
        inner_optimizer,
        accumulate=2,
        reuse_state=2,
        inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 2),
    )


def assert_same(found: Any, wanted: Any) -> None:
    """Deep equality, to the bit."""
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, item in wanted.items():
            assert_same(found[key], item)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted
