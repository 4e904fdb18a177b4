"""Task costs: how bad a candidate is, given the gold output. Zero is perfect, one the worst.

The paper speaks of a *score* (a similarity, high is good); a cost is one minus it. Every function
takes ``candidate [..., B, *event]`` and ``gold [B, *event]`` and returns one value per example,
``[..., B]``. Candidates may be soft; gold outputs are hard, except where a function says otherwise.
At hard candidates the values are the usual metrics. All are differentiable in the candidate, and at
a hard candidate the derivative is the one towards the inside of the space.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hamming(candidate: Tensor, gold: Tensor, *, event_dims: int = 1) -> Tensor:
    """Return the expected share of wrong entries: the mean of ``yhat + y - 2 yhat y``.

    Args:
        candidate: ``[..., B, L]`` in [0, 1], each entry read as a probability.
        gold: ``[B, L]`` in {0, 1}.
        event_dims: trailing dimensions of one output: 1 for labels, 2 for masks.

    Returns:
        ``[..., B]`` in [0, 1].

    Example:
        >>> import torch
        >>> hamming(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.5000])
    """
    return _wrong(candidate, gold).mean(dim=_dims(event_dims))


def zero_one(candidate: Tensor, gold: Tensor, *, event_dims: int = 1) -> Tensor:
    """Return the probability that any entry is wrong: 0 or 1 at hard candidates.

    Args:
        candidate: ``[..., B, L]`` in [0, 1], entries read as independent probabilities.
        gold: ``[B, L]`` in {0, 1}.
        event_dims: trailing dimensions of one output: 1 for labels, 2 for masks.

    Returns:
        ``[..., B]`` in [0, 1].

    Example:
        >>> import torch
        >>> zero_one(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([1., 0.])
    """
    right = 1.0 - _wrong(candidate, gold)
    return 1.0 - right.flatten(start_dim=-event_dims).prod(dim=-1)


def soft_f1(candidate: Tensor, gold: Tensor, *, event_dims: int = 1) -> Tensor:
    """Return one minus the soft F1, ``1 - 2 sum min / (sum min + sum max)``.

    The soft F1 is that of deep value networks (Gygli, Norouzi & Angelova 2017). Two empty sets
    cost 0. Gold may be soft here.

    Args:
        candidate: ``[..., B, L]`` in [0, 1].
        gold: ``[B, L]`` in [0, 1].
        event_dims: trailing dimensions of one output: 1 for labels, 2 for masks.

    Returns:
        ``[..., B]`` in [0, 1].

    Example:
        >>> import torch
        >>> soft_f1(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([0.3333])
    """
    dims = _dims(event_dims)
    # sum min + sum max is the sum of both, whatever overlaps.
    total = candidate.sum(dim=dims) + gold.sum(dim=dims)
    return 1.0 - _ratio(2.0 * _minimum(candidate, gold).sum(dim=dims), total)


def soft_iou(candidate: Tensor, gold: Tensor, *, event_dims: int = 2) -> Tensor:
    """Return one minus the soft intersection over union, ``1 - sum min / sum max``.

    Two empty masks cost 0. Gold may be soft here.

    Args:
        candidate: ``[..., B, H, W]`` in [0, 1].
        gold: ``[B, H, W]`` in [0, 1].
        event_dims: trailing dimensions of one output: 2 for masks, 1 for labels.

    Returns:
        ``[..., B]`` in [0, 1].

    Example:
        >>> import torch
        >>> soft_iou(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]]))
        tensor([0.5000])
    """
    dims = _dims(event_dims)
    overlap = _minimum(candidate, gold).sum(dim=dims)
    return 1.0 - _ratio(overlap, candidate.sum(dim=dims) + gold.sum(dim=dims) - overlap)


def token_error(candidate: Tensor, gold: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the expected share of wrong tags among an example's real positions.

    Per position it is one minus the probability of the gold tag. (The sum over tags of
    ``candidate - gold`` would be zero at every position: both rows sum to one.)

    Args:
        candidate: ``[..., B, T, K]``, a distribution over tags a position.
        gold: one-hot ``[B, T, K]``.
        mask: which positions are real, boolean ``[B, T]``; None when all are.

    Returns:
        ``[..., B]`` in [0, 1]; 0 for an example without real positions.

    Example:
        >>> import torch
        >>> gold = torch.eye(2)[None]
        >>> token_error(gold.flip(-1), gold, torch.tensor([[True, False]]))
        tensor([1.])
    """
    errors = 1.0 - (candidate * gold).sum(dim=-1)
    if mask is None:
        return errors.mean(dim=-1)
    return errors.masked_fill(~mask, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def _dims(event_dims: int) -> tuple[int, ...]:
    return tuple(range(-event_dims, 0))


def _wrong(candidate: Tensor, gold: Tensor) -> Tensor:
    return candidate + gold - 2.0 * candidate * gold


def _minimum(candidate: Tensor, gold: Tensor) -> Tensor:
    # torch.minimum halves the derivative at ties, that is at every correct entry of a hard
    # candidate. Within [0, 1] the minimum with 1 is the candidate and the minimum with 0 is 0.
    return torch.where((candidate < gold) | (gold >= 1.0), candidate, gold)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, and 1 where both are empty."""
    empty = whole == 0
    return torch.where(empty, torch.ones_like(whole), part / torch.where(empty, 1.0, whole))
