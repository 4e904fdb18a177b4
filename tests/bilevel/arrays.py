"""Random tensors to make problems of, and measures to compare answers by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def spd(n: int, seed: int, low: float = 1.0, high: float = 8.0) -> Tensor:
    """A symmetric positive definite matrix with its spectrum spread over ``[low, high]``."""
    return with_spectrum(torch.linspace(low, high, n, dtype=torch.float64), seed)


def with_spectrum(eigenvalues: Tensor, seed: int) -> Tensor:
    basis = orthogonal(eigenvalues.numel(), seed)
    matrix = basis * eigenvalues @ basis.T
    return (matrix + matrix.T) / 2


def flat(tree: Any) -> Tensor:
    """Leaves of a tree as one vector, in flattening order."""
    leaves = pytree.tree_leaves(tree)
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative error in norm."""
    return float(torch.linalg.vector_norm(found.double() - wanted.double())) / float(
        torch.linalg.vector_norm(wanted.double())
    )
