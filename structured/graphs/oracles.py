"""Linear maximisation over the local polytope: exact on forests, by a linear program elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from structured.graphs.graph import LabelGraph


@torch.no_grad()
def best_labels(graph: LabelGraph, theta: Tensor) -> Tensor:
    """Return the label set that maximises ``<theta, b>`` on a forest, by max-product.

    Args:
        graph: a forest.
        theta: potentials, ``[..., L + P]``.

    Returns:
        Entries in {0, 1}, ``[..., L]``; labels that make no difference are absent.

    Raises:
        ValueError: if the graph has a cycle.

    Example:
        >>> graph = LabelGraph(2, torch.tensor([[0, 1]]))
        >>> best_labels(graph, torch.tensor([[2.0, -1.0, 1.5], [2.0, -1.0, 0.5]]))
        tensor([[1., 1.],
                [1., 0.]])
    """
    if not graph.forest:
        raise ValueError("graph: found a cycle, wanted a forest; use `linear_program`")
    couplings = theta[..., graph.labels :].unbind(dim=-1)
    scores = list(theta[..., : graph.labels].unbind(dim=-1))
    order, parents = _rooted(graph)
    for label in reversed(order):  # from the leaves: what each label's presence is worth
        if label in parents:
            parent, pair = parents[label]
            gain = (scores[label] + couplings[pair]).relu() - scores[label].relu()
            scores[parent] = scores[parent] + gain
    best: list[Tensor] = [theta.new_zeros(())] * graph.labels
    for label in order:
        score = scores[label]
        if label in parents:
            parent, pair = parents[label]
            score = score + couplings[pair] * best[parent]
        best[label] = (score > 0).to(theta.dtype)
    return torch.stack(best, dim=-1)


@torch.no_grad()
def linear_program(graph: LabelGraph, theta: Tensor) -> Tensor:
    """Return beliefs that maximise ``<theta, b>`` over the local polytope, by SciPy's HiGHS.

    With cycles the best beliefs need not be those of a label set. One program an example: a slow
    way for many of them.

    Args:
        graph: labels and pairs.
        theta: potentials, ``[..., L + P]``.

    Returns:
        A vertex of the polytope, ``[..., L + P]``.

    Raises:
        ValueError: if the potentials are not finite.

    Example:
        >>> graph = LabelGraph(3, torch.tensor([[0, 1], [1, 2], [0, 2]]))
        >>> frustrated = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, -2.0])
        >>> linear_program(graph, frustrated)
        tensor([0.5000, 0.5000, 0.5000, 0.0000, 0.0000, 0.0000])
    """
    if not bool(torch.isfinite(theta).all()):
        raise ValueError("theta: found entries that are not finite, wanted numbers")
    matrix, bound = _inequalities(graph)
    flat = theta.reshape(-1, theta.shape[-1]).double().cpu().numpy()
    rows = [
        linprog(-row, A_ub=matrix, b_ub=bound, bounds=(0.0, 1.0), method="highs").x for row in flat
    ]
    found = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(flat.shape)
    # HiGHS keeps its constraints to 1e-7 only.
    found = _feasible(graph, found.clamp(0.0, 1.0))
    return found.reshape(theta.shape).to(theta)


def _rooted(graph: LabelGraph) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Return the labels, parents before children, and label -> (its parent, their pair)."""
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(graph.labels)]
    for pair, (first, second) in enumerate(graph.pairs.tolist()):
        neighbours[first].append((second, pair))
        neighbours[second].append((first, pair))
    order: list[int] = []
    seen: set[int] = set()
    parents: dict[int, tuple[int, int]] = {}
    for root in range(graph.labels):
        if root in seen:
            continue
        seen.add(root)
        front = [root]
        for label in front:  # grows while it is walked
            for other, pair in neighbours[label]:
                if other not in seen:
                    seen.add(other)
                    parents[other] = (label, pair)
                    front.append(other)
        order += front
    return order, parents


def _inequalities(graph: LabelGraph) -> tuple[sparse.csr_array, np.ndarray]:
    """``A b <= c``: b_ij <= b_i, b_ij <= b_j, b_i + b_j - b_ij <= 1."""
    count = len(graph.pairs)
    first, second = graph.pairs.cpu().numpy().T.reshape(2, -1)
    both, row = graph.labels + np.arange(count), np.arange(count)
    rows = np.concatenate([row, row, count + row, count + row, *[2 * count + row] * 3])
    columns = np.concatenate([both, first, both, second, first, second, both])
    values = np.repeat([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0], count)
    matrix = sparse.csr_array((values, (rows, columns)), shape=(3 * count, graph.size))
    return matrix, np.concatenate([np.zeros(2 * count), np.ones(count)])


def _feasible(graph: LabelGraph, beliefs: Tensor) -> Tensor:
    pairs = graph.pairs.cpu()
    single = beliefs[..., : graph.labels]
    first, second = single[..., pairs[:, 0]], single[..., pairs[:, 1]]
    least = (first + second - 1.0).clamp(min=0.0)
    both = torch.maximum(beliefs[..., graph.labels :], least)
    return torch.cat([single, torch.minimum(both, torch.minimum(first, second))], dim=-1)
