"""Cheap looks at an operator: its scale, its extreme eigenvalues, and a low-rank approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.errors import InputError
from bilevel.operators import LinearOperator, finite


@dataclass(frozen=True)
class Spectrum:
    """Bounds on the spectrum, one entry per matrix (``[1]``, or ``[B]`` for a batched operator).

    Attributes:
        lowest: smallest Ritz value; never below the smallest eigenvalue.
        highest: largest Ritz value plus its residual norm; practically an upper bound.
    """

    lowest: Tensor
    highest: Tensor


def lanczos(operator: LinearOperator, steps: int, seed: int = 0) -> Spectrum:
    """Bound the spectrum by a few Lanczos steps with full reorthogonalisation.

    The start vector comes from a generator of its own; the global random state is not touched.

    Args:
        operator: symmetric.
        steps: products to spend, at most n are used.
        seed: of the start vector.

    Reference:
        Zhou and Li, Bounding the spectrum of large Hermitian matrices, 2011: the largest Ritz
        value plus the norm of the last residual bounds the largest eigenvalue from above.
    """
    n, count = operator.size, operator.batch or 1
    steps = min(steps, n)
    start = _random_rows(operator, 1, seed).expand(count, -1)
    v = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    basis = v.new_zeros(count, steps, n)
    tridiagonal = v.new_zeros(count, steps, steps)
    beta = v.new_zeros(count)
    for j in range(steps):
        basis[:, j] = v
        w = operator.rows(v)
        tridiagonal[:, j, j] = torch.linalg.vecdot(v, w)
        for _ in range(2):  # twice is enough to stay orthogonal to rounding
            seen = basis[:, : j + 1]
            w = w - torch.einsum("kjn,kj->kn", seen, torch.einsum("kjn,kn->kj", seen, w))
        beta = torch.linalg.vector_norm(w, dim=1)
        if j + 1 < steps:
            # An invariant subspace ends the recurrence: zero vectors from there on add nothing.
            scale = tridiagonal[:, j, j].abs() + beta
            alive = beta > 16 * torch.finfo(w.dtype).eps * scale
            v = torch.where(alive.unsqueeze(-1), w / torch.where(alive, beta, 1.0).unsqueeze(-1), 0)
            coupling = torch.where(alive, beta, 0.0)
            tridiagonal[:, j, j + 1] = coupling
            tridiagonal[:, j + 1, j] = coupling
    # Rows of an ended recurrence hold zero vectors; their zero Ritz values are masked out.
    alive = torch.linalg.vector_norm(basis, dim=2) > 0.5
    values, vectors = torch.linalg.eigh(finite(tridiagonal).double().cpu())
    weight = torch.einsum("kji,kj->ki", vectors.square(), alive.double().cpu())
    real = weight > 0.5
    lowest = torch.where(real, values, torch.inf).amin(1)
    highest = torch.where(real, values, -torch.inf).amax(1) + beta.double().cpu()
    noise = 16 * torch.finfo(operator.dtype).eps
    lowest = zero_below_rounding(lowest, torch.maximum(highest, -lowest), noise)
    kind = {"dtype": operator.dtype, "device": operator.device}
    return Spectrum(lowest.to(**kind), highest.to(**kind))


def ritz(diagonal: Tensor, off: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of symmetric tridiagonal matrices, one of each row.

    Args:
        diagonal: ``[k, m]``.
        off: ``[k, m]``, the last entry unused.
        steps: ``[k]``, how many rows and columns count; the others may hold anything.

    Returns:
        The smallest and the largest ``[k]``, in double precision; ``inf`` and ``-inf`` of none.
    """
    places = torch.arange(diagonal.shape[1], device=diagonal.device)
    counted = places < steps.unsqueeze(1)
    # What does not count repeats the first entry, which lies between the extremes.
    diagonal = torch.where(counted, diagonal, diagonal[:, :1])
    off = torch.where(places + 1 < steps.unsqueeze(1), off, 0.0)[:, :-1]
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    some = steps > 0
    values = torch.linalg.eigvalsh(
        finite(torch.where(some[:, None, None], matrices, 0.0)).double().cpu()
    ).to(diagonal.device)
    return (
        torch.where(some, values[:, 0], torch.inf),
        torch.where(some, values[:, -1], -torch.inf),
    )


def zero_below_rounding(smallest: Tensor, largest: Tensor, noise: float) -> Tensor:
    """The smallest curvature, 0 where it is within rounding of 0: no sign to be read there.

    Infinite, where none was seen, it stays.
    """
    size = smallest.abs()
    near = (size <= noise * largest.abs()) & (size < math.inf)
    return torch.where(near, 0.0, smallest)


class Scaled:
    """Products with an operator, in a scale in which squares neither overflow nor vanish.

    The first product tells the scale. In the range of ordinary numbers it is one, and costs
    nothing.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self._scale: Tensor | None = None
        self._known = False

    def rows(self, rows: Tensor) -> Tensor:
        """``scale A v`` for every row v of ``[k, n]``."""
        product = self._operator.rows(rows)
        if not self._known:
            self._scale, self._known = _scale(product), True
        return product if self._scale is None else product * self._scale.unsqueeze(1)

    def solution(self, value: Tensor) -> Tensor:
        """The solution ``[k, n]`` of A from that of ``scale A``."""
        return value if self._scale is None else value * self._scale.unsqueeze(1)

    def curvature(self, seen: Tensor) -> Tensor:
        """The curvature ``[k]`` of A from that of ``scale A``."""
        return seen if self._scale is None else seen / self._scale


def _scale(rows: Tensor) -> Tensor | None:
    """Powers of two ``[k]`` that bring rows to a largest entry near one; None if all are near."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    exponent = torch.frexp(rows.abs().amax(1).to(wide)).exponent
    reach = -math.floor(math.log2(torch.finfo(rows.dtype).tiny))
    if not bool((exponent.abs() > reach // 6).any()):
        return None
    return torch.exp2(-exponent.clamp(-reach, reach).to(wide)).to(rows.dtype)


@dataclass(frozen=True)
class LowRank:
    """``A ~ U diag(eigenvalues) U' + rest (I - U U')``, in single precision at least.

    Attributes:
        basis: U ``[n, r]``, orthonormal columns.
        eigenvalues: ``[r]`` in falling order, all positive.
        rest: the level of all other eigenvalues, 0-d; 0 only where nothing positive was met.
        smallest: smallest curvature met, 0-d.
    """

    basis: Tensor
    eigenvalues: Tensor
    rest: Tensor
    smallest: Tensor


def low_rank(operator: LinearOperator, rank: int, seed: int, level: float | None = None) -> LowRank:
    """The randomized Nystrom approximation of a semidefinite operator, low rank above a level.

    The level is subtracted before and added back: of a matrix with a floor (damping, a penalty) the
    approximation would put the smallest eigenvalues far below it.

    Args:
        operator: symmetric, one matrix (no batch).
        rank: products to spend; n or more give A itself.
        seed: of the Gaussian test matrix.
        level: None takes the smallest curvature met, which is the level itself where A is of a
            lower rank above one.

    Reference:
        Frangella, Tropp and Udell, Randomized Nystrom preconditioning, 2021, algorithm 2.1 (here
        with an eigendecomposition of the core, which tolerates a semidefinite one).
    """
    if operator.batch is not None:
        raise InputError("a low-rank approximation takes one matrix at a time, not a batch.")
    rank = min(rank, operator.size)
    kind = torch.promote_types(operator.dtype, torch.float32)
    test = torch.linalg.qr(_random_rows(operator, rank, seed).to(kind).T).Q
    image = finite(operator.rows(test.T.to(operator.dtype).contiguous())).T.to(kind)
    core = test.T @ image
    values, vectors = torch.linalg.eigh(0.5 * (core + core.T))
    noise = 4 * rank * torch.finfo(operator.dtype).eps * values.abs().max()
    smallest = torch.where(values[0].abs() > noise, values[0], 0.0)
    floor = smallest.clamp_min(0.0)
    rest = floor if level is None else values.new_tensor(level)
    above = values - rest
    keep = above > noise
    half = (image - rest * test) @ vectors[:, keep] / above[keep].sqrt()
    left, singular, _ = torch.linalg.svd(half, full_matrices=False)
    eigenvalues = singular.square() + rest
    if eigenvalues.numel() and not rest:
        rest = eigenvalues[-1]
    return LowRank(left, eigenvalues, rest, smallest)


def _random_rows(operator: LinearOperator, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, operator.size, generator=generator, dtype=torch.float64, device="cpu")
    return rows.to(operator.dtype).to(operator.device)
