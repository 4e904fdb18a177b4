"""MINRES: the least residual over the Krylov space, for symmetric operators of any signature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import Scaled, ritz, zero_below_rounding
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
    zero_if_worse,
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
        old_beta, old_shrink = torch.ones_like(beta), torch.ones_like(beta)
        dbar, epsilon = torch.zeros_like(beta), torch.zeros_like(beta)
        cosine, sine = -torch.ones_like(beta), torch.zeros_like(beta)
        w, w_before = torch.zeros_like(rhs), torch.zeros_like(rhs)
        iterations = torch.zeros_like(flag)
        track = CurvatureTrack(rhs)
        products = Scaled(operator)
        standing = _Standing(x, phibar)
        scale, start = torch.zeros_like(beta), torch.zeros_like(beta)
        rounding = 16 * torch.finfo(rhs.dtype).eps
        every = check_interval(rhs.device)
        diagonal: list[Tensor] = []
        off: list[Tensor] = []
        working: list[Tensor] = []

        for step in range(self.steps(operator.size)):
            if not self.fixed and step % every == 0 and not bool(active.any()):
                break
            shrink = _inverse(beta)
            v = z * column(shrink)
            y = products.rows(v)
            alfa = dot(v, y)
            track.note(alfa, dot(v, v), active)
            y = torch.addcmul(y, column(alfa * shrink), current, value=-1.0)
            if step > 0:
                y = y.addcmul_(column(beta * old_shrink), previous, value=-1.0)
            previous, current = current, y
            z = precondition(self.preconditioner, state, current)
            old_beta, old_shrink, square = beta, shrink, dot(current, z)
            scale = torch.maximum(scale, alfa.abs() + old_beta * (step > 0))
            lost = active & (square < -((rounding * scale) ** 2))
            beta = square.clamp_min(0).sqrt()
            # An invariant subspace: what is left of the recurrence is rounding.
            beta = torch.where(beta > rounding * scale, beta, 0.0)
            start = torch.hypot(alfa, beta) if step == 0 else start
            diagonal.append(alfa)
            off.append(beta)
            working.append(active)

            delta = cosine * dbar + sine * alfa
            gbar = sine * dbar - cosine * alfa
            old_epsilon, epsilon = epsilon, sine * beta
            dbar = -cosine * beta
            slope = torch.hypot(gbar, dbar) / torch.maximum(scale, beta)
            active = active & standing.moves(slope, x, phibar, active, step)
            gamma = torch.hypot(gbar, beta)
            # Also where the first product proves to have been rounding, once the scale is known.
            null = start <= rounding / 4 * scale
            singular = active & ((gamma <= rounding * scale) | null)
            flag = torch.where(lost, BREAKDOWN, torch.where(singular, SINGULAR, flag))
            active = active & ~lost & ~singular
            shrink = _inverse(gamma)
            cosine, sine = gbar * shrink, beta * shrink
            phi, phibar = cosine * phibar, torch.where(active, sine * phibar, phibar)
            w_next = v - column(old_epsilon) * w_before - column(delta) * w
            w_before, w = w, w_next * column(shrink)
            x.addcmul_(w, column(torch.where(active, phi, 0.0)))
            iterations += active
            active = active & (phibar.abs() > goal) & (beta > 0)

        def size(rows: Tensor) -> Tensor:
            return dot(rows, precondition(self.preconditioner, state, rows)).sqrt()

        x = torch.where(column((flag == SINGULAR) & (start <= rounding / 4 * scale)), 0.0, x)
        remaining = rhs - products.rows(x)
        before, stood = standing.better(x, phibar.abs() > goal, size(remaining))
        if bool(stood.any()):
            x, remaining = before, rhs - products.rows(before)
        # Rows whose steps ran out before it could be told are just short of steps.
        flag = torch.where(stood & (~active | standing.waited(iterations)), SINGULAR, flag)
        x, smallest = products.solution(x), products.curvature(track.read()[0])
        if self.preconditioner is not None or not diagonal:
            return zero_if_worse(Outcome(x, iterations, flag, smallest), rhs, remaining, size)
        tridiagonal = torch.stack(diagonal, dim=1), torch.stack(off, dim=1)
        lowest, highest = ritz(*tridiagonal, torch.stack(working).sum(0))
        # The Lanczos vectors may all show positive curvature where their combinations do not.
        seen = zero_below_rounding(lowest, torch.maximum(highest, -lowest), rounding).to(rhs.dtype)
        smallest = torch.minimum(smallest, products.curvature(seen))
        ends = products.curvature(lowest), products.curvature(highest)
        outcome = Outcome(x, iterations, flag, smallest, ritz=ends)
        return zero_if_worse(outcome, rhs, remaining, size)


def _inverse(positive: Tensor) -> Tensor:
    """``1 / positive``, 0 where that is 0."""
    return torch.where(positive > 0, positive.reciprocal(), 0.0)


class _Standing:
    """Where each row stood when ``A r`` was next to nothing: there, if A is singular, it ends.

    A residual that A takes to next to nothing is one that no x lowers, or one that only a tiny
    eigenvalue lowers. Going on tells: the second takes about as many steps as were needed so far,
    while in the first nothing but rounding is left, in which x grows without bound.

    Reference:
        Paige and Saunders, LSQR, 1982, section 6, on stopping by ``||A r|| / (||A|| ||r||)``; Choi,
        Paige and Saunders, MINRES-QLP, 2011, on MINRES where A is singular.
    """

    def __init__(self, x: Tensor, phibar: Tensor) -> None:
        self._x, self._phibar = x.clone(), phibar
        self._least = torch.full_like(phibar, 10 * torch.finfo(x.dtype).eps ** 0.5)
        self._met = torch.zeros_like(phibar, dtype=torch.bool)
        self._over = self._met
        self._until = torch.zeros_like(phibar, dtype=torch.int64)

    def moves(self, slope: Tensor, x: Tensor, phibar: Tensor, active: Tensor, step: int) -> Tensor:
        """Take note of ``||A r|| / (||A|| ||r||)``; returns the rows that have not come to rest."""
        lower = active & ~(slope > self._least) & ~self._over
        torch.where(column(lower), x, self._x, out=self._x)
        self._phibar = torch.where(lower, phibar, self._phibar)
        self._least = torch.where(lower, slope, self._least)
        self._until = torch.where(lower & ~self._met, 2 * step + 10, self._until)
        self._met = self._met | lower
        # Once it has risen again, what is low is so by rounding.
        self._over = self._over | (self._met & (slope > 10 * self._least))
        return ~(self._met & self.waited(step) & (phibar.abs() > self._share()))

    def waited(self, steps: int | Tensor) -> Tensor:
        """Whether that is steps enough to tell."""
        return self._until <= steps

    def better(self, x: Tensor, left: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The answer, and the rows where it is that of then.

        Args:
            x: where the rows stand now.
            left: those that have not arrived.
            size: the norm of the true residual, of which the recurrence may know nothing by now.
        """
        stood = self._met & left & ~(size <= self._share())
        return torch.where(column(stood), self._x, x), stood

    def _share(self) -> Tensor:
        """What may be left of the residual of then, where that was not the end."""
        return 0.1 * self._phibar.abs()
