"""Metrics of hard label sets: numbers to report, high is good, never differentiated.

Every function takes ``prediction [N, L]`` and ``gold [N, L]`` with entries in {0, 1}. The metric of
the multi-label tables is `example_f1`; the label-averaged `macro_f1` is a different number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structured.costs import soft_f1


def example_f1(prediction: Tensor, gold: Tensor) -> float:
    """Return the mean over examples of the F1 of each example's set; two empty sets score 1.

    Args:
        prediction: predicted sets, ``[N, L]`` of 0 and 1.
        gold: gold sets, likewise.

    Raises:
        ValueError: if shapes differ or an entry is neither 0 nor 1 (as in every metric here).

    Example:
        >>> import torch
        >>> example_f1(torch.tensor([[1, 1], [0, 0]]), torch.tensor([[1, 0], [0, 0]]))
        0.8333...
    """
    prediction, gold = _checked(prediction, gold)
    return float((1.0 - soft_f1(prediction, gold)).mean())


def label_f1(prediction: Tensor, gold: Tensor, *, absent: float = 0.0) -> Tensor:
    """Return the F1 of each label over all examples, ``[L]``.

    Args:
        prediction: predicted sets, ``[N, L]``.
        gold: gold sets, ``[N, L]``.
        absent: the F1 of a label that is neither predicted nor present.

    Example:
        >>> import torch
        >>> label_f1(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 0]]))
        tensor([0.6667, 0.0000], dtype=torch.float64)
    """
    prediction, gold = _checked(prediction, gold)
    total = prediction.sum(dim=0) + gold.sum(dim=0)
    score = 2.0 * (prediction * gold).sum(dim=0) / total.clamp(min=1.0)
    return torch.where(total == 0, absent, score)


def macro_f1(prediction: Tensor, gold: Tensor, *, absent: float = 0.0) -> float:
    """Return the mean over labels of `label_f1`.

    Args:
        prediction: predicted sets, ``[N, L]``.
        gold: gold sets, ``[N, L]``.
        absent: the F1 of a label that is neither predicted nor present.

    Example:
        >>> import torch
        >>> macro_f1(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 0]]))
        0.3333...
    """
    return float(label_f1(prediction, gold, absent=absent).mean())


def micro_f1(prediction: Tensor, gold: Tensor) -> float:
    """Return the F1 of all decisions pooled; 1 if nothing is predicted and nothing present.

    Args:
        prediction: predicted sets, ``[N, L]`` of 0 and 1.
        gold: gold sets, likewise.

    Example:
        >>> import torch
        >>> micro_f1(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 1]]))
        0.5
    """
    prediction, gold = _checked(prediction, gold)
    return float(1.0 - soft_f1(prediction.flatten(), gold.flatten()))


def hamming_accuracy(prediction: Tensor, gold: Tensor) -> float:
    """Return the share of right decisions, one for each example and label.

    Args:
        prediction: predicted sets, ``[N, L]`` of 0 and 1.
        gold: gold sets, likewise.

    Example:
        >>> import torch
        >>> hamming_accuracy(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 0]]))
        0.75
    """
    prediction, gold = _checked(prediction, gold)
    return float((prediction == gold).double().mean())


def subset_accuracy(prediction: Tensor, gold: Tensor) -> float:
    """Return the share of examples whose whole set is right.

    Args:
        prediction: predicted sets, ``[N, L]`` of 0 and 1.
        gold: gold sets, likewise.

    Example:
        >>> import torch
        >>> subset_accuracy(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 0]]))
        0.5
    """
    prediction, gold = _checked(prediction, gold)
    return float((prediction == gold).all(dim=-1).double().mean())


def _checked(prediction: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != gold.shape or prediction.ndim != 2 or len(gold) == 0:
        raise ValueError(
            f"prediction: found shape {tuple(prediction.shape)} for gold of shape "
            f"{tuple(gold.shape)}, wanted the same [N, L] with N > 0"
        )
    for name, value in (("prediction", prediction), ("gold", gold)):
        if not bool(((value == 0) | (value == 1)).all()):
            raise ValueError(
                f"{name}: found entries other than 0 and 1, wanted hard label sets; "
                "decode probabilities first (structured.decoding)"
            )
    return prediction.double(), gold.double()
