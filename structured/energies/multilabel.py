"""The multi-label energy of structured prediction energy networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from structured.energies._init import spread_output
from structured.energies.cardinality import Cardinality
from structured.networks import MLP


class MultiLabelEnergy(nn.Module):
    """``E(x, y) = sum_i y_i b_i'f(x) + c'softplus(C y) + g(sum_i y_i)``; low is good.

    Belanger & McCallum 2016, eq. 2-4, and the paper's multi-label experiments: f is a multilayer
    perceptron of the input (b_i includes a bias), and the global term couples the labels
    independently of the input. The last term, on the number of labels, is an addition to theirs
    (`Cardinality`). Initial energies are of order one whatever the sizes.

    Args:
        features: the size of x, D.
        labels: the number of labels, L.
        hidden: the layers of f.
        global_size: rows of C, M.
        cardinality: the largest number of labels with a value of its own in g; 0 (default) leaves
            the term out, as the papers do.
        activation: of f. Smooth by default.
        standardize: scale the inputs of f first, as `structured.networks.fit_inputs` sets it.

    Attributes:
        unaries: the network ``x -> (b_i'f(x))_i``.
        global_weight: c, ``[M]``.
        global_matrix: C, ``[M, L]``.
        cardinality: g, or None.

    Example:
        >>> import torch
        >>> energy = MultiLabelEnergy(5, 3, hidden=(8,), global_size=4)
        >>> energy(torch.randn(2, 5), torch.rand(10, 2, 3)).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        features: int,
        labels: int,
        hidden: Sequence[int] = (150,),
        global_size: int = 16,
        *,
        cardinality: int = 0,
        activation: Callable[[Tensor], Tensor] = functional.softplus,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.unaries = MLP(features, labels, hidden, activation=activation, standardize=standardize)
        spread_output(self.unaries.output, labels)
        self.global_weight = nn.Parameter(torch.randn(global_size) / global_size**0.5)
        self.global_matrix = nn.Parameter(torch.randn(global_size, labels) / labels**0.5)
        self.cardinality = Cardinality(cardinality) if cardinality else None

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
        """Return ``c'softplus(C y) + g(sum y)``, ``[..., B]``."""
        value = functional.softplus(y @ self.global_matrix.T) @ self.global_weight
        return value if self.cardinality is None else value + self.cardinality(y)

    def label_hessian(self, y: Tensor) -> Tensor:
        """Return the second derivative of ``c'softplus(C y)``, averaged over all points given.

        ``C' diag(c * softplus''(C y)) C``: negative entries mark labels that favour each other (the
        paper's figure 1, which leaves out the diagonal).

        Args:
            y: points, ``[..., L]``.

        Returns:
            ``[L, L]``, symmetric.
        """
        slope = torch.sigmoid(y @ self.global_matrix.T)
        curvature = (slope * (1.0 - slope)).reshape(-1, len(self.global_weight)).mean(dim=0)
        return self.global_matrix.T @ (
            (self.global_weight * curvature)[:, None] * self.global_matrix
        )
