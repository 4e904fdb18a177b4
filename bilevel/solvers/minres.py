"""MINRES: the least residual over the Krylov space, for symmetric operators of any signature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import ritz, settled
from bilevel.operators import LinearOperator
from bilevel.preconditioners import PreconditionerLike, precondition, prepare
from bilevel.solution import State
from bilevel.solvers.base import (
    BREAKDOWN,
    SINGULAR,
    CurvatureTrack,
    Iterative,
    Outcome,
    check_interval,
    column,
    dot,
    ratio,
)


@dataclass(frozen=True)
class MINRES(Iterative):
    """Minimal residuals for symmetric operators, indefinite ones included.

    One product and some eight vector operations a step. On positive definite operators it needs
    about as many steps as CG and its residual never grows; on indefinite ones (the KKT matrix of a
    constrained problem, a Hessian at a saddle) CG fails and this does not.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps; default ``min(2 n + 10, 500)``.
        preconditioner: symmetric positive definite; as for :class:`bilevel.CG`.

    Reference:
        Paige and Saunders, Solution of sparse indefinite systems of linear equations, 1975.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> bilevel.solve(A, torch.tensor([1.0, 2.0]), MINRES()).value.round(decimals=4)
        tensor([2., 1.])
    """

    preconditioner: PreconditionerLike | None = None

    needs_symmetric = True

    def init(self, operator: LinearOperator) -> State:
        return prepare(self.preconditioner, operator)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        # Names follow the paper: the Lanczos process gives alfa and beta, one plane rotation a
        # step turns the tridiagonal matrix into a triangular one, w holds the columns of V R^-1.
        x = torch.zeros_like(rhs)
        previous, current = torch.zeros_like(rhs), rhs.clone()
        z = precondition(self.preconditioner, state, current)
        square = dot(current, z)
        norm = torch.linalg.vector_norm(rhs, dim=1)
        active = norm > target
        flag = torch.where(active & (square <= 0), BREAKDOWN, 0)
        active = active & (flag == 0)
        beta = square.clamp_min(0).sqrt()
        # Without a preconditioner phibar is the residual norm; with one it is measured in the
        # norm of M^-1, and the target is carried over by the ratio at the start.
        goal = target * ratio(beta, norm)
        phibar = beta.clone()
        old_beta = torch.ones_like(beta)
        dbar, epsilon = torch.zeros_like(beta), torch.zeros_like(beta)
        cosine, sine = -torch.ones_like(beta), torch.zeros_like(beta)
        w, w_before = torch.zeros_like(rhs), torch.zeros_like(rhs)
        iterations = torch.zeros_like(flag)
        track = CurvatureTrack(rhs)
        scale = torch.zeros_like(beta)
        rounding = 16 * torch.finfo(rhs.dtype).eps
        every = check_interval(rhs.device)
        diagonal: list[Tensor] = []
        off: list[Tensor] = []
        working: list[Tensor] = []

        for step in range(self.steps(operator.size)):
            if not self.fixed and step % every == 0 and not bool(active.any()):
                break
            v = z * column(ratio(torch.ones_like(beta), beta))
            y = operator.rows(v)
            alfa = dot(v, y)
            track.note(alfa, dot(v, v), active)
            y = y - column(ratio(alfa, beta)) * current
            if step > 0:
                y = y - column(ratio(beta, old_beta)) * previous
            previous, current = current, y
            z = precondition(self.preconditioner, state, current)
            old_beta, square = beta, dot(current, z)
            scale = torch.maximum(scale, alfa.abs() + old_beta * (step > 0))
            lost = active & (square < -((rounding * scale) ** 2))
            beta = square.clamp_min(0).sqrt()
            # An invariant subspace: what is left of the recurrence is rounding.
            beta = torch.where(beta > rounding * scale, beta, 0.0)
            diagonal.append(alfa)
            off.append(beta)
            working.append(active)

            delta = cosine * dbar + sine * alfa
            gbar = sine * dbar - cosine * alfa
            old_epsilon, epsilon = epsilon, sine * beta
            dbar = -cosine * beta
            gamma = torch.hypot(gbar, beta)
            singular = active & (gamma <= rounding * scale)
            flag = torch.where(lost, BREAKDOWN, torch.where(singular, SINGULAR, flag))
            active = active & ~lost & ~singular
            cosine, sine = ratio(gbar, gamma), ratio(beta, gamma)
            phi, phibar = cosine * phibar, torch.where(active, sine * phibar, phibar)
            w_next = v - column(old_epsilon) * w_before - column(delta) * w
            w_before, w = w, w_next * column(ratio(torch.ones_like(gamma), gamma))
            x.addcmul_(w, column(torch.where(active, phi, 0.0)))
            iterations += active
            active = active & (phibar.abs() > goal) & (beta > 0)

        smallest = track.read()[0]
        if self.preconditioner is not None or not diagonal:
            return Outcome(x, iterations, flag, smallest)
        tridiagonal = torch.stack(diagonal, dim=1), torch.stack(off, dim=1)
        lowest, highest = ritz(*tridiagonal, torch.stack(working).sum(0))
        # The Lanczos vectors may all show positive curvature where their combinations do not.
        seen = settled(lowest, torch.maximum(highest, -lowest), rounding).to(rhs.dtype)
        return Outcome(x, iterations, flag, torch.minimum(smallest, seen), ritz=(lowest, highest))
