"""Noise-contrastive estimation: tell the gold output from samples of a known distribution.

Ma & Collins 2018 name and compare the two forms. Both take E with low good, samples along the first
dimension, and the noise distribution's log-probabilities of the same outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def nce_ranking(
    gold_energy: Tensor, energies: Tensor, gold_log_noise: Tensor, log_noise: Tensor
) -> Tensor:
    """Return ``-log softmax`` of ``-E - log p_N`` over the gold output and K samples, at the gold.

    Adding any g(x) to the energy, or to the noise's log-probability, changes nothing.

    Args:
        gold_energy: E(x, y), ``[B]``.
        energies: E(x, yhat_k), ``[K, B]``.
        gold_log_noise: log p_N(y | x), ``[B]``.
        log_noise: log p_N(yhat_k | x), ``[K, B]``.

    Returns:
        One value per example, ``[B]``.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> nce_ranking(zero, torch.zeros(3, 1), zero, torch.zeros(3, 1)).exp()
        tensor([4.])
    """
    gold = -gold_energy - gold_log_noise
    exponents = (-energies - log_noise) - gold
    return torch.cat([torch.zeros_like(exponents[:1]), exponents]).logsumexp(dim=0)


def nce_binary(
    gold_energy: Tensor, energies: Tensor, gold_log_noise: Tensor, log_noise: Tensor
) -> Tensor:
    """Return the logistic losses of classifying gold against K samples, summed.

    The logit of "gold" is ``-E - log p_N - log K``; consistent only for a normalised energy, whose
    log-partition the model has to learn as well.

    Args:
        gold_energy: E(x, y), ``[B]``.
        energies: E(x, yhat_k), ``[K, B]``.
        gold_log_noise: log p_N(y | x), ``[B]``.
        log_noise: log p_N(yhat_k | x), ``[K, B]``.

    Returns:
        One value per example, ``[B]``.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> nce_binary(zero, torch.zeros(1, 1), zero, torch.zeros(1, 1))
        tensor([1.3863])
    """
    log_count = math.log(energies.shape[0])
    gold = -gold_energy - gold_log_noise - log_count
    noise = -energies - log_noise - log_count
    return functional.softplus(-gold) + functional.softplus(noise).sum(dim=0)
