"""A module with every kind of state, and a check that nothing of it was touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bilevel.products import HVP

HVPS: tuple[HVP, ...] = ("auto", "reverse", "forward_over_reverse", "finite_difference")
MODES = pytest.mark.parametrize("hvp", HVPS)

X = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(8, 3).sin()
Y = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).unsqueeze(1)
PHI = torch.tensor([0.3, -0.2], dtype=torch.float64)


class Network(nn.Module):
    """Batch-norm and dropout in training mode, and a buffer that is replaced instead of written."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.last = nn.Linear(4, 1, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + len(x)
        return self.last(F.dropout(torch.tanh(self.norm(self.first(x))), 0.3))

    def penalised(self, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        """An inner objective that reaches the module through its own self."""
        return penalised(self, phi, theta)


def penalised(network: nn.Module, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    error = functional_call(network, theta, (X,)) - Y
    penalty = sum(((leaf - phi[1]) ** 2).sum() for leaf in theta.values())
    return (error**2).mean() * phi[0].exp() + penalty


def predicted(network: nn.Module, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return functional_call(network, theta, (X,)).square().mean() + (phi**2).sum()


class Untouched:
    """Fails unless a module, the random state and some tensors are as they were, to the bit."""

    def __init__(self, module: nn.Module, *tensors: Tensor) -> None:
        self.module, self.tensors = module, (*module.parameters(), *tensors)
        self.buffers = dict(module.named_buffers())
        self.values = [leaf.detach().clone() for leaf in (*self.tensors, *self.buffers.values())]
        for leaf in self.tensors:
            if leaf.requires_grad:
                leaf.grad = torch.full_like(leaf, 7.0)
        self.flags = [leaf.requires_grad for leaf in self.tensors]
        self.versions = [leaf._version for leaf in (*self.tensors, *self.buffers.values())]
        self.random = torch.get_rng_state()

    def check(self) -> None:
        buffers = dict(self.module.named_buffers())
        everything = (*self.tensors, *buffers.values())
        assert all(buffers[name] is buffer for name, buffer in self.buffers.items())
        for leaf, value in zip(everything, self.values, strict=True):
            assert torch.equal(leaf, value)
        assert [leaf._version for leaf in everything] == self.versions
        assert [leaf.requires_grad for leaf in self.tensors] == self.flags
        for leaf in self.tensors:
            assert leaf.grad is None or bool((leaf.grad == 7.0).all())
        assert torch.equal(torch.get_rng_state(), self.random)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def total(tree: dict[str, Tensor]) -> Tensor:
    return torch.cat([(leaf**2).reshape(-1) for leaf in tree.values()]).sum()
