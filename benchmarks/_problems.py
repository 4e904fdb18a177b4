"""The problems that the benchmarks solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """Two objectives and a point, at which the inner Hessian is positive definite.

    ``data`` is what the objectives close over: inputs and targets, to train and to validate.
    """

    name: str
    outer: Callable[[Leaves, Leaves], Tensor]
    inner: Callable[[Leaves, Leaves], Tensor]
    phi: Leaves
    theta: Leaves
    data: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def size(self) -> int:
        """Number of inner parameters."""
        return sum(leaf.numel() for leaf in self.theta.values())


def mlp(
    name: str,
    widths: tuple[int, ...],
    batch: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    log_penalty: float = -5.0,
) -> Problem:
    """A tanh network that fits its own outputs, with one L2 penalty per weight matrix and bias.

    At a perfect fit the Hessian of the squared error is its Gauss-Newton matrix, so that with the
    penalties it is positive definite, and as badly conditioned as those of trained networks.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:  # the same numbers in every precision
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.float().to(dtype).to(device)

    depth = len(widths) - 1
    theta: Leaves = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        theta[f"weight{layer}"] = normal(fan_out, fan_in) / fan_in**0.5
        theta[f"bias{layer}"] = 0.1 * normal(fan_out)
    phi = {key: torch.tensor(log_penalty, dtype=dtype, device=device) for key in theta}
    x, x_validation = normal(batch, widths[0]), normal(batch, widths[0])

    def network(theta: Leaves, x: Tensor) -> Tensor:
        for layer in range(depth):
            x = linear(x, theta[f"weight{layer}"], theta[f"bias{layer}"])
            x = torch.tanh(x) if layer < depth - 1 else x
        return x

    y, y_validation = network(theta, x), normal(batch, widths[-1])

    def inner(phi: Leaves, theta: Leaves) -> Tensor:
        error = ((network(theta, x) - y) ** 2).mean()
        return (
            error
            + torch.stack([phi[key].exp() * (leaf**2).sum() for key, leaf in theta.items()]).sum()
        )

    def outer(phi: Leaves, theta: Leaves) -> Tensor:
        return ((network(theta, x_validation) - y_validation) ** 2).mean()

    return Problem(name, outer, inner, phi, theta, (x, y, x_validation, y_validation))


def both_mlps(device: str) -> tuple[Problem, Problem]:
    """Where multiplication dominates, and where overhead does."""
    return (
        mlp("MLP, 266 610 parameters", (784, 300, 100, 10), 256, device),
        mlp("MLP, 1 002 parameters", (20, 32, 10), 64, device),
    )


def logistic(device: str, dtype: torch.dtype = torch.float64) -> Problem:
    """Multinomial logistic regression on Gaussian features of unequal scale, 650 parameters."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, 64, dtype=dtype)
    truth = torch.randn(64, 10, generator=generator, dtype=dtype)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 64, generator=generator, dtype=dtype) * scales
        return x.to(device), (x @ truth).argmax(1).to(device)

    (x, y), (x_validation, y_validation) = sample(500), sample(500)
    theta = {
        "weight": torch.zeros(10, 64, dtype=dtype, device=device),
        "bias": torch.zeros(10, dtype=dtype, device=device),
    }
    phi = {key: torch.tensor(-7.0, dtype=dtype, device=device) for key in theta}

    def inner(phi: Leaves, theta: Leaves) -> Tensor:
        penalty = sum(phi[key].exp() * (leaf**2).sum() for key, leaf in theta.items())
        return cross_entropy(linear(x, theta["weight"], theta["bias"]), y) + penalty

    def outer(phi: Leaves, theta: Leaves) -> Tensor:
        return cross_entropy(linear(x_validation, theta["weight"], theta["bias"]), y_validation)

    data = (x, y, x_validation, y_validation)
    return Problem("logistic regression, 650 parameters", outer, inner, phi, theta, data)
