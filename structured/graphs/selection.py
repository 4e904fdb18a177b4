"""Which labels to pair, judged by how often they occur together."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def mutual_information(together: Tensor, rows: int) -> Tensor:
    """Return the mutual information of every two labels in nats, from counts.

    Args:
        together: ``Y'Y``: how many rows have both labels, ``[L, L]``; on the diagonal, how many
            have the one.
        rows: how many rows were counted.

    Returns:
        ``[L, L]``, symmetric, float64, with a zero diagonal.

    Example:
        >>> y = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
        >>> mutual_information(y.T @ y, 4)[0]
        tensor([0.0000, 0.6931, 0.0000], dtype=torch.float64)
    """
    both = together.double() / rows
    single = both.diagonal()
    first, second = single[:, None], single[None, :]
    entropies = _entr(single) + _entr(1.0 - single)
    joint = _entr(both) + _entr(first - both) + _entr(second - both)
    joint = joint + _entr(1.0 - first - second + both)
    found = (entropies[:, None] + entropies[None, :] - joint).clamp(min=0.0)
    return found.fill_diagonal_(0.0)


def maximum_spanning_tree(weights: Tensor) -> Tensor:
    """Return the pairs of the tree of largest total weight, ``[L - 1, 2]``.

    With mutual information for weights it is the likeliest tree (Chow & Liu 1968).

    Args:
        weights: ``[L, L]``, symmetric, finite.

    Example:
        >>> weights = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
        >>> maximum_spanning_tree(weights)
        tensor([[0, 1],
                [1, 2]])
    """
    # The smallest tree of positive lengths: SciPy takes a zero for no pair at all.
    lengths = 1.0 + float(weights.max()) - weights.double().cpu().numpy()
    tree = sparse.csgraph.minimum_spanning_tree(np.triu(lengths, k=1)).tocoo()
    pairs = torch.from_numpy(np.stack([tree.row, tree.col], axis=1).astype(np.int64))
    return _sorted(pairs)


def strongest_pairs(weights: Tensor, count: int) -> Tensor:
    """Return the pairs of largest weight, ``[count, 2]``.

    Args:
        weights: ``[L, L]``, symmetric.
        count: how many, at most ``L (L - 1) / 2``.

    Raises:
        ValueError: if there are not so many pairs.

    Example:
        >>> weights = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
        >>> strongest_pairs(weights, 1)
        tensor([[0, 1]])
    """
    labels = len(weights)
    pairs = torch.triu_indices(labels, labels, offset=1).T
    if not 0 <= count <= len(pairs):
        raise ValueError(f"count: found {count}, wanted 0 to {len(pairs)} pairs of {labels} labels")
    values = weights.cpu()[pairs[:, 0], pairs[:, 1]]
    return _sorted(pairs[values.argsort(descending=True, stable=True)[:count]])


def _sorted(pairs: Tensor) -> Tensor:
    pairs = pairs.sort(dim=1).values
    return pairs[(pairs[:, 0] * (pairs.max() + 1 if len(pairs) else 1) + pairs[:, 1]).argsort()]


def _entr(values: Tensor) -> Tensor:
    return torch.special.entr(values.clamp(min=0.0))
