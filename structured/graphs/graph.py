"""A graph of labels, and its local marginal polytope."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelGraph:
    """Binary labels and the pairs of them that interact.

    Beliefs lie in the local marginal polytope: ``max(0, b_i + b_j - 1) <= b_ij <= min(b_i, b_j)``,
    which says that the four entries of every pair's table are at least zero and have the labels'
    beliefs as their sums. On a forest that is the convex hull of the label sets; with cycles it is
    larger.

    Args:
        labels: how many, L.
        pairs: two different labels a row, ``[P, 2]``, integers; no pair twice.
        appearance: rho in (0, 1], ``[P]``: how often each pair belongs to a spanning tree that is
            drawn at random. It makes the entropy concave. None (default) is that of uniform trees:
            1 on a forest.

    Attributes:
        forest: whether there is no cycle.

    Raises:
        ValueError: if `pairs` are not pairs of different labels.

    Example:
        >>> graph = LabelGraph(3, torch.tensor([[0, 1], [1, 2], [0, 2]]))
        >>> graph.forest, graph.appearance
        (False, tensor([0.6667, 0.6667, 0.6667]))
        >>> graph.beliefs(torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([[1., 1., 0., 1., 0., 0.]])

    Reference:
        Wainwright, Jaakkola and Willsky, A New Class of Upper Bounds on the Log Partition Function,
        2005 (the entropy).
    """

    labels: int
    pairs: Tensor
    appearance: Tensor = field(default=None)  # type: ignore[assignment]
    forest: bool = field(init=False)

    def __post_init__(self) -> None:
        pairs = self.pairs
        fits = pairs.ndim == 2 and pairs.shape[1] == 2 and not pairs.is_floating_point()
        if fits and len(pairs):
            inside = bool(((pairs >= 0) & (pairs < self.labels)).all())
            ordered = pairs.sort(dim=1).values
            fits = inside and bool((ordered[:, 0] < ordered[:, 1]).all())
            fits = fits and len(ordered.unique(dim=0)) == len(ordered)
        if not fits:
            raise ValueError(
                f"pairs: found {tuple(pairs.shape)} of {pairs.dtype}, wanted [P, 2] integers "
                f"from 0 to {self.labels - 1}, no label paired with itself and no pair twice"
            )
        components = self._components()
        forest = len(pairs) == self.labels - (int(components.max()) + 1)
        object.__setattr__(self, "forest", forest)
        if self.appearance is None:
            rho = torch.ones(len(pairs)) if forest else self._resistances(components)
            object.__setattr__(self, "appearance", rho.to(pairs.device))

    @property
    def size(self) -> int:
        """L + P, the length of beliefs."""
        return self.labels + len(self.pairs)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The first and the second label of each pair, both ``[P]``."""
        first, second = self.pairs.T.contiguous().unbind()
        return first, second

    def at_ends(self, single: Tensor) -> tuple[Tensor, Tensor]:
        """Return what labels have, ``[..., L]``, for both labels of each pair, ``[..., P]``."""
        first, second = self.ends
        return single.index_select(-1, first), single.index_select(-1, second)

    def beliefs(self, y: Tensor) -> Tensor:
        """Return the beliefs of independent labels, at 0 and 1 those of a label set.

        Args:
            y: ``[..., L]`` in [0, 1].
        """
        first, second = self.at_ends(y)
        return torch.cat([y, first * second], dim=-1)

    def tables(self, beliefs: Tensor) -> tuple[Tensor, Tensor]:
        """Return all entries: of labels ``[..., L, 2]`` and of pairs ``[..., P, 2, 2]``."""
        single, both = beliefs[..., : self.labels], beliefs[..., self.labels :]
        first, second = self.at_ends(single)
        entries = [1.0 - first - second + both, second - both, first - both, both]
        pairs = torch.stack(entries, dim=-1).unflatten(-1, (2, 2))
        return torch.stack([1.0 - single, single], dim=-1), pairs

    def violation(self, beliefs: Tensor) -> Tensor:
        """Return how far below zero the smallest entry of any table is, ``[...]``; 0 inside."""
        single, pairs = self.tables(beliefs)
        least = torch.cat([single.flatten(-2), pairs.flatten(-3)], dim=-1).amin(dim=-1)
        return (-least).clamp(min=0.0)

    def entropy(self, beliefs: Tensor) -> Tensor:
        """Return the tree-reweighted entropy, ``[...]``: concave, and exact on a forest.

        ``sum_i H(b_i) - sum_ij rho_ij I(b_ij)``, with I the mutual information of a pair.
        """
        single, pairs = self.tables(beliefs)
        rho = self.appearance.to(beliefs.dtype)
        degree = beliefs.new_zeros(self.labels)
        for end in self.ends:
            degree = degree.index_add(0, end, rho)
        of_labels = ((1.0 - degree) * _entropy(single)).sum(dim=-1)
        return of_labels + (rho * _entropy(pairs.flatten(-2))).sum(dim=-1)

    def _components(self) -> np.ndarray:
        """The number of each label's connected component."""
        return sparse.csgraph.connected_components(self._adjacency(), directed=False)[1]

    def _adjacency(self) -> sparse.coo_array:
        rows, columns = self.pairs.cpu().numpy().T.reshape(2, -1)
        shape = (self.labels, self.labels)
        return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def _resistances(self, components: np.ndarray) -> Tensor:
        """How often uniform spanning trees hold each pair: its effective resistance (Kirchhoff)."""
        adjacency = self._adjacency().toarray()
        adjacency += adjacency.T
        laplacian = torch.from_numpy(np.diag(adjacency.sum(axis=0)) - adjacency)
        # A constant within each component makes it invertible and changes no difference.
        same = torch.from_numpy((components[:, None] == components).astype(np.float64))
        inverse = torch.linalg.inv(laplacian + same)
        first, second = self.pairs.cpu().unbind(dim=1)
        diagonal = inverse.diagonal()
        found = diagonal[first] + diagonal[second] - 2.0 * inverse[first, second]
        return found.to(torch.get_default_dtype())


def _entropy(table: Tensor) -> Tensor:
    # Rounding may leave an entry just below zero, where the logarithm is not defined.
    return torch.special.entr(table.clamp(min=torch.finfo(table.dtype).tiny)).sum(dim=-1)
