"""The energy of a graph structured prediction energy network, but for the labels' own terms."""

from __future__ import annotations

from itertools import combinations, islice
from typing import cast

import torch
from torch import Tensor, nn

from structured.fenchel_young import NetworkCoupling
from structured.graphs.graph import LabelGraph


class GraphEnergy(nn.Module):
    """``E(b) = -sum_ij J_ij b_ij(1, 1) + c'softplus(C b + d)`` of beliefs b; low is good.

    J and c start at zero, so that at first labels are independent. The pairs are buffers: their
    number is fixed, which they are can be said later (`connect`), and they are saved with the
    weights.

    Args:
        labels: how many, L.
        pairs: how many pairs, P; at most ``L (L - 1) / 2``.
        size: rows of C, M.

    Attributes:
        couplings: J, ``[P]``.
        global_term: c, C and d, a `NetworkCoupling` of ``L + P`` entries; its negative is T.
        pairs: ``[P, 2]``.
        appearance: rho, see `LabelGraph`.

    Raises:
        ValueError: if there are not so many pairs.

    Example:
        >>> energy = GraphEnergy(4, pairs=3, size=2)
        >>> energy.connect(torch.tensor([[0, 1], [0, 2], [0, 3]]))
        >>> energy(torch.zeros(2, 5), torch.ones(2, 4))
        tensor([0., 0.], grad_fn=<SubBackward0>)
    """

    pairs: Tensor
    appearance: Tensor

    def __init__(self, labels: int, pairs: int, size: int = 16) -> None:
        super().__init__()
        self.labels = labels
        first = list(islice(combinations(range(labels), 2), pairs))
        if len(first) < pairs:
            raise ValueError(
                f"pairs: found {pairs}, wanted at most {len(first)} of {labels} labels"
            )
        graph = LabelGraph(labels, torch.tensor(first, dtype=torch.long).reshape(-1, 2))
        self.register_buffer("pairs", graph.pairs.clone())
        self.register_buffer("appearance", graph.appearance.clone())
        self._graph = graph
        self.couplings = nn.Parameter(torch.zeros(pairs))
        self.global_term = NetworkCoupling(graph.size, size)
        nn.init.zeros_(self.global_term.weight)

    @property
    def graph(self) -> LabelGraph:
        """Labels and pairs."""
        # Loading weights or moving the module changes the buffers, but seldom: checking whether
        # they are those of the last graph is much cheaper than making it again.
        known = (self._graph.pairs, self._graph.appearance)
        if not all(map(_same, known, (self.pairs, self.appearance))):
            self._graph = LabelGraph(self.labels, self.pairs.clone(), self.appearance.clone())
        return self._graph

    def connect(self, pairs: Tensor) -> None:
        """Choose the pairs, ``[P, 2]``, in place."""
        graph = LabelGraph(self.labels, pairs.to(self.pairs.device))
        self.pairs.copy_(graph.pairs)
        self.appearance.copy_(graph.appearance)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return energies of label sets, ``[..., B]``, given ``[..., B, L]``; x plays no part."""
        beliefs = self.graph.beliefs(y)
        paired = (self.couplings * beliefs[..., self.labels :]).sum(dim=-1)
        return cast(Tensor, self.global_term(x, beliefs)) - paired

    def potentials(self, logits: Tensor) -> Tensor:
        """Return logits of labels ``[..., B, L]`` with J beside them, ``[..., B, L + P]``."""
        pairs = self.couplings.expand(*logits.shape[:-1], -1)
        return torch.cat([logits, pairs], dim=-1)


def _same(first: Tensor, second: Tensor) -> bool:
    alike = first.dtype == second.dtype and first.device == second.device
    return alike and torch.equal(first, second)
