"""A documented, deterministic choice of solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.operators import LinearOperator
from bilevel.solution import State
from bilevel.solvers.base import NEGATIVE, SINGULAR, Iterative, Outcome, Solver, column
from bilevel.solvers.cg import CG
from bilevel.solvers.exact import Exact
from bilevel.solvers.gmres import GMRES
from bilevel.solvers.minres import MINRES

_SMALL = 128


@dataclass(frozen=True)
class Auto(Iterative):
    """The default. Which solver runs depends on the operator alone, never on timing or chance.

    * n <= 128: :class:`bilevel.Exact`;
    * symmetric: :class:`bilevel.CG`; right-hand sides that meet curvature below or at zero are
      handed to :class:`bilevel.MINRES`, which goes on from where CG stood;
    * otherwise: :class:`bilevel.GMRES`.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps of each iterative solver; default ``min(2 n + 10, 500)``.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[2.0, 0.0], [0.0, -4.0]]))
        >>> bilevel.solve(A, torch.tensor([1.0, 2.0])).value
        tensor([ 0.5000, -0.5000])
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
