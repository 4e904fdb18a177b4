"""Random graphs of labels, and what enumeration says about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from structured.graphs import LabelGraph

LABELS = 5
PAIRS = {
    "chain": [(0, 1), (1, 2), (2, 3), (3, 4)],
    "star": [(2, 0), (2, 1), (2, 3), (2, 4)],
    "forest": [(0, 3), (4, 1)],
    "cycle": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)],
    "kite": [(0, 1), (1, 2), (2, 0), (2, 3)],
}
FORESTS = ("chain", "star", "forest")


@dataclass(frozen=True)
class Enumerated:
    """A graph with potentials, and the distribution over its label sets."""

    graph: LabelGraph
    theta: Tensor

    @property
    def beliefs_of_sets(self) -> Tensor:
        """The beliefs of all label sets, ``[2^L, L + P]``."""
        bits = (torch.arange(2**LABELS)[:, None] >> torch.arange(LABELS)) & 1
        return self.graph.beliefs(bits.double())

    @property
    def marginals(self) -> Tensor:
        """``[B, L + P]``."""
        scores = self.theta @ self.beliefs_of_sets.T
        return torch.softmax(scores, dim=-1) @ self.beliefs_of_sets

    @property
    def log_partition(self) -> Tensor:
        """``log Z``, ``[B]``."""
        return torch.logsumexp(self.theta @ self.beliefs_of_sets.T, dim=-1)


def problem(name: str, *, seed: int = 0, rows: int = 3, scale: float = 2.0) -> Enumerated:
    """A graph by name with random potentials, float64."""
    graph = LabelGraph(LABELS, torch.tensor(PAIRS[name]))
    graph = LabelGraph(LABELS, graph.pairs, graph.appearance.double())
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, graph.size, generator=generator, dtype=torch.float64)
    return Enumerated(graph, scale * theta)
