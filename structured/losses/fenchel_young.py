"""Generalized Fenchel-Young losses (Blondel et al. 2022), written with energies: Phi = -E.

With a regularizer Omega and the regularized prediction ``p* = argmin_p E(x, p) + Omega(p)``, found
by any inference, the loss compares the gold output with p* by the very objective that defines p*.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fenchel_young(
    gold_energy: Tensor, gold_regularizer: Tensor, energy: Tensor, regularizer: Tensor
) -> Tensor:
    """Return ``E(y) + Omega(y) - E(p*) - Omega(p*)``: at least zero, and zero where y is p*.

    By the envelope theorem its gradient in the energy's parameters is ``dE(y) - dE(p*)`` with p*
    held fixed: evaluate the energy at a *detached* p*, as inference returns it, and backpropagate.
    A negative value means that inference did not reach the minimum.

    Args:
        gold_energy: E(x, y), ``[B]``.
        gold_regularizer: Omega(y), ``[B]``.
        energy: E(x, p*), ``[B]``.
        regularizer: Omega(p*), ``[B]``.

    Returns:
        One value per example, ``[B]``.

    Example:
        >>> import torch
        >>> logits, y = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
        >>> p = torch.sigmoid(logits)
        >>> fenchel_young(
        ...     -(logits * y).sum(-1),
        ...     binary_negative_entropy(y),
        ...     -(logits * p).sum(-1),
        ...     binary_negative_entropy(p),
        ... )
        tensor([0.4402])
    """
    return (gold_energy + gold_regularizer) - (energy + regularizer)


def half_squared_norm(point: Tensor, *, weight: float = 1.0, event_dims: int = 1) -> Tensor:
    """Return ``weight / 2 ||p||^2``, one value per example.

    Args:
        point: ``[..., B, *event]``.
        weight: gamma.
        event_dims: trailing dimensions of one output.

    Example:
        >>> import torch
        >>> half_squared_norm(torch.tensor([[1.0, 1.0]]))
        tensor([1.])
    """
    return 0.5 * weight * point.square().sum(dim=tuple(range(-event_dims, 0)))


def negative_entropy(point: Tensor, *, event_dims: int = 2) -> Tensor:
    """Return ``sum p log p``, for a simplex per position; zeros count zero.

    Args:
        point: ``[..., B, T, K]``, or ``[..., B, K]`` with ``event_dims=1``.
        event_dims: trailing dimensions of one output.

    Example:
        >>> import torch
        >>> negative_entropy(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]))
        tensor([-0.6931])
    """
    return -torch.special.entr(point).sum(dim=tuple(range(-event_dims, 0)))


def binary_negative_entropy(point: Tensor, *, event_dims: int = 1) -> Tensor:
    """Return ``sum p log p + (1 - p) log(1 - p)``, for points of a hypercube.

    Args:
        point: ``[..., B, L]`` in [0, 1].
        event_dims: trailing dimensions of one output.

    Example:
        >>> import torch
        >>> binary_negative_entropy(torch.tensor([[0.5, 1.0]]))
        tensor([-0.6931])
    """
    terms = torch.special.entr(point) + torch.special.entr(1.0 - point)
    return -terms.sum(dim=tuple(range(-event_dims, 0)))
