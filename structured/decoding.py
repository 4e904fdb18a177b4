"""Decoders: from label probabilities to label sets. Much of what separates published tables.

A decoder is fitted on *validation* data, ``fit(probabilities, y)``, and what it returns only
decodes: it never sees the gold labels of what it decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from structured._expected_f1 import best_from_samples, best_size


class FittedDecoder(Protocol):
    """Turns probabilities ``[N, L]`` into hard label sets ``[N, L]``."""

    def decode(self, probabilities: Tensor) -> Tensor:
        """Return entries in {0, 1} of the probabilities' shape and type."""
        ...


class Decoder(Protocol):
    """Learns from validation data how to decode."""

    def fit(self, probabilities: Tensor, y: Tensor) -> FittedDecoder:
        """Return a fitted decoder, given validation probabilities and gold labels ``[N, L]``."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Predict the labels whose probability reaches a threshold.

    Args:
        value: the threshold; a probability equal to it is predicted.

    Example:
        >>> import torch
        >>> Threshold().decode(torch.tensor([[0.2, 0.7]]))
        tensor([[0., 1.]])
    """

    value: float = 0.5

    def fit(self, probabilities: Tensor, y: Tensor) -> Threshold:
        """Return this decoder: there is nothing to fit."""
        return self

    def decode(self, probabilities: Tensor) -> Tensor:
        """Return the labels with ``probability >= value``."""
        _check_probabilities(probabilities)
        # In double: a tuned threshold may lie between two neighbouring single-precision numbers.
        return (probabilities.double() >= self.value).to(probabilities.dtype)


@dataclass(frozen=True)
class TunedThreshold:
    """One global threshold, the best for example-F1 on the data it is fitted on.

    Exact: all thresholds that give different predictions are compared, with one sort.

    Example:
        >>> import torch
        >>> gold = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> TunedThreshold().fit(torch.tensor([[0.3, 0.1], [0.4, 0.2]]), gold)
        Threshold(value=0.25...)
    """

    def fit(self, probabilities: Tensor, y: Tensor) -> Threshold:
        """Return the best `Threshold`, midway between the two probabilities it separates.

        Args:
            probabilities: of the validation examples, ``[N, L]``.
            y: their gold labels in {0, 1}, ``[N, L]``.

        Raises:
            ValueError: if shapes differ, a probability is outside [0, 1] or there is no example.
        """
        _check_probabilities(probabilities)
        _check_gold(probabilities, y)
        ordered, order = probabilities.detach().double().sort(dim=-1, descending=True)
        gold = y.to(ordered.dtype).gather(-1, order)
        # The F1 of each example's k likeliest labels; its increments belong to the probability that
        # lets the k-th label in, so one sort of all of them gives the mean F1 of every threshold.
        present = gold.sum(dim=-1, keepdim=True)
        k = torch.arange(1, ordered.shape[-1] + 1, dtype=ordered.dtype, device=ordered.device)
        curve = 2.0 * gold.cumsum(dim=-1) / (k + present)
        empty = (present == 0).to(ordered.dtype)
        steps = curve.diff(dim=-1, prepend=empty)
        values, place = ordered.flatten().sort(descending=True)
        scores = torch.cat([empty.sum()[None], empty.sum() + steps.flatten()[place].cumsum(0)])
        # A threshold can only fall between two different probabilities, or outside all.
        possible = torch.ones_like(scores, dtype=torch.bool)
        possible[1:-1] = values[1:] < values[:-1]
        best = int(scores.masked_fill(~possible, -math.inf).argmax())
        return Threshold(_between(values, best))


def _between(values: Tensor, count: int) -> float:
    """Return a threshold that exactly the first `count` of the descending `values` reach."""
    if count == 0:
        return math.nextafter(float(values[0]), math.inf)
    last = float(values[count - 1])
    following = float(values[count]) if count < len(values) else 0.0
    middle = (last + following) / 2.0
    return middle if middle > following else last


@dataclass(frozen=True)
class ExpectedF1:
    """Predict the set of the largest expected F1 under independent labels.

    Sorting the probabilities and choosing how many of the likeliest labels to predict is optimal
    (Lewis 1995; Jansche 2007), and the expected F1 of every number is computed exactly from the
    Poisson-binomial distribution of the label counts, with F1 of two empty sets 1.

    Args:
        tolerance: the most by which cutting off the tail of the count distribution may change an
            expected F1. Below the rounding of doubles it makes no difference but time.

    Example:
        >>> import torch
        >>> ExpectedF1().decode(torch.tensor([[0.4, 0.35, 0.01]]))
        tensor([[1., 1., 0.]])
    """

    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance: found {self.tolerance}, wanted a number in (0, 1)")

    def fit(self, probabilities: Tensor, y: Tensor) -> ExpectedF1:
        """Return this decoder: there is nothing to fit."""
        return self

    def decode(self, probabilities: Tensor) -> Tensor:
        """Return the best label sets, ``[N, L]``."""
        order, size, _ = self._solve(probabilities)
        chosen = torch.arange(order.shape[-1], device=order.device) < size[:, None]
        return torch.zeros_like(probabilities).scatter(-1, order, chosen.to(probabilities.dtype))

    def expected(self, probabilities: Tensor) -> Tensor:
        """Return the expected F1 of the sets that `decode` returns, float64 ``[N]``."""
        return self._solve(probabilities)[2]

    def _solve(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check_probabilities(probabilities)
        ordered, order = probabilities.detach().double().sort(dim=-1, descending=True, stable=True)
        return order, *best_size(ordered, self.tolerance)


@dataclass(frozen=True)
class SampledExpectedF1:
    """Predict the set of the largest mean F1 against joint samples of the label set.

    For a learned energy, whose labels are not independent. The maximum is over all ``2^L`` sets and
    exact for the given samples.

    Args:
        chunk: how many examples are worked on at once; bounds the memory.

    Example:
        >>> import torch
        >>> samples = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]])
        >>> SampledExpectedF1().decode(samples)
        tensor([[1., 0., 0.]])
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk: found {self.chunk}, wanted at least 1")

    def decode(self, samples: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the best label sets, ``[B, L]``.

        Args:
            samples: hard label sets drawn from the model, of a floating type, which the sums are
                made in, ``[S, B, L]``.
            weights: non-negative importance weights ``[S, B]``, of any positive sum per example;
                None counts every sample alike.

        Raises:
            ValueError: if a shape is wrong or an example's weights do not have a positive sum.
        """
        if samples.ndim != 3 or len(samples) == 0:
            raise ValueError(f"samples: found shape {tuple(samples.shape)}, wanted [S, B, L]")
        shape = samples.shape[:2]
        values = torch.ones(shape) if weights is None else weights.detach()
        if values.shape != shape:
            raise ValueError(f"weights: found shape {tuple(values.shape)}, wanted {tuple(shape)}")
        values = values.to(samples.device, torch.float64)
        total = values.sum(dim=0)
        if not bool((total > 0).all() and (values >= 0).all() and total.isfinite().all()):
            raise ValueError(
                "weights: found a negative or non-finite one, or an example whose weights sum to "
                "zero; wanted non-negative weights (normalise log-weights with softmax over dim 0)"
            )
        normal = (values / total).to(samples.dtype)
        parts = zip(samples.split(self.chunk, 1), normal.split(self.chunk, 1), strict=True)
        best = [best_from_samples(part.permute(1, 2, 0), weight.T) for part, weight in parts]
        return torch.cat(best)


def _check_probabilities(probabilities: Tensor) -> None:
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities: found shape {tuple(probabilities.shape)}, wanted [N, L]")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError(
            "probabilities: found an entry outside [0, 1] or NaN; relax logits first "
            "(structured.spaces.Labels.relax)"
        )


def _check_gold(probabilities: Tensor, y: Tensor) -> None:
    if y.shape != probabilities.shape or y.numel() == 0:
        raise ValueError(
            f"y: found shape {tuple(y.shape)} for probabilities of shape "
            f"{tuple(probabilities.shape)}, wanted the same, with at least one example"
        )
