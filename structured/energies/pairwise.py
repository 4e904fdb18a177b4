"""A pairwise label energy: local terms and one coefficient per pair of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from structured.energies._init import spread_output
from structured.networks import MLP


class PairwiseEnergy(nn.Module):
    """``E(x, y) = sum_i y_i b_i'f(x) + y'U y`` with U symmetric and of zero diagonal; low is good.

    A zero diagonal makes the energy linear in each label: its least value over the hypercube is at
    a vertex. A pair of labels costs ``2 U_ij`` when both are present.

    Args:
        features: the size of x, D.
        labels: the number of labels, L.
        hidden: the layers of f.
        rank: None for a full U; else U is ``V diag(s) V'`` less its diagonal, with V ``[L, rank]``.
        activation: of f. Smooth by default.

    Attributes:
        unaries: the network ``x -> (b_i'f(x))_i``.

    Example:
        >>> import torch
        >>> energy = PairwiseEnergy(5, 3, hidden=(8,), rank=2)
        >>> energy(torch.randn(2, 5), torch.rand(10, 2, 3)).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        features: int,
        labels: int,
        hidden: Sequence[int] = (150,),
        *,
        rank: int | None = None,
        activation: Callable[[Tensor], Tensor] = functional.softplus,
    ) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"rank: found {rank}, wanted at least 1, or None for a full matrix")
        self.unaries = MLP(features, labels, hidden, activation=activation)
        spread_output(self.unaries.output, labels)
        self.coupling: nn.Module = _Full(labels) if rank is None else _LowRank(labels, rank)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return energies, ``[..., B]``.

        Args:
            x: inputs, ``[B, D]``; f is computed once however many points `y` holds.
            y: points of the hypercube, ``[..., B, L]``.
        """
        return self.local(self.features(x), y) + self.global_(y)

    def features(self, x: Tensor) -> Tensor:
        """Return f(x), ``[B, H]``."""
        return self.unaries.features(x)

    def local(self, features: Tensor, y: Tensor) -> Tensor:
        """Return ``sum_i y_i b_i'f``, ``[..., B]``, given ``f`` of ``[B, H]``."""
        return (y * self.unaries.output(features)).sum(dim=-1)

    def global_(self, y: Tensor) -> Tensor:
        """Return ``y'U y``, ``[..., B]``."""
        return self.coupling(y)

    def interaction(self) -> Tensor:
        """Return U, ``[L, L]``."""
        labels = self.unaries.output.out_features
        unit = torch.eye(labels, dtype=self.unaries.output.weight.dtype)
        unit = unit.to(self.unaries.output.weight.device)
        # y'Uy at e_i + e_j is 2 U_ij, the diagonal being zero.
        return self.coupling(unit[:, None] + unit) / 2.0 * (1.0 - unit)


class _Full(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(labels, labels) / labels)

    def forward(self, y: Tensor) -> Tensor:
        # y'Wy depends on the symmetric part of W alone.
        weight = self.weight - torch.diag(self.weight.diagonal())
        return ((y @ weight) * y).sum(dim=-1)


class _LowRank(nn.Module):
    def __init__(self, labels: int, rank: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(labels, rank) / labels**0.5)
        self.signs = nn.Parameter(torch.randn(rank) / rank**0.5)

    def forward(self, y: Tensor) -> Tensor:
        diagonal = self.factors.square() @ self.signs
        return (y @ self.factors).square() @ self.signs - y.square() @ diagonal
