"""What an energy has beyond the local term ``-<u, p>``, with a bound on its curvature.

The whole energy is ``E(x, p) = -<u(x), p> + coupling(x, p)``, low is good, with u a network's
logits. In the paper's terms ``Phi = <u, p> - coupling``: a convex coupling makes Phi concave in p,
so that the inference finds the one best prediction and its gap is a certificate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from structured.networks import InputScaling


class Coupling(nn.Module, ABC):
    """A function of the input and of points of the hypercube, ``(x, p) -> [..., B]``."""

    @property
    @abstractmethod
    def convex(self) -> bool:
        """Whether it is convex in p, whatever the parameters."""

    @abstractmethod
    def curvature(self) -> float:
        """Return an upper bound on the eigenvalues of the Hessian in p, for all x and p."""

    @abstractmethod
    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        """Return ``[..., B]``.

        Args:
            x: inputs, ``[B, D]``; what depends on them alone is computed once.
            p: points of the hypercube, ``[..., B, L]``.
        """

    @abstractmethod
    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``p -> dcoupling/dp``, ``[..., B, L]``; what depends on x alone is computed now.

        Args:
            x: inputs, ``[B, D]``.
        """


class NoCoupling(Coupling):
    """Zero: the energy is ``-<u, p>`` alone, the paper's unary model.

    Example:
        >>> import torch
        >>> NoCoupling()(torch.zeros(2, 4), torch.ones(2, 3))
        tensor([0., 0.])
    """

    @property
    def convex(self) -> bool:
        return True

    def curvature(self) -> float:
        return 0.0

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        return p.new_zeros(p.shape[:-1])

    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return torch.zeros_like


class PairwiseCoupling(Coupling):
    """``1/2 ||B'p||^2``: in the paper's terms ``1/2 p'Up`` with ``U = -BB'``, concave.

    Nothing is lost on label sets: there ``p_i^2 = p_i``, so that the diagonal of BB' belongs to the
    local term, and off the diagonal its entries have either sign.

    Args:
        labels: how many, L.
        rank: columns of B, M; 1 for very many labels, L for all of U.

    Attributes:
        factors: B, ``[L, M]``.

    Example:
        >>> import torch
        >>> coupling = PairwiseCoupling(3, rank=2)
        >>> coupling(torch.zeros(4, 5), torch.rand(10, 4, 3)).shape
        torch.Size([10, 4])
    """

    def __init__(self, labels: int, rank: int = 16) -> None:
        super().__init__()
        _check_count(rank, "rank")
        self.factors = nn.Parameter(_directions(labels, rank).T.contiguous())

    @property
    def convex(self) -> bool:
        return True

    def curvature(self) -> float:
        return _squared_norm(self.factors)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        return 0.5 * (p @ self.factors).square().sum(dim=-1)

    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda p: (p @ self.factors) @ self.factors.T


class NetworkCoupling(Coupling):
    """``c'softplus(C p + d)`` with c of either sign: the global term of a SPEN; not convex.

    Args:
        labels: how many, L.
        size: rows of C, M.

    Attributes:
        layer: C and d.
        weight: c, ``[M]``.

    Example:
        >>> NetworkCoupling(3, size=4).convex
        False
    """

    def __init__(self, labels: int, size: int = 16) -> None:
        super().__init__()
        self.layer = _layer(labels, size)
        self.weight = nn.Parameter(torch.randn(size) / size**0.5)

    @property
    def convex(self) -> bool:
        return False

    def curvature(self) -> float:
        # The second derivative of softplus is at most 1/4. Concave rows only lower the sum.
        largest = float(self.weight.detach().max().clamp(min=0.0))
        return 0.25 * largest * _squared_norm(self.layer.weight)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        return functional.softplus(self.layer(p)) @ self.weight

    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda p: (torch.sigmoid(self.layer(p)) * self.weight) @ self.layer.weight


class ConvexCoupling(Coupling):
    """An input-convex network of two layers: its negative, in Phi, makes an input-concave SPEN.

    ``c'softplus(W softplus(C1 p + d1) + C2 p + d2)`` with W and c at least zero (Amos, Xu & Kolter
    2017), which hold as softplus of free parameters.

    Args:
        labels: how many, L.
        size: units of each layer, M.

    Attributes:
        first: C1 and d1.
        skip: C2 and d2.
        raw_inner: W before softplus, ``[M, M]``.
        raw_weight: c before softplus, ``[M]``.

    Example:
        >>> import torch
        >>> coupling = ConvexCoupling(3, size=4)
        >>> left, right, x = torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1, 5)
        >>> middle = coupling(x, (left + right) / 2)
        >>> bool(middle <= (coupling(x, left) + coupling(x, right)) / 2)
        True
    """

    def __init__(self, labels: int, size: int = 16) -> None:
        super().__init__()
        self.first, self.skip = _layer(labels, size), _layer(labels, size)
        # Positive weights do not cancel: a sum of M of them is held to order one.
        start = math.log(math.expm1(1.0 / size))
        self.raw_inner = nn.Parameter(torch.full((size, size), start))
        self.raw_weight = nn.Parameter(torch.full((size,), start))

    @property
    def convex(self) -> bool:
        return True

    @torch.no_grad()
    def curvature(self) -> float:
        # With z = softplus(first), a = W z + skip: the Hessian is J'diag(c s''(a))J, J = da/dp,
        # plus the sum over j of (W's'(a)c)_j s''_j C1_j C1_j'; softplus has s' <= 1, s'' <= 1/4.
        inner, weight = functional.softplus(self.raw_inner), functional.softplus(self.raw_weight)
        first, skip = _squared_norm(self.first.weight), _squared_norm(self.skip.weight)
        jacobian = (math.sqrt(_squared_norm(inner) * first) + math.sqrt(skip)) ** 2
        return 0.25 * (float(weight.max()) * jacobian + float((weight @ inner).max()) * first)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        hidden = functional.softplus(self.first(p)) @ functional.softplus(self.raw_inner).T
        second = functional.softplus(hidden + self.skip(p))
        return second @ functional.softplus(self.raw_weight)

    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        inner, weight = functional.softplus(self.raw_inner), functional.softplus(self.raw_weight)

        def at(p: Tensor) -> Tensor:
            first = self.first(p)
            second = torch.sigmoid(functional.softplus(first) @ inner.T + self.skip(p)) * weight
            through = (second @ inner) * torch.sigmoid(first)
            return through @ self.first.weight + second @ self.skip.weight

        return at


class InputCoupling(Coupling):
    """``1/2 sum_m w_m(x) (c_m'p)^2`` with weights w in (0, 1): which couplings hold depends on x.

    A linear-concave energy: with ``v = (u(x), w(x))``, Phi is linear in v and concave in p, the
    case in which the paper proves its losses calibrated.

    Args:
        features: the size of x, D.
        labels: how many, L.
        rank: how many directions c_m, M.
        standardize: scale the inputs first, as `structured.networks.fit_inputs` sets it.

    Attributes:
        gates: the layer whose sigmoid is w.
        directions: c, ``[M, L]``.

    Example:
        >>> import torch
        >>> coupling = InputCoupling(5, 3, rank=2)
        >>> coupling(torch.randn(4, 5), torch.rand(10, 4, 3)).shape
        torch.Size([10, 4])
    """

    def __init__(
        self, features: int, labels: int, rank: int = 16, *, standardize: bool = False
    ) -> None:
        super().__init__()
        _check_count(rank, "rank")
        self.gates = nn.Linear(features, rank)
        self.directions = nn.Parameter(_directions(labels, rank))
        self.scaling = InputScaling(features) if standardize else None

    @property
    def convex(self) -> bool:
        return True

    def curvature(self) -> float:
        return _squared_norm(self.directions)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        return 0.5 * (self._weights(x) * (p @ self.directions.T).square()).sum(dim=-1)

    def slope(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        weights = self._weights(x)
        return lambda p: (weights * (p @ self.directions.T)) @ self.directions

    def _weights(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gates(x if self.scaling is None else self.scaling(x)))


def _directions(labels: int, count: int) -> Tensor:
    """Rows ``[count, labels]`` whose products with points are of order one."""
    return torch.randn(count, labels) / labels**0.5


def _layer(labels: int, size: int) -> nn.Linear:
    _check_count(size, "size")
    layer = nn.Linear(labels, size)
    with torch.no_grad():
        layer.weight.copy_(_directions(labels, size))
        layer.bias.zero_()
    return layer


def _check_count(count: int, name: str) -> None:
    if count < 1:
        raise ValueError(f"{name}: found {count}, wanted at least 1")


@torch.no_grad()
def _squared_norm(matrix: Tensor) -> float:
    """The largest squared singular value, through the smaller of the two Gram matrices."""
    tall = matrix.shape[0] > matrix.shape[1]
    gram = matrix.T @ matrix if tall else matrix @ matrix.T
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0))
