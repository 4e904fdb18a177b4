"""Cubes whose backward is not differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.bilevel.problems import normal


class OnceDifferentiable(torch.autograd.Function):
    """A cube whose backward is marked as not differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


class OnceDifferentiableBowl(torch.autograd.Function):
    """The same of ``|x|^3``, which has a minimum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs() ** 3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x.abs() * x


class OutsideAutograd(torch.autograd.Function):
    """A cube whose backward is a kernel autograd knows nothing of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x = ctx.saved_tensors[0].detach().numpy()
        return torch.from_numpy(grads[0].detach().numpy() * 3 * x**2)


CUBE_THETA = normal(3, seed=7).abs()
CUBE_PHI = normal(3, seed=8)
