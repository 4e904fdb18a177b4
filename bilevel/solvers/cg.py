"""Conjugate gradients, with an optional preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import ritz
from bilevel.operators import LinearOperator
from bilevel.preconditioners import PreconditionerLike, precondition, prepare
from bilevel.solution import State
from bilevel.solvers.base import (
    BREAKDOWN,
    NEGATIVE,
    SINGULAR,
    CurvatureTrack,
    Iterative,
    Outcome,
    check_interval,
    column,
    dot,
)


@dataclass(frozen=True)
class CG(Iterative):
    """Conjugate gradients for symmetric positive definite operators.

    Exact after n steps in exact arithmetic; the error falls like
    ``((sqrt(c) - 1) / (sqrt(c) + 1))^k`` with the condition number c. One product and five vector
    operations a step. A direction with ``p'Ap <= 0`` stops the row where it stands and is
    reported, never passed over.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps; default ``min(2 n + 10, 500)``.
        preconditioner: :class:`bilevel.Jacobi`, :class:`bilevel.NystromPreconditioner`, or a
            function ``r [n] -> M^-1 r [n]`` with M symmetric positive definite. It changes the
            number of steps, not the answer.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[4.0, 1.0], [1.0, 3.0]]))
        >>> bilevel.solve(A, torch.tensor([1.0, 2.0]), bilevel.CG(rtol=1e-6)).value
        tensor([0.0909, 0.6364])

    Reference:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """

    preconditioner: PreconditionerLike | None = None

    needs_symmetric = True
    # The error falls at every step in the norm of A; the residual may rise on the way, by at most
    # the square root of the condition number.
    growth = 1e4

    def init(self, operator: LinearOperator) -> State:
        return prepare(self.preconditioner, operator)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        x = torch.zeros_like(rhs)
        r = rhs.clone()
        z = precondition(self.preconditioner, state, r)
        p, ap = z.clone(), torch.empty_like(rhs)
        rz = dot(r, z)
        floor = target.square()
        active = dot(r, r) > floor
        lost = active & (rz <= 0)
        active = active & ~lost
        track = CurvatureTrack(rhs)
        largest = torch.zeros_like(rz)
        rounding = 16 * torch.finfo(rhs.dtype).eps
        every = check_interval(rhs.device)
        alphas: list[Tensor] = []
        betas: list[Tensor] = []

        for step in range(self.steps(operator.size)):
            if step % every == 0 and not bool(active.any()):
                break
            ap = operator.rows_into(p, ap)
            pap = dot(p, ap)
            square = dot(p, p)
            track.note(pap, square, active)
            curvature = pap / square
            largest = torch.maximum(largest, curvature)
            active = active & (curvature > rounding * largest)
            alpha = torch.where(active, rz / pap, 0.0)
            x.addcmul_(column(alpha), p)
            r.addcmul_(column(alpha), ap, value=-1.0)
            z = precondition(self.preconditioner, state, r)
            rz_next = dot(r, z)
            beta = torch.where(active, rz_next / rz, 0.0)
            alphas.append(alpha)
            betas.append(beta)
            # The direction comes from the residual of this very step: a stale one breaks
            # conjugacy without any other sign.
            torch.addcmul(z, column(beta), p, out=p)
            rz = rz_next
            if self.preconditioner is None:
                active = active & (rz > floor)
            else:
                active = active & (dot(r, r) > floor)
                lost = lost | (active & (rz <= 0))
                active = active & ~lost

        smallest, negative, singular = track.read()
        flag = torch.where(lost, BREAKDOWN, 0)
        flag = torch.where(negative, NEGATIVE, torch.where(singular, SINGULAR, flag))
        if not alphas:
            return Outcome(x, torch.zeros_like(flag), flag, smallest)
        alpha, beta = torch.stack(alphas, dim=1), torch.stack(betas, dim=1)
        iterations = (alpha > 0).sum(1)
        extremes = None
        if self.preconditioner is None:
            # Golub and Van Loan, Matrix computations, section 11.3: the Lanczos coefficients.
            before = torch.nn.functional.pad(beta / alpha, (1, -1))
            extremes = ritz(1 / alpha + before, beta.sqrt() / alpha, iterations)
        return Outcome(x, iterations, flag, smallest, ritz=extremes)
