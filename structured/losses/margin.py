"""Margin losses: a gold output should lie lower than a candidate, by a margin.

Shapes throughout: ``gold_energy [B]``, ``energy`` and ``cost`` ``[..., B]``, and the result
``[..., B]``: one value per example and candidate.
"""

from __future__ import annotations

from torch import Tensor


def margin(gold_energy: Tensor, energy: Tensor, cost: Tensor) -> Tensor:
    """Margin rescaling, the structured SVM: ``[Delta - E(yhat) + E(y)]_+``.

    The margin asked for grows with the candidate's cost (Tsochantaridis et al. 2004; the first
    term of the paper's eq. 5).

    Args:
        gold_energy: E(x, y), ``[B]``.
        energy: E(x, yhat) of the candidates, ``[..., B]``.
        cost: Delta(yhat, y) >= 0 of the same candidates.

    Returns:
        ``[..., B]``, zero where the hinge is inactive.

    Example:
        >>> import torch
        >>> margin(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.5]))
        tensor([0.])
    """
    return (cost - energy + gold_energy).relu()


def slack_rescaling(gold_energy: Tensor, energy: Tensor, cost: Tensor) -> Tensor:
    """Slack rescaling: ``Delta [1 - E(yhat) + E(y)]_+`` (Tsochantaridis et al. 2004).

    Args:
        gold_energy: E(x, y), ``[B]``.
        energy: E(x, yhat) of the candidates, ``[..., B]``.
        cost: Delta(yhat, y) >= 0 of the same candidates.

    Example:
        >>> import torch
        >>> slack_rescaling(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.5]))
        tensor([0.5000])
    """
    return cost * (1.0 - energy + gold_energy).relu()


def perceptron(gold_energy: Tensor, energy: Tensor) -> Tensor:
    """Perceptron: ``[E(y) - E(yhat)]_+``, a margin of zero.

    Args:
        gold_energy: E(x, y), ``[B]``.
        energy: E(x, yhat) of the candidates, ``[..., B]``.

    Example:
        >>> import torch
        >>> perceptron(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([1.])
    """
    return (gold_energy - energy).relu()


def contrastive_margin(gold_energy: Tensor, energy: Tensor) -> Tensor:
    """Margin loss with the same margin for every candidate: ``[1 - E(yhat) + E(y)]_+``.

    Args:
        gold_energy: E(x, y), ``[B]``.
        energy: E(x, yhat) of the candidates, ``[..., B]``.

    Example:
        >>> import torch
        >>> contrastive_margin(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor([1.])
    """
    return (1.0 - energy + gold_energy).relu()
