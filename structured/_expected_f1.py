"""The numbers behind the expected-F1 decoder, exact under independent labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_FIRST_LIMIT = 32
# Doubles kept at once while one chunk of examples is worked on: 128 MB.
_BUDGET = 2**24


def best_size(ordered: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return how many of the likeliest labels to predict, and the expected F1 of doing so.

    Predicting k labels gives at most ``E[2|y| / (k + |y|)] <= 2 mu / (k + mu)`` (Jensen; mu the
    expected number of labels). So the best of the first sizes says how far to look for each
    example: no size above ``mu (2 - value) / value`` can win.

    Args:
        ordered: probabilities, descending along the last dimension, float64 ``[N, L]``.
        tolerance: see `size_curve`.

    Returns:
        Sizes ``[N]`` (int64) and their expected F1 ``[N]``.
    """
    count, labels = ordered.shape
    size = torch.zeros(count, dtype=torch.long, device=ordered.device)
    value = torch.zeros(count, dtype=ordered.dtype, device=ordered.device)

    def look(rows: Tensor, limit: int) -> None:
        value[rows], size[rows] = size_curve(ordered[rows], limit, tolerance).max(dim=-1)

    first = min(labels, _FIRST_LIMIT)
    for rows in torch.arange(count, device=ordered.device).split(max(1, _BUDGET // first**2)):
        look(rows, first)
    mean = ordered.sum(dim=-1)
    farthest = _farthest(mean, value, labels)
    farthest, left = farthest.sort(descending=True)
    left, limits = left[farthest > first], farthest[farthest > first].tolist()
    begin = 0
    while begin < len(left):  # those that look equally far together
        end = begin + max(1, _BUDGET // limits[begin] ** 2)
        look(left[begin:end], limits[begin])
        begin = end
    return size, value


def _farthest(mean: Tensor, value: Tensor, labels: int) -> Tensor:
    """Return the size above which no set of the likeliest labels can be worth `value` (int64).

    One more than ``mean (2 - value) / value`` allows: where all sets are certain the bound is the
    best size itself, and rounding would take it below.
    """
    bound = (mean * (2.0 - value) / value).nan_to_num(labels, labels)
    return (bound + 1.0).clamp(max=labels).long()


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


def best_from_samples(held: Tensor, weights: Tensor) -> Tensor:
    """Return the label sets of the largest weighted mean F1 against the samples, ``[B, L]``.

    Exact over all ``2^L`` sets: for a fixed size k the mean F1 is a sum over the predicted labels
    of ``W_ik = sum_s w_s y_si 2 / (k + n_s)``, n_s the size of a sample, so the best k labels are
    the largest of the column (Dembczynski et al. 2011, the general F-measure maximiser). Samples of
    one size come in through their sum alone, which is taken first.

    Args:
        held: which samples hold a label, in {0, 1}, ``[B, L, S]``.
        weights: non-negative, summing to one along the last dimension, ``[B, S]``.
    """
    samples = _by_size(held, weights)
    marginal = samples.mass.sum(dim=1)
    # A label that no sample holds only makes the set larger: never worth it.
    useful = int((marginal > 0).sum(dim=-1).max())
    if useful == 0:
        return torch.zeros_like(marginal)
    # The likeliest labels alone give a value, and with it the size above which none can win.
    few = min(useful, _FIRST_LIMIT)
    labels = marginal.topk(few, dim=-1).indices
    likeliest = samples.of(labels)
    size, value = _best_number(likeliest, few)
    if few == useful:
        samples = likeliest
    else:
        mean = marginal.sum(dim=-1, keepdim=True)
        largest = int(_farthest(mean, value, useful).amax())
        labels = _possible(samples, marginal, largest)
        samples = samples.of(labels)
        size, _ = _best_number(samples, largest)
    worth = samples.worth(size).squeeze(1)
    ordered = worth.topk(int(size.max()), dim=-1).indices
    taken = torch.arange(ordered.shape[-1], device=held.device) < size
    return torch.zeros_like(marginal).scatter(
        -1, labels.gather(-1, ordered), taken.to(marginal.dtype)
    )


@dataclass(frozen=True)
class _Samples:
    """Weighted samples, as far as the mean F1 against them depends on them.

    Attributes:
        mass: weight of the samples of each size that hold each label, ``[B, N, L]``.
        sizes: those sizes, ``[N]``.
        least: the smallest size of a sample, ``[B, 1]``.
        most: the largest.
        empty: weight of the samples without any label, ``[B, 1]``.
    """

    mass: Tensor
    sizes: Tensor
    least: Tensor
    most: Tensor
    empty: Tensor

    def of(self, labels: Tensor) -> _Samples:
        """Keep some labels ``[B, C]`` of each example."""
        index = labels[:, None].expand(-1, len(self.sizes), -1)
        return replace(self, mass=self.mass.gather(-1, index))

    def worth(self, tried: Tensor) -> Tensor:
        """Return W for sets of the sizes tried, ``[B, K]`` or ``[1, K]``, as ``[B, K, L]``."""
        return (2.0 / (tried[..., None] + self.sizes).clamp(min=1)).to(self.mass) @ self.mass


def _by_size(held: Tensor, weights: Tensor) -> _Samples:
    sizes = held.sum(dim=1)
    low, high = sizes.aminmax()
    reach = torch.arange(int(low), int(high) + 1, device=held.device)
    weight = torch.where(sizes[:, None] == reach[:, None], weights[:, None], 0.0)
    return _Samples(
        mass=weight @ held.mT,
        sizes=reach,
        least=sizes.amin(dim=-1, keepdim=True),
        most=sizes.amax(dim=-1, keepdim=True),
        empty=weights.masked_fill(sizes > 0, 0.0).sum(dim=-1, keepdim=True),
    )


def _possible(samples: _Samples, marginal: Tensor, largest: int) -> Tensor:
    """Return the labels that may be in a best set of at most `largest`, ``[B, C]``.

    ``2 m_i / (k + n_max) <= W_ik <= 2 m_i / (k + n_min)`` with m_i the weight of the samples that
    hold label i: a label below what k others reach for certain, for every k, is in no best set.
    With a thousand labels a few hundred stay.

    Args:
        samples: of all labels.
        marginal: m, ``[B, L]``.
        largest: at least 1.
    """
    k = torch.arange(1, largest + 1, device=marginal.device)
    likely = marginal.topk(largest, dim=-1).values
    needed = likely * (k + samples.least) / (k + samples.most)
    needed = needed.masked_fill(likely == 0, math.inf).amin(dim=-1, keepdim=True)
    count = max(largest, int((marginal >= needed).sum(dim=-1).max()))
    return marginal.topk(count, dim=-1).indices


def _best_number(samples: _Samples, largest: int) -> tuple[Tensor, Tensor]:
    """Return the size of the best set, at most `largest`, and its value, both ``[B, 1]``.

    Few sizes are tried at first. V(k), the value of the best set of k, bounds those in between:
    keeping the best k of k' labels gives ``V(k') <= (k' / k) V(k)``, and adding labels up to K
    gives ``V(k') <= (K + n_min) / (k' + n_min) V(K)``. Those that may still win are tried too.
    """
    grid = _grid(largest, samples.mass.device)
    value = _best_of_sizes(samples, grid)
    best = torch.cat([samples.empty, value], dim=-1).amax(dim=-1, keepdim=True)
    others = torch.arange(1, largest + 1, device=grid.device)
    others = others[~torch.isin(others, grid)]
    above = torch.searchsorted(grid, others)
    fewer = others / grid[above - 1] * value[:, above - 1]
    more = (grid[above] + samples.least) / (others + samples.least) * value[:, above]
    others = others[(torch.minimum(fewer, more) > best).any(dim=0)]
    if len(others) > 0:
        value = torch.cat([value, _best_of_sizes(samples, others)], dim=-1)
    tried, order = torch.cat([grid, others]).sort()
    value, index = torch.cat([samples.empty, value[:, order]], dim=-1).max(dim=-1, keepdim=True)
    return torch.cat([tried.new_zeros(1), tried])[index], value


def _grid(largest: int, device: torch.device) -> Tensor:
    """Return 1, sizes that grow by an eighth, and the largest."""
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size += max(1, size // 8)
    return torch.tensor([*sizes, largest], device=device)


def _best_of_sizes(samples: _Samples, tried: Tensor) -> Tensor:
    """Return the best mean F1 of sets of each of the sizes tried, ``[K]``, as ``[B, K]``."""
    totals = [
        column.topk(k, dim=-1, sorted=False).values.sum(dim=-1)
        for k, column in zip(tried.tolist(), samples.worth(tried[None]).unbind(dim=1), strict=True)
    ]
    return torch.stack(totals, dim=-1)
