"""Conjugate gradients, with an optional preconditioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.operators import LinearOperator
from bilevel.preconditioners import PreconditionerLike, precondition, prepare
from bilevel.solution import State
from bilevel.solvers.base import (
    BREAKDOWN,
    NEGATIVE,
    OK,
    SINGULAR,
    Carry,
    Iterative,
    Outcome,
    Stepwise,
    column,
    dot,
    lowest_curvature,
)


@dataclass(frozen=True)
class CG(Stepwise, Iterative):
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

    @property
    def prepares(self) -> bool:
        return self.preconditioner is not None

    def init(self, operator: LinearOperator) -> State:
        return prepare(self.preconditioner, operator)

    def begin(self, rhs: Tensor, target: Tensor, state: State) -> Carry:
        r = rhs.clone()
        z = precondition(self.preconditioner, state, r)
        rz = dot(r, z)
        floor = target.square()
        active = dot(r, r) > floor
        lost = active & (rz <= 0)
        return {
            "x": torch.zeros_like(rhs),
            "r": r,
            "p": z.clone(),
            "rz": rz,
            "floor": floor,
            "zero": torch.zeros_like(rz),
            "rounding": torch.full_like(rz, 16 * torch.finfo(r.dtype).eps),
            "largest": torch.zeros_like(rz),
            "active": active & ~lost,
            "lost": lost,
        }

    def advance(
        self, operator: LinearOperator, carry: Carry, state: State
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        carry, record = self.descended(operator, carry)
        z = precondition(self.preconditioner, state, carry["r"])
        carry, beta = self.turned(carry, z)
        return carry, (*record, beta)

    def descended(self, operator: LinearOperator, carry: Carry) -> tuple[Carry, tuple[Tensor, ...]]:
        """The first half of a step: x and r move along p."""
        x, r, p, active = (carry[name] for name in ("x", "r", "p", "active"))
        zero = carry["zero"]  # a tensor: to wrap a number costs more than the operation
        ap = operator.rows(p)
        pap = dot(p, ap)
        square = dot(p, p)
        record = (pap, square, active)
        curvature = pap / square
        largest = torch.maximum(carry["largest"], curvature)
        active = active & (curvature > carry["rounding"] * largest)
        alpha = torch.where(active, carry["rz"] / pap, zero)
        length = column(alpha)
        x.addcmul_(length, p)
        r.addcmul_(length, ap, value=-1.0)
        return {**carry, "largest": largest, "active": active}, (*record, alpha)

    def turned(self, carry: Carry, z: Tensor) -> tuple[Carry, Tensor]:
        """The second half: p turns to the preconditioned residual z."""
        r, p, active = carry["r"], carry["p"], carry["active"]
        rz = dot(r, z)
        beta = torch.where(active, rz / carry["rz"], carry["zero"])
        # The direction comes from the residual of this very step: a stale one breaks
        # conjugacy without any other sign.
        torch.addcmul(z, column(beta), p, out=p)
        lost = carry["lost"]
        if self.preconditioner is None:
            active = active & (rz > carry["floor"])
        else:
            active = active & (dot(r, r) > carry["floor"])
            lost = lost | (active & (rz <= 0))
            active = active & ~lost
        return {**carry, "rz": rz, "active": active, "lost": lost}, beta

    def finish(
        self, carry: Carry, records: Sequence[Tensor], state: State, symmetric: bool
    ) -> Outcome:
        *seen, alpha, beta = records
        smallest, negative, singular = lowest_curvature(*seen)
        flag = torch.where(carry["lost"], BREAKDOWN, OK)
        flag = torch.where(negative, NEGATIVE, torch.where(singular, SINGULAR, flag))
        tridiagonal = None
        if self.preconditioner is None:
            # Golub and Van Loan, Matrix computations, section 11.3: the Lanczos coefficients.
            alpha, beta = alpha.T, beta.T
            before = torch.nn.functional.pad(beta / alpha, (1, -1))
            tridiagonal = (1 / alpha + before, beta.sqrt() / alpha)
        iterations = (records[-2] > 0).sum(0)
        return Outcome(carry["x"], iterations, flag, smallest, tridiagonal=tridiagonal)
