"""Value losses: the energy as a prediction of the task score (deep value networks)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def value_cross_entropy(energy: Tensor, score: Tensor) -> Tensor:
    """Return the cross-entropy between sigma(-E(x, yhat)) and the score v* of yhat.

    Gygli, Norouzi & Angelova 2017, eq. 8 with v = sigma(-E). Least at ``-E = logit(v*)``.

    Args:
        energy: E(x, yhat), ``[..., B]``.
        score: v* in [0, 1], one minus the cost (`structured.costs.soft_f1`), ``[..., B]``.

    Returns:
        ``[..., B]``.

    Example:
        >>> import torch
        >>> value_cross_entropy(torch.tensor([-100.0]), torch.tensor([1.0]))
        tensor([0.])
    """
    # -v log sigma(-E) - (1 - v) log(1 - sigma(-E)), in one softplus.
    return functional.softplus(-energy) + score * energy


def value_squared(energy: Tensor, score: Tensor) -> Tensor:
    """Return the squared error between sigma(-E(x, yhat)) and the score v* of yhat.

    Args:
        energy: E(x, yhat), ``[..., B]``.
        score: v* in [0, 1], one minus the cost, ``[..., B]``.

    Returns:
        ``[..., B]``.

    Example:
        >>> import torch
        >>> value_squared(torch.tensor([0.0]), torch.tensor([1.0]))
        tensor([0.2500])
    """
    return (torch.sigmoid(-energy) - score).square()
