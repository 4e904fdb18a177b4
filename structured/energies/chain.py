"""The chain energy for tagging: the paper's eq. 7."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from structured.networks import BiLSTMTagger


class ChainEnergy(nn.Module):
    """``E(x, y) = -(sum_t sum_j y_tj U_j'b_t + sum_t y_{t-1}'W y_t)``; low is good.

    b_t are the states of a bidirectional LSTM. At one-hot y it is minus the score of a linear-chain
    conditional random field. Padded positions add nothing, whatever `x` and `y` hold there.

    Args:
        features: the size of a token's vector, D.
        tags: the number of tags, K.
        hidden: units of each direction of the LSTM.

    Attributes:
        unaries: the network ``x -> (-U_j'b_t)_tj``: like every energy's local term, low is good.
        transitions: W, ``[K, K]``, from the row's tag to the column's; high is good.

    Example:
        >>> import torch
        >>> energy = ChainEnergy(4, 3, hidden=5)
        >>> y = torch.softmax(torch.randn(10, 2, 6, 3), dim=-1)
        >>> energy(torch.randn(2, 6, 4), y).shape
        torch.Size([10, 2])
    """

    def __init__(self, features: int, tags: int, hidden: int = 100) -> None:
        super().__init__()
        self.unaries = BiLSTMTagger(features, tags, hidden)
        self.transitions = nn.Parameter(torch.randn(tags, tags) / tags)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return energies, ``[..., B]``.

        Args:
            x: token vectors, ``[B, T, D]``; the LSTM runs once however many points `y` holds.
            y: a point of the simplex per position, ``[..., B, T, K]``.
            mask: which positions are real, boolean ``[B, T]``, the real ones first; None when all
                are.
        """
        return self.local(self.features(x, mask), y, mask) + self.global_(y, mask)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the states b_t, ``[B, T, 2 hidden]``."""
        return self.unaries.features(x, mask)

    def local(self, features: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``-sum_t sum_j y_tj U_j'b_t``, ``[..., B]``."""
        return (_real(y, mask) * self.unaries.output(features)).sum(dim=(-2, -1))

    def global_(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``-sum_t y_{t-1}'W y_t``, ``[..., B]``."""
        y = _real(y, mask)
        return -((y[..., :-1, :] @ self.transitions) * y[..., 1:, :]).sum(dim=(-2, -1))


def _real(y: Tensor, mask: Tensor | None) -> Tensor:
    return y if mask is None else y.masked_fill(~mask[..., None], 0.0)
