"""Contrastive divergence with costs, the paper's strongest primary loss."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_divergence(gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
    """Return ``-log(e^{-E(y)} / (e^{-E(y)} + sum_k e^{Delta_k - E(yhat_k)}))``.

    One sample gives ``softplus(Delta - E(yhat) + E(y))``, the margin loss with a soft hinge; all
    wrong outputs with zero costs give the exact negative log-likelihood.

    Args:
        gold_energy: E(x, y), ``[B]``.
        energies: E(x, yhat_k) of K samples along the first dimension, ``[K, B]``.
        costs: Delta(yhat_k, y) >= 0 of the same samples, ``[K, B]``.

    Returns:
        One value per example, ``[B]``, above zero.

    Example:
        >>> import torch
        >>> contrastive_divergence(torch.zeros(1), torch.zeros(3, 1), torch.zeros(3, 1)).exp()
        tensor([4.])
    """
    # Measured from the gold energy, so that the two large energies cancel before the exponential.
    exponents = costs - energies + gold_energy
    gold = torch.zeros_like(exponents[:1])
    return torch.cat([gold, exponents]).logsumexp(dim=0)
