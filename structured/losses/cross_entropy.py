"""Cross-entropy: the negative log-likelihood of the gold output under independent variables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def label_cross_entropy(logits: Tensor, gold: Tensor, *, event_dims: int = 1) -> Tensor:
    """Sum the logistic losses of an example's labels (the paper's "MBCE").

    Args:
        logits: network outputs, ``[..., B, L]`` (or ``[..., B, H, W]`` for masks).
        gold: gold labels in [0, 1], broadcastable against ``logits``.
        event_dims: how many trailing dimensions make one output: 1 for labels, 2 for masks.

    Returns:
        One value per example, ``[..., B]``: a sum over labels, never a mean.

    Example:
        >>> import torch
        >>> label_cross_entropy(torch.zeros(2, 3), torch.ones(2, 3))
        tensor([2.0794, 2.0794])
    """
    # softplus(z) - y z: the same number as binary_cross_entropy_with_logits, but it broadcasts.
    losses = functional.softplus(logits) - logits * gold
    return losses.sum(dim=tuple(range(-event_dims, 0)))


def tag_cross_entropy(logits: Tensor, gold: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the cross-entropies of the tags at an example's real positions.

    Args:
        logits: network outputs, ``[..., B, T, K]``.
        gold: a distribution over tags per position, usually one-hot, broadcastable against
            ``logits``.
        mask: which positions are real, boolean ``[B, T]``; None when all are.

    Returns:
        One value per example, ``[..., B]``: a sum over positions. Padded positions count nothing,
        whatever ``logits`` and ``gold`` hold there.

    Example:
        >>> import torch
        >>> gold = torch.eye(2).expand(1, 2, 2)
        >>> tag_cross_entropy(torch.zeros(1, 2, 2), gold, torch.tensor([[True, False]]))
        tensor([0.6931])
    """
    losses = -(gold * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    if mask is not None:
        losses = losses.masked_fill(~mask, 0.0)
    return losses.sum(dim=-1)
