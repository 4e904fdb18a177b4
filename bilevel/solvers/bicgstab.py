"""Stabilised biconjugate gradients: short recurrences for operators that are not symmetric."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import Scaled
from bilevel.operators import LinearOperator
from bilevel.preconditioners import PreconditionerLike, precondition, prepare
from bilevel.solution import State
from bilevel.solvers.base import (
    BREAKDOWN,
    CurvatureTrack,
    Iterative,
    Outcome,
    check_interval,
    column,
    dot,
    ratio,
    zero_if_worse,
)


@dataclass(frozen=True)
class BiCGStab(Iterative):
    """BiCGStab, preconditioned from the right: two products a step, seven vectors of memory.

    Prefer :class:`bilevel.GMRES` where its basis fits in memory: it cannot break down and its
    residual never grows. Here it may; an answer that leaves more than zero would is zero.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps of two products; default ``min(2 n + 10, 500)``.
        preconditioner: as for :class:`bilevel.CG`, but it need not be symmetric.

    Reference:
        Van der Vorst, Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG, 1992.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> bilevel.solve(A, torch.tensor([3.0, 1.0]), BiCGStab()).value.round(decimals=4)
        tensor([1., 1.])
    """

    preconditioner: PreconditionerLike | None = None

    def init(self, operator: LinearOperator) -> State:
        return prepare(self.preconditioner, operator)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        x = torch.zeros_like(rhs)
        r = rhs.clone()
        shadow = rhs.clone()
        p = r.clone()
        rho = dot(shadow, r)
        active = torch.linalg.vector_norm(r, dim=1) > target
        flag = torch.zeros_like(active, dtype=torch.int64)
        iterations = torch.zeros_like(flag)
        track = CurvatureTrack(rhs)
        products = Scaled(operator)
        rounding = torch.finfo(rhs.dtype).eps
        every = check_interval(rhs.device)

        for step in range(self.steps(operator.size)):
            if not self.fixed and step % every == 0 and not bool(active.any()):
                break
            p_hat = precondition(self.preconditioner, state, p)
            v = products.rows(p_hat)
            square = dot(p_hat, p_hat)
            track.note(dot(p_hat, v), square, active & (square != 0))
            overlap = dot(shadow, v)
            alpha = torch.where(active, ratio(rho, overlap), 0.0)
            s = r - column(alpha) * v
            s_hat = precondition(self.preconditioner, state, s)
            t = products.rows(s_hat)
            square = dot(s_hat, s_hat)
            track.note(dot(s_hat, t), square, active & (square != 0))
            omega = torch.where(active, ratio(dot(t, s), dot(t, t)), 0.0)
            x.addcmul_(column(alpha), p_hat).addcmul_(column(omega), s_hat)
            r = torch.where(column(active), s - column(omega) * t, r)
            iterations += active
            size = torch.linalg.vector_norm(r, dim=1)
            rho_next = dot(shadow, r)
            going = active & (size > target)
            # Either product vanishing stops the recurrence, though the iterate stays usable.
            limit = rounding * torch.linalg.vector_norm(shadow, dim=1)
            broken = going & (
                (overlap.abs() <= limit * torch.linalg.vector_norm(v, dim=1))
                | (rho_next.abs() <= rounding * limit * size)
                | (omega == 0)
            )
            flag = torch.where(broken, BREAKDOWN, flag)
            active = going & ~broken
            beta = torch.where(active, ratio(rho_next, rho) * ratio(alpha, omega), 0.0)
            p = r + column(beta) * (p - column(omega) * v)
            rho = rho_next

        smallest = products.curvature(track.read()[0])
        outcome = Outcome(products.solution(x), iterations, flag, smallest)
        norm = functools.partial(torch.linalg.vector_norm, dim=1)
        return zero_if_worse(outcome, rhs, rhs - products.rows(x), norm)
