"""Restarted GMRES: the least residual over the Krylov space, for any square operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import Scaled, zero_below_rounding
from bilevel.operators import LinearOperator, finite
from bilevel.preconditioners import PreconditionerLike, precondition, prepare
from bilevel.solution import State
from bilevel.solvers.base import (
    OK,
    SINGULAR,
    Iterative,
    Outcome,
    check_count,
    check_interval,
    column,
)


@dataclass(frozen=True)
class GMRES(Iterative):
    """Generalized minimal residuals, preconditioned from the right, restarted.

    Keeps the whole basis between restarts: ``restart + 1`` vectors of length n. The basis is
    orthogonalised twice (classical Gram-Schmidt), which keeps it orthogonal to rounding and costs
    two matrix products instead of a loop.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most products over all restarts; default ``min(2 n + 10, 500)``.
        restart: basis size, default 30; the method is exact once it reaches n.
        preconditioner: as for :class:`bilevel.CG`, but it need not be symmetric.

    Reference:
        Saad and Schultz, GMRES: a generalized minimal residual algorithm, 1986.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> bilevel.solve(A, torch.tensor([3.0, 1.0]), GMRES()).value.round(decimals=4)
        tensor([1., 1.])
    """

    restart: int = 30
    preconditioner: PreconditionerLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("GMRES", "restart", self.restart)

    def init(self, operator: LinearOperator) -> State:
        return prepare(self.preconditioner, operator)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        x = torch.zeros_like(rhs)
        r = rhs.clone()
        norm = torch.linalg.vector_norm(r, dim=1)
        iterations = torch.zeros_like(norm, dtype=torch.int64)
        deficient = norm < 0
        smallest = torch.full_like(norm, math.inf)
        budget = self.steps(operator.size)
        products = Scaled(operator)
        while budget > 0 and bool((norm > target).any()):
            correction, hessenberg = self._cycle(products, r, norm, target, state, budget)
            steps = hessenberg.shape[2]
            values = torch.linalg.svdvals(hessenberg)
            deficient = values[:, -1] <= steps * torch.finfo(r.dtype).eps * values[:, 0]
            if self.preconditioner is None:
                seen = products.curvature(_curvature(hessenberg).to(r.dtype))
                smallest = torch.minimum(smallest, seen)
            correction = products.solution(correction)
            x_next = x + precondition(self.preconditioner, state, correction)
            r_next = rhs - operator.rows(x_next)
            norm_next = torch.linalg.vector_norm(r_next, dim=1)
            better = norm_next < norm
            iterations += torch.where(norm > target, steps, 0)
            x = torch.where(column(better), x_next, x)
            r = torch.where(column(better), r_next, r)
            norm = torch.where(better, norm_next, norm)
            budget -= steps
            if not bool(better.any()):
                break
        flag = torch.where(deficient & (norm > target), SINGULAR, OK)
        return Outcome(x, iterations, flag, smallest, residual=r)

    def _cycle(
        self,
        products: Scaled,
        r: Tensor,
        norm: Tensor,
        target: Tensor,
        state: State,
        budget: int,
    ) -> tuple[Tensor, Tensor]:
        """One Arnoldi process from the residual ``[k, n]``.

        Returns:
            The correction ``[k, n]``, and the Hessenberg matrices ``[k, steps + 1, steps]``.
        """
        k, n = r.shape
        length = min(self.restart, n, budget)
        basis = r.new_zeros(k, length + 1, n)
        hessenberg = r.new_zeros(k, length + 1, length)
        basis[:, 0] = _normalised(r, norm)
        rotations = _Rotations(hessenberg)
        every = check_interval(r.device)
        steps = 0
        for j in range(length):
            w = products.rows(precondition(self.preconditioner, state, basis[:, j]))
            before = torch.linalg.vector_norm(w, dim=1)
            known = basis[:, : j + 1]
            for _ in range(2):
                overlap = torch.bmm(known, w.unsqueeze(2))
                w = w - torch.bmm(overlap.mT, known).squeeze(1)
                hessenberg[:, : j + 1, j] += overlap.squeeze(2)
            size = torch.linalg.vector_norm(w, dim=1)
            # An exhausted Krylov space leaves only rounding: a zero vector ends this row.
            size = torch.where(size > 16 * torch.finfo(w.dtype).eps * before, size, 0.0)
            hessenberg[:, j + 1, j] = size
            basis[:, j + 1] = _normalised(w, size)
            steps = j + 1
            residual = norm * rotations.turn(hessenberg[:, :, j], j)
            if steps % every == 0 and bool((residual <= target).all()):
                break
        weights = _least_squares(hessenberg, steps, norm)
        correction = torch.bmm(weights.unsqueeze(1), basis[:, :steps]).squeeze(1)
        return correction, _wide(hessenberg, steps)


class _Rotations:
    """The plane rotations that turn growing Hessenberg matrices triangular, as one product each.

    Reference:
        Saad and Schultz, 1986, section 3.2: the residual falls out of them at every step.
    """

    def __init__(self, hessenberg: Tensor) -> None:
        size = hessenberg.shape[1]
        one = torch.eye(size, dtype=hessenberg.dtype, device=hessenberg.device)
        self._product = one.repeat(hessenberg.shape[0], 1, 1)

    def turn(self, entries: Tensor, j: int) -> Tensor:
        """Take in column j ``[k, m + 1]``; returns the relative residual of each row ``[k]``."""
        turned = torch.bmm(self._product, entries.unsqueeze(2)).squeeze(2)
        above, below = turned[:, j], turned[:, j + 1]
        radius = torch.hypot(above, below)
        cosine = torch.where(radius > 0, above / radius, 1.0).unsqueeze(1)
        sine = torch.where(radius > 0, below / radius, 0.0).unsqueeze(1)
        first, second = self._product[:, j].clone(), self._product[:, j + 1].clone()
        self._product[:, j] = cosine * first + sine * second
        self._product[:, j + 1] = cosine * second - sine * first
        return self._product[:, j + 1, 0].abs()


def _normalised(rows: Tensor, norm: Tensor) -> Tensor:
    alive = column(norm) > 0
    return torch.where(alive, rows / torch.where(alive, column(norm), 1.0), 0.0)


def _curvature(hessenberg: Tensor) -> Tensor:
    """The smallest ``p'Ap / p'p`` over the space spanned, ``[k]``."""
    square = hessenberg[:, :-1]
    size = torch.linalg.matrix_norm(hessenberg)
    # A row whose space was exhausted early left zero columns, which are no directions seen.
    unseen = (hessenberg == 0).all(1) & (size > 0).unsqueeze(1)
    symmetric = (square + square.mT) / 2 + torch.diag_embed(unseen * size.unsqueeze(1))
    noise = 16 * torch.finfo(hessenberg.dtype).eps
    return zero_below_rounding(torch.linalg.eigvalsh(symmetric)[:, 0], size, noise)


def _least_squares(hessenberg: Tensor, steps: int, norm: Tensor) -> Tensor:
    """``argmin_y ||norm e_1 - H y||`` for each row, ``[k, steps]``; least norm if H is singular."""
    floor = steps * torch.finfo(hessenberg.dtype).eps
    inverse = torch.linalg.pinv(_wide(hessenberg, steps), rtol=floor)
    return norm.unsqueeze(-1) * inverse[:, :, 0].to(hessenberg.dtype)


def _wide(hessenberg: Tensor, steps: int) -> Tensor:
    """The part in use, in single precision at least: there are no half-precision factorizations."""
    used = finite(hessenberg[:, : steps + 1, :steps])
    return used.to(torch.promote_types(used.dtype, torch.float32))
