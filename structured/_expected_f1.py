"""The numbers behind the expected-F1 decoder, exact under independent labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FIRST_LIMIT = 32
# Doubles kept at once while one chunk of examples is worked on: 128 MB.
_BUDGET = 2**24


def best_size(ordered: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return how many of the likeliest labels to predict, and the expected F1 of doing so.

    Sizes are tried up to a limit that grows only for examples not yet *certified*: predicting k
    labels gives at most ``E[2|y| / (k + |y|)] <= 2 mu / (k + mu)`` (Jensen; mu the expected number
    of labels), so once that is below the best size found, no larger size can win.

    Args:
        ordered: probabilities, descending along the last dimension, float64 ``[N, L]``.
        tolerance: see `size_curve`.

    Returns:
        Sizes ``[N]`` (int64) and their expected F1 ``[N]``.
    """
    count, labels = ordered.shape
    mean = ordered.sum(dim=-1)
    size = torch.zeros(count, dtype=torch.long, device=ordered.device)
    value = torch.zeros(count, dtype=ordered.dtype, device=ordered.device)
    left = torch.arange(count, device=ordered.device)
    limit = min(labels, _FIRST_LIMIT)
    while len(left) > 0:
        for rows in left.split(max(1, _BUDGET // (limit * limit))):
            curve = size_curve(ordered[rows], limit, tolerance)
            value[rows], size[rows] = curve.max(dim=-1)
        beyond = 2.0 * mean[left] / (limit + 1 + mean[left])
        left = left[(beyond > value[left]) & (limit < labels)]
        limit = min(labels, 4 * limit)
    return size, value


def size_curve(ordered: Tensor, limit: int, tolerance: float) -> Tensor:
    """Return the expected F1 of predicting the k likeliest labels, for k = 0..limit.

    With S_k the number of gold labels among the first k and T_k among the others,
    ``F(k) = sum_s 2 s P(S_k = s) R_k(k + s)`` where ``R_k(a) = E[1 / (a + T_k)]`` obeys
    ``R_{k-1}(a) = (1 - p_k) R_k(a) + p_k R_k(a + 1)`` (Ye, Chai, Lee & Chieu 2012). ``F(0)`` is the
    probability of the empty set, since two empty sets score 1. Every step is a convex combination:
    nothing cancels.

    Args:
        ordered: probabilities, descending along the last dimension, float64 ``[N, L]``.
        limit: the largest size, at most L.
        tolerance: the most by which cutting off the distribution of ``T_limit`` may change a value.

    Returns:
        ``[N, limit + 1]``.
    """
    head, tail = ordered[:, :limit], ordered[:, limit:]
    heads = _head_counts(head)
    counts = _tail_counts(tail, _tail_cap(tail, tolerance))
    a = torch.arange(1, 2 * limit + 1, dtype=ordered.dtype, device=ordered.device)
    t = torch.arange(counts.shape[-1], dtype=ordered.dtype, device=ordered.device)
    inverse = counts @ (1.0 / (a + t[:, None]))
    curve = torch.empty(len(ordered), limit + 1, dtype=ordered.dtype, device=ordered.device)
    curve[:, 0] = (1.0 - ordered).prod(dim=-1)
    for k in range(limit, 0, -1):
        # Column j of `inverse` is a = j + 1, and s = 1..k needs a = k + 1..2k.
        hits = heads[k - 1][:, 1 : k + 1] * a[:k]
        curve[:, k] = 2.0 * (hits * inverse[:, k : 2 * k]).sum(dim=-1)
        p = head[:, k - 1 : k]
        inverse = torch.lerp(inverse[:, :-1], inverse[:, 1:], p)
    return curve


def _head_counts(head: Tensor) -> list[Tensor]:
    """Return the distributions of the number of gold labels among the first k, k = 1..K."""
    counts = torch.ones(len(head), 1, dtype=head.dtype, device=head.device)
    distributions = []
    for p in head.split(1, dim=-1):
        counts = _add_label(counts, p)
        distributions.append(counts)
    return distributions


def _add_label(counts: Tensor, p: Tensor) -> Tensor:
    grown = torch.nn.functional.pad(counts * (1.0 - p), (0, 1))
    grown[:, 1:] += counts * p
    return grown


def _tail_counts(tail: Tensor, cap: int) -> Tensor:
    """Return the distribution of the tail's gold labels, counted up to `cap`: ``[N, cap + 1]``."""
    counts = torch.zeros(len(tail), cap + 1, dtype=tail.dtype, device=tail.device)
    counts[:, 0] = 1.0
    for i, p in enumerate(tail.split(1, dim=-1)):
        used = min(i + 1, cap)
        moved = counts[:, :used] * p
        # The last state absorbs: what would leave it stays.
        counts[:, :used] -= moved
        counts[:, 1 : used + 1] += moved
    return counts


def _tail_cap(tail: Tensor, tolerance: float) -> int:
    """Return the least M with ``P(T > M) <= tolerance`` by Chernoff's bound, for all examples.

    Counting more than M as M then changes ``2 s / (k + s + T)`` by at most 1 with that probability.
    """
    labels = tail.shape[-1]
    mean = float(tail.sum(dim=-1).max()) if labels and len(tail) else 0.0
    if mean == 0.0:
        return 0
    reach = torch.arange(1, labels + 1, dtype=torch.float64)  # M + 1
    log_bound = reach - mean - reach * torch.log(reach / mean)
    enough = (reach > mean) & (log_bound <= math.log(tolerance))
    return int(enough.double().argmax()) if bool(enough.any()) else labels


def best_from_samples(samples: Tensor, weights: Tensor) -> Tensor:
    """Return the label sets of the largest weighted mean F1 against the samples, ``[B, L]``.

    Exact over all ``2^L`` sets: for a fixed size k the mean F1 is a sum over the predicted labels
    of ``W_ik = sum_s w_s y_si 2 / (k + |y_s|)``, so the best k labels are the largest of the column
    (Dembczynski et al. 2011, the general F-measure maximiser).

    Args:
        samples: hard label sets, ``[S, B, L]``.
        weights: non-negative, summing to one along the first dimension, ``[S, B]``.
    """
    sizes = samples.sum(dim=-1)
    # A label that no sample holds only makes the set larger: never worth it.
    useful = int((samples.amax(dim=0) > 0).sum(dim=-1).max())
    if useful == 0:
        return torch.zeros_like(samples[0])
    # A sample matters through its size alone: gather them by size, and try every k on the sums.
    n = torch.arange(int(sizes.max()) + 1, dtype=samples.dtype, device=samples.device)
    of_size = weights[..., None] * (sizes[..., None] == n)
    mass = torch.einsum("sbl,sbn->bnl", samples, of_size)
    share = of_size.sum(dim=0)
    limit = min(useful, _FIRST_LIMIT // 2)
    value, chosen = _best_of_sizes(mass, share, limit)
    # No set of k labels has more than the mean of 2 n / (k + n): larger ones only where that wins.
    k = torch.arange(limit + 1, useful + 1, dtype=samples.dtype, device=samples.device)
    bound = torch.einsum("bn,kn->bk", share, 2.0 * n / (k[:, None] + n))
    possible = (bound > value[:, None]).any(dim=0)
    if bool(possible.any()):
        _, chosen = _best_of_sizes(mass, share, limit + 1 + int(possible.nonzero().max()))
    return chosen


def _best_of_sizes(mass: Tensor, share: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the best mean F1 of sets of at most `limit` labels, ``[B]``, and the sets ``[B, L]``.

    Args:
        mass: the weight of the samples of each size that hold a label, ``[B, N + 1, L]``.
        share: the weight of the samples of each size, ``[B, N + 1]``.
        limit: the most labels, at least 1.
    """
    labels = mass.shape[-1]
    n = torch.arange(mass.shape[1], dtype=mass.dtype, device=mass.device)
    k = torch.arange(1, limit + 1, dtype=mass.dtype, device=mass.device)
    worth = torch.einsum("bnl,kn->bkl", mass, 2.0 / (k[:, None] + n))
    ordered, order = worth.topk(limit, dim=-1)
    totals = ordered.cumsum(dim=-1).diagonal(dim1=1, dim2=2)
    value, best = torch.cat([share[:, :1], totals], dim=-1).max(dim=-1)
    row = (best - 1).clamp(min=0)[:, None, None].expand(-1, 1, limit)
    taken = torch.arange(limit, device=mass.device) < best[:, None]
    sets = mass.new_zeros(len(mass), labels)
    return value, sets.scatter(-1, order.gather(1, row).squeeze(1), taken.to(mass.dtype))
