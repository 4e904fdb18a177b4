"""A documented, deterministic choice of solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bilevel.operators import LinearOperator
from bilevel.solution import State
from bilevel.solvers._confidence import Confidence
from bilevel.solvers._recycling import Recycled, check_state
from bilevel.solvers._reorthogonalized_cg import ReorthogonalizedCG
from bilevel.solvers.base import (
    BREAKDOWN,
    NEGATIVE,
    SINGULAR,
    Iterative,
    Outcome,
    Solver,
    column,
)
from bilevel.solvers.cg import CG
from bilevel.solvers.exact import Exact
from bilevel.solvers.gmres import GMRES
from bilevel.solvers.minres import MINRES

_SMALL = 128


@dataclass(frozen=True)
class Auto(Iterative):
    """The default. Which solver runs depends on the operator alone, never on timing or chance.

    * n <= 128: :class:`bilevel.Exact`;
    * symmetric: :class:`bilevel.CG` with full reorthogonalization while the residuals fit into 4
      million numbers (130 thousand rows or fewer, one right-hand side); right-hand sides that meet
      curvature below or at zero are handed to :class:`bilevel.MINRES`, which goes on from where CG
      stood;
    * otherwise: :class:`bilevel.GMRES`.

    In rounding, CG forgets the large eigenvalues it has dealt with and finds them again and again.
    Orthogonal residuals spare it that: on a decaying spectrum of condition number 1e6 they save
    more than four fifths of the products. Plain :class:`bilevel.CG` needs less memory.

    A solve by CG with one right-hand side can be recycled: its state holds its last directions and
    their images, 100 of each at most. Passed on as ``state=``, they are the preconditioner of the
    next solve, which costs no product and remains of use while the operator moves. Where it is in
    the way, as it may be from one minibatch to the next, a solve goes on without it after the steps
    that it would have taken alone, and the next ones try it ever more seldom.
    :class:`bilevel.BilevelOptimizer` passes it on by itself.

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
        Golub and Van Loan, Matrix computations, section 10.3, on keeping the vectors orthogonal;
        Morales and Nocedal, Automatic preconditioning by limited memory quasi-Newton updating,
        2000, on recycling the vectors of earlier solves.
    """

    def chosen(self, operator: LinearOperator) -> Solver:
        """The solver that will run on this operator."""
        if operator.size <= _SMALL:
            return Exact()
        kind = CG if operator.symmetric else GMRES
        return kind(self.rtol, self.atol, self.max_steps)

    def init(self, operator: LinearOperator) -> State:
        return self.chosen(operator).init(operator)

    def recycles(self, operator: LinearOperator) -> bool:
        single = operator.batch is None and not self.fixed
        return single and isinstance(self.chosen(operator), CG)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        solver = self.chosen(operator)
        if not isinstance(solver, CG):
            return solver.compute(operator, rhs, target, state)
        if len(rhs) == 1 and self.recycles(operator):
            outcome = self._recycling(solver, operator, rhs, target, state)
        else:
            outcome = ReorthogonalizedCG(solver).compute(operator, rhs, target, {})
        # Zero curvature is no sign of a singular operator alone: p'Ap is 0 on the multipliers of a
        # constrained problem, whose matrix is indefinite.
        stuck = (outcome.flag == NEGATIVE) | (outcome.flag == SINGULAR)
        minres = MINRES(self.rtol, self.atol, self.max_steps)
        return _gone_on(minres, stuck, outcome, operator, rhs, target)

    def _recycling(
        self, solver: CG, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        """By CG, preconditioned by the solves before where that may be relied on."""
        plain, confidence = ReorthogonalizedCG(solver), Confidence.of(state)
        folds = float((torch.linalg.vector_norm(rhs) / target[0]).log())
        if "directions" in state:
            check_state(state, rhs)
        if "directions" in state and not confidence.rest:
            # One more than it may take shows that it would have needed more.
            steps = int(min(confidence.steps(folds) + 1, self.steps(operator.size)))
            recycling = replace(solver, preconditioner=Recycled(), max_steps=steps)
            outcome = ReorthogonalizedCG(recycling).compute(operator, rhs, target, state)
            failed = outcome.iterations >= steps
            failed = failed | (outcome.flag == BREAKDOWN) | outcome.curvature.isnan()
            outcome = _gone_on(plain, failed, outcome, operator, rhs, target)
            confidence = confidence.with_it(bool(failed))
        else:
            outcome = plain.compute(operator, rhs, target, {})
            confidence = confidence.without(int(outcome.iterations), folds)
        recycle = outcome.recycle
        if recycle is None:
            return outcome
        return replace(outcome, recycle=lambda: {**recycle(), **confidence.state()})


def _gone_on(
    solver: Solver,
    concerned: Tensor,
    outcome: Outcome,
    operator: LinearOperator,
    rhs: Tensor,
    target: Tensor,
) -> Outcome:
    """What another solver makes of the rows concerned, ``[k]``, from where they stand.

    Rows that stand further off than zero does begin there.
    """
    if not bool(concerned.any()):
        return outcome
    rest = rhs - operator.rows(outcome.value)
    better = torch.linalg.vector_norm(rest, dim=1) <= torch.linalg.vector_norm(rhs, dim=1)
    anew = column(concerned & ~better)  # also where there is a NaN
    value = torch.where(anew, 0.0, outcome.value)
    rest = torch.where(anew, rhs, torch.where(column(concerned), rest, 0.0))
    second = solver.compute(operator, rest, target, {})
    seen = torch.where(concerned & outcome.curvature.isnan(), torch.inf, outcome.curvature)
    return Outcome(
        value + second.value,
        outcome.iterations + second.iterations,
        torch.where(concerned, second.flag, outcome.flag),
        torch.minimum(seen, second.curvature),
        recycle=second.recycle or outcome.recycle,
    )
