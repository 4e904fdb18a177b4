"""Decoding with the energy: expected F1 under labels that are not independent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from structured._expected_f1 import best_from_samples
from structured.batches import Rows
from structured.metrics import example_f1
from structured.models import Models, evaluating

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""The scales of the energy that are tried on validation data."""


@dataclass(frozen=True)
class JointExpectedF1:
    """Predict the set of the largest expected F1 under the network *and* the energy.

    The network's labels are independent; the energy says which sets go together. The distribution
    is ``p(y | x) ~ A(y | x) exp(-scale E(x, y))``, with A the product of the network's label
    probabilities: what an energy that was trained to tell gold sets from the network's own samples
    approximates at scale 1 (noise-contrastive estimation). The expectation is a mean over weighted
    samples of A, the same for every scale. With scale 0 it is the expected-F1 decoder of
    independent labels, up to sampling. One pass of the network, one of the energy's features, and
    cheap terms per sample.

    Args:
        scale: of the energy.
        samples: label sets drawn for each example.
        seed: of the samples.
        chunk: rows at a time; bounds the memory.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> import numpy as np
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> X, gold = np.eye(4), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        >>> decoder = JointExpectedF1(samples=100).fit(models, X, gold)
        >>> decoder.scale in SCALES, decoder.decode(models, X).shape
        (True, torch.Size([4, 3]))
    """

    scale: float = 1.0
    samples: int = 500
    seed: int = 0
    chunk: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale < float("inf"):
            raise ValueError(f"scale: found {self.scale}, wanted a finite number of at least 0")
        for name in ("samples", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted at least 1")

    def fit(self, models: Models, X: Any, y: Tensor) -> JointExpectedF1:
        """Return the decoder with the scale in `SCALES` that is best on validation data.

        Args:
            models: a network for labels, and its energy.
            X: validation inputs, sparse or dense, ``[N, D]``.
            y: their gold labels in {0, 1}, ``[N, L]``.

        Raises:
            ValueError: if the models have no energy.
        """
        found: dict[float, list[Tensor]] = {scale: [] for scale in SCALES}
        for held, energies in self._draw(models, X):
            for scale, sets in found.items():
                sets.append(_decode(held, energies, scale))
        scores = {scale: example_f1(torch.cat(sets), y) for scale, sets in found.items()}
        return replace(self, scale=max(scores, key=lambda scale: scores[scale]))

    def decode(self, models: Models, X: Any) -> Tensor:
        """Return the best label sets, on the CPU, ``[N, L]``.

        Raises:
            ValueError: if the models have no energy.
        """
        drawn = self._draw(models, X)
        return torch.cat([_decode(held, energies, self.scale) for held, energies in drawn])

    def _draw(self, models: Models, X: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield which samples hold a label, ``[b, L, S]``, and their energies, by chunks."""
        energy = models.energy
        if energy is None:
            raise ValueError("models: found no energy, wanted one that weights the samples")
        device = next((leaf.device for leaf in models.network.parameters()), torch.device("cpu"))
        with evaluating(models), torch.no_grad():
            rows = X if isinstance(X, Rows) else Rows(X, device)
            for x in rows.chunks(self.chunk):
                probabilities = models.space.relax(models.network(x))
                # The same draws for every chunk: a row's labels depend on that row alone.
                generator = torch.Generator().manual_seed(self.seed)
                samples = systematic_samples(probabilities, self.samples, generator)
                energies = energy(x, samples)
                yield samples.permute(1, 2, 0).contiguous().cpu(), energies.T.cpu()


def systematic_samples(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw label sets in which every label occurs as often as it should, but for one sample.

    Each label's uniform numbers are one per stratum ``[s / S, (s + 1) / S)``, in an order of its
    own (Latin hypercube sampling), so that the mean of the samples is the probability to ``1 / S``.
    They are the same for all rows, so that a row's samples depend on its own probabilities alone.

    Args:
        probabilities: of labels, ``[B, L]``.
        count: how many sets, S.
        generator: the source of randomness, on the CPU.

    Returns:
        Entries in {0, 1}, ``[S, B, L]``.

    Example:
        >>> p = torch.tensor([[0.25, 1.0]])
        >>> systematic_samples(p, 8, torch.Generator().manual_seed(0)).mean(dim=0)
        tensor([[0.2500, 1.0000]])
    """
    labels = probabilities.shape[1]
    order = torch.rand(count, labels, generator=generator).argsort(dim=0)
    shift = torch.rand(labels, generator=generator)
    order, shift = order.to(probabilities.device), shift.to(probabilities.device)
    return (order[:, None] < count * probabilities - shift).to(probabilities.dtype)


def _decode(held: Tensor, energies: Tensor, scale: float) -> Tensor:
    weights = torch.softmax(-scale * energies.double(), dim=-1)
    return best_from_samples(held, weights.to(held.dtype))
