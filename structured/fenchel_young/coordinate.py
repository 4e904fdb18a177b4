"""Coordinate ascent for quadratic energies over the hypercube."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def coordinate_ascent(
    linear: Tensor, factors: Tensor, start: Tensor, *, weight: float = 1.0, sweeps: int = 10
) -> Tensor:
    """Maximise ``<u, p> - 1/2 ||B'p||^2 - weight / 2 ||p||^2`` over ``[0, 1]^L``, label by label.

    Each label is put to its exact best, the others being fixed; no step size is needed. In the
    paper's terms it is the pairwise model with ``U = -BB'`` and the squared norm. A sweep costs as
    much as a few gradients, but its labels wait for one another.

    Args:
        linear: u, ``[..., L]``.
        factors: B, ``[L, M]``, or one for each example, ``[..., L, M]``.
        start: the first point, ``[..., L]``.
        weight: gamma.
        sweeps: how often every label has its turn.

    Returns:
        The last point, ``[..., L]``.

    Raises:
        ValueError: if `weight` or `sweeps` is out of range.

    Example:
        >>> import torch
        >>> u, factors = torch.tensor([[1.5, 1.0]]), torch.tensor([[1.0], [1.0]])
        >>> coordinate_ascent(u, factors, torch.zeros(1, 2))
        tensor([[0.6667, 0.1667]])
    """
    if not weight > 0 or sweeps < 1:
        raise ValueError(
            f"found weight={weight}, sweeps={sweeps}; wanted a positive weight and at least 1 sweep"
        )
    labels = list(start.unbind(dim=-1))
    rows = factors.unbind(dim=-2)
    # B'p, kept up to date: a label's turn then costs M and not L M.
    image = (start.unsqueeze(-1) * factors).sum(dim=-2)
    own = [row.square().sum(dim=-1) for row in rows]
    for _ in range(sweeps):
        for i, row in enumerate(rows):
            slope = linear[..., i] - (image * row).sum(dim=-1) + own[i] * labels[i]
            value = (slope / (weight + own[i])).clamp(0.0, 1.0)
            image = image + (value - labels[i]).unsqueeze(-1) * row
            labels[i] = value
    return torch.stack(labels, dim=-1)
