"""The compound objective of InfNet+ (Tu, Pang & Gimpel 2020; the paper's eq. 5).

Two networks: F, cost-augmented, used in training only, and A, used to predict. The energy minimises
both hinges; the networks maximise the same terms *without* truncation, plus cross-entropy for A.
"""

from __future__ import annotations

from torch import Tensor

from structured.losses.margin import margin, perceptron


def compound_energy_loss(
    gold_energy: Tensor,
    augmented_energy: Tensor,
    predicted_energy: Tensor,
    cost: Tensor,
    *,
    weight: float = 1.0,
) -> Tensor:
    """Return ``[Delta(F, y) - E(F) + E(y)]_+ + lam [-E(A) + E(y)]_+`` for the energy to minimise.

    Args:
        gold_energy: E(x, y), ``[B]``.
        augmented_energy: E(x, F(x)) of the cost-augmented network, ``[B]``.
        predicted_energy: E(x, A(x)) of the predicting network, ``[B]``.
        cost: Delta(F(x), y), ``[B]``.
        weight: lam of the perceptron term.

    Returns:
        One value per example, ``[B]``.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> compound_energy_loss(one, one, 0 * one, 0.5 * one, weight=2.0)
        tensor([2.5000])
    """
    hinge = margin(gold_energy, augmented_energy, cost)
    return hinge + weight * perceptron(gold_energy, predicted_energy)


def compound_network_loss(
    gold_energy: Tensor,
    augmented_energy: Tensor,
    predicted_energy: Tensor,
    cost: Tensor,
    cross_entropy: Tensor,
    *,
    weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
) -> Tensor:
    """Return what the networks minimise: the same terms negated, not truncated, plus tau CE.

    ``-(Delta(F, y) - E(F) + E(y)) - lam (-E(A) + E(y)) + tau CE(A, y)``. Without the hinges the
    networks keep learning where the energy is already satisfied.

    Args:
        gold_energy: E(x, y), ``[B]``.
        augmented_energy: E(x, F(x)) of the cost-augmented network, ``[B]``.
        predicted_energy: E(x, A(x)) of the predicting network, ``[B]``.
        cost: Delta(F(x), y), ``[B]``.
        cross_entropy: CE(A(x), y), ``[B]``.
        weight: lam of the second term.
        cross_entropy_weight: tau.

    Returns:
        One value per example, ``[B]``.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> compound_network_loss(one, 3 * one, one, 0 * one, 0.5 * one)
        tensor([2.5000])
    """
    augmented = cost - augmented_energy + gold_energy
    predicted = gold_energy - predicted_energy
    return -augmented - weight * predicted + cross_entropy_weight * cross_entropy
