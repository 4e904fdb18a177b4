"""A documented, deterministic choice of solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.operators import LinearOperator
from bilevel.solution import State
from bilevel.solvers.base import (
    NEGATIVE,
    SINGULAR,
    Carry,
    Iterative,
    Outcome,
    Solver,
    Stepwise,
    column,
)
from bilevel.solvers.cg import CG
from bilevel.solvers.exact import Exact
from bilevel.solvers.gmres import GMRES
from bilevel.solvers.minres import MINRES

_SMALL = 128
_ENTRIES = 2**22  # of remembered residuals: 16 MiB in single precision, 32 MiB in double
_FEWEST = 32  # residuals; fewer have hardly any effect


@dataclass(frozen=True)
class Auto(Iterative):
    """The default. Which solver runs depends on the operator alone, never on timing or chance.

    * n <= 128: :class:`bilevel.Exact`;
    * symmetric: :class:`bilevel.CG`, its residuals kept orthogonal to those of earlier steps as
      long as these fit into 4 million numbers (130 thousand rows or fewer, one right-hand side);
      right-hand sides that meet curvature below or at zero are handed to :class:`bilevel.MINRES`,
      which goes on from where CG stood;
    * otherwise: :class:`bilevel.GMRES`.

    In rounding, CG forgets the large eigenvalues it has dealt with and finds them again and again.
    Orthogonal residuals spare it that: on a decaying spectrum of condition number 1e6 they save
    more than four fifths of the products. Plain :class:`bilevel.CG` needs less memory.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps of each iterative solver; default ``min(2 n + 10, 500)``.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[2.0, 0.0], [0.0, -4.0]]))
        >>> bilevel.solve(A, torch.tensor([1.0, 2.0])).value
        tensor([ 0.5000, -0.5000])

    Reference:
        Paige, Error analysis of the Lanczos algorithm, 1976, on why CG finds eigenvalues again;
        Golub and Van Loan, Matrix computations, section 10.3, on keeping the vectors orthogonal.
    """

    def chosen(self, operator: LinearOperator) -> Solver:
        """The solver that will run on this operator."""
        if operator.size <= _SMALL:
            return Exact()
        kind = CG if operator.symmetric else GMRES
        return kind(self.rtol, self.atol, self.max_steps)

    def init(self, operator: LinearOperator) -> State:
        return self.chosen(operator).init(operator)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        solver = self.chosen(operator)
        if isinstance(solver, CG):
            outcome = _Remembering(solver).compute(operator, rhs, target, state)
        else:
            outcome = solver.compute(operator, rhs, target, state)
        # Zero curvature is no sign of a singular operator alone: p'Ap is 0 on the multipliers of a
        # constrained problem, whose matrix is indefinite.
        stuck = (outcome.flag == NEGATIVE) | (outcome.flag == SINGULAR)
        if not isinstance(solver, CG) or not bool(stuck.any()):
            return outcome
        minres = MINRES(self.rtol, self.atol, self.max_steps)
        rest = torch.where(column(stuck), rhs - operator.rows(outcome.value), 0.0)
        second = minres.compute(operator, rest, target, {})
        return Outcome(
            outcome.value + second.value,
            outcome.iterations + second.iterations,
            torch.where(stuck, second.flag, outcome.flag),
            torch.minimum(outcome.curvature, second.curvature),
        )


@dataclass(frozen=True)
class _Remembering(Stepwise):
    """CG without a preconditioner whose residuals are kept orthogonal to those it has room for.

    Once the room is full they are let go, which leaves plain CG from there on: to take out the
    early residuals alone would take out what CG has come back to.
    """

    cg: CG

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        return self.cg.tolerances(dtype)

    def steps(self, size: int) -> int:
        return self.cg.steps(size)

    def begin(self, rhs: Tensor, target: Tensor, state: State) -> Carry:
        k, n = rhs.shape
        room = min(_ENTRIES // rhs.numel(), n, self.steps(n))
        memory = rhs.new_empty(k, room if room >= _FEWEST else 0, n)
        return {**self.cg.begin(rhs, target, state), "memory": memory, "basis": memory[:, :0]}

    def advance(
        self, operator: LinearOperator, carry: Carry, state: State
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        memory, basis = carry["memory"], carry["basis"]
        count = basis.shape[1]
        if count == memory.shape[1]:
            return self.cg.advance(operator, carry, state)
        # Without a preconditioner rz is r'r. A row that has arrived stands still: to store its
        # residual would be to take it out of itself.
        scale = torch.where(carry["active"], carry["rz"].rsqrt(), 0.0)
        torch.mul(carry["r"], column(scale), out=memory[:, count])
        basis = memory[:, : count + 1]
        carry, record = self.cg.advance(operator, carry, state)
        r = carry["r"]
        strayed = torch.bmm(torch.bmm(r.unsqueeze(1), basis.mT), basis).squeeze(1)
        r.sub_(strayed)
        carry["p"].sub_(strayed)  # the direction was made from this residual
        return {**carry, "basis": basis}, record

    def finish(
        self, carry: Carry, records: Sequence[Tensor], state: State, symmetric: bool
    ) -> Outcome:
        return self.cg.finish(carry, records, state, symmetric)
