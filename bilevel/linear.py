"""``bilevel.solve``: one face for every solver, and the honest figures of what it did."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel import _transforms
from bilevel._closures import follows
from bilevel._guard import without_autocast
from bilevel._system import (
    Progress,
    System,
    arrived,
    extremes,
    figures,
    gathered,
    largest,
    scaled,
    verdict,
    warm_start,
)
from bilevel.errors import (
    ConvergenceWarning,
    InputError,
    NonFiniteError,
    SolveError,
    TransformError,
    outside,
)
from bilevel.operators import LinearOperator, as_rows, described, facts
from bilevel.solution import ColumnStats, Result, Solution, State
from bilevel.solvers.auto import Auto
from bilevel.solvers.base import DIVERGED, OK, Solver, column

OnFailure = Literal["warn", "raise", "ignore"]

# Recurrences drift from the true residual in rounding; a solve that met its tolerance only on
# paper goes on from the true residual at most this often.
_ROUNDS = 4


def solve(
    operator: LinearOperator,
    b: Any,
    solver: Solver | None = None,
    *,
    initial: Any = None,
    state: State | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve ``A x = b``.

    The right-hand side is scaled to one before solving and the answer scaled back, so that tiny
    and huge ones converge alike, and the residual reported is recomputed from the final value.

    Args:
        operator: A, n x n.
        b: a vector ``[n]``, columns ``[n, k]`` solved together, each with its own convergence, or
            a tree of the operator's layout; ``[B, n]`` for a batch of B matrices.
        solver: default :class:`bilevel.Auto`.
        initial: a first guess shaped like b. One that is worse than zero is not used.
        state: ``Solution.state`` of an earlier solve by the same solver, to reuse its
            factorization, preconditioner or step; default: prepare anew.
        on_failure: what a failed solve does: ``"warn"`` (default) warns and returns the value,
            ``"raise"`` raises, ``"ignore"`` returns in silence.

    Returns:
        The value, the result, the figures and the state. It is not differentiated, neither in b,
        which is refused if it requires grad, nor in what the operator was made from:
        :func:`bilevel.linear_solve` is.

    Raises:
        InputError: shapes, dtypes or devices disagree; the solver does not fit the operator.
        NonFiniteError: b or ``initial`` holds a NaN or an infinity, or one appears on the way.
        SolveError: the solve failed and ``on_failure="raise"``.

    Example:
        >>> from bilevel import Matrix
        >>> A = Matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> solution = solve(A, torch.tensor([3.0, 4.0]))
        >>> solution.value.round(decimals=4), solution.result.name
        (tensor([1., 1.]), 'SUCCESS')
    """
    if not isinstance(operator, LinearOperator):
        raise InputError(
            f"operator is a {type(operator).__name__}; wanted a LinearOperator "
            "(bilevel.Matrix wraps a tensor, bilevel.from_scipy a SciPy operator)."
        )
    _refuse_transforms(operator, b, initial)
    rows, back = as_rows(operator, b, "b")
    if rows.requires_grad:
        raise InputError(
            "b requires grad, but bilevel.solve is not differentiated. Use bilevel.linear_solve, "
            "which is, or pass b.detach()."
        )
    guess = None if initial is None else as_rows(operator, initial, "initial")[0].detach()
    if guess is not None and guess.shape != rows.shape:
        raise InputError(f"initial has {guess.shape[0]} column(s), b has {rows.shape[0]}.")
    solution = solve_rows(operator, rows, solver, guess, state, on_failure)
    return replace(solution, value=back(solution.value))


def solve_rows(
    operator: LinearOperator,
    rows: Tensor,
    solver: Solver | None,
    initial: Tensor | None = None,
    state: State | None = None,
    on_failure: OnFailure = "warn",
    full: bool = True,
) -> Solution:
    """:func:`solve` on rows ``[k, n]``, for the rest of the package.

    Unless ``full``, what costs time and only a report shows is left out: the Ritz values, and the
    state for a next solve that this one could make of what it has met.
    """
    solver = check_options(solver, on_failure)
    if solver.needs_symmetric and not operator.symmetric:
        raise InputError(
            f"{type(solver).__name__} needs a symmetric operator, and {operator!r} is not known to "
            "be one. Use GMRES or BiCGStab (any operator), or say symmetric=True if it is."
        )
    if operator.batch is not None and rows.shape[0] != operator.batch:
        raise InputError(f"{rows.shape[0]} right-hand sides for a batch of {operator.batch}.")
    if state is not None and not isinstance(state, dict):
        raise InputError(
            f"state is {described(state)}; wanted the dict of tensors of an earlier solve "
            "(Solution.state), or None."
        )
    # The caller's autocast is for the caller's functions: a solve in bfloat16 meets no tolerance.
    with torch.no_grad(), without_autocast(operator.device):
        solution = _solve(_Counted(operator, len(rows)), rows, solver, initial, state, full)
    if not solution.result.ok:
        report(solution, solver, on_failure)
    return solution


def check_options(solver: Solver | None, on_failure: str) -> Solver:
    """The solver to use, with what was asked for checked."""
    if solver is None:
        solver = Auto()
    if not isinstance(solver, Solver):
        raise InputError(
            f"solver must be a bilevel solver such as bilevel.CG(), found {solver!r}"
            + (" (a class: call it)." if isinstance(solver, type) else ".")
        )
    if on_failure not in ("warn", "raise", "ignore"):
        raise InputError(f'on_failure must be "warn", "raise" or "ignore", found {on_failure!r}.')
    return solver


class _Counted(LinearOperator):
    """The operator, with its products counted: one with all right-hand sides at once is one."""

    def __init__(self, base: LinearOperator, width: int) -> None:
        super().__init__(**facts(base))
        self._base, self._width = base, width
        self.products = 0

    def rows(self, rows: Tensor) -> Tensor:
        self._count(rows)
        return self._base.rows(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        self._count(rows)
        return self._base.rows_transposed(rows)

    def _count(self, rows: Tensor) -> None:
        self.products += math.ceil(rows.shape[0] / self._width)

    def to_dense(self) -> Tensor:
        self.products += self.size
        return self._base.to_dense()

    def diagonal(self) -> Tensor:
        self.products += self.size
        return self._base.diagonal()


class _Prepared(dict[str, Tensor]):
    """A state whose missing entries say what happened."""

    def __missing__(self, key: str) -> Tensor:
        raise InputError(
            f"state holds {', '.join(self)}, but the solver needs {key!r}: it was prepared by "
            "another solver. Pass the state of a solve by this one, or None."
        )


def _check_state(state: State | None, operator: LinearOperator) -> None:
    """Refuse what is no state, or one of another size, by its largest dimension."""
    for name, entry in (state or {}).items():
        if not isinstance(entry, Tensor):
            raise InputError(
                f"state[{name!r}] is {described(entry)}; wanted a tensor. Pass the state of an "
                "earlier solve (Solution.state), or None."
            )
    if not state or operator.batch is not None:
        return
    size = max((max(tensor.shape, default=1) for tensor in state.values()), default=1)
    if size not in (1, operator.size):
        raise InputError(
            f"state is of a problem with {size} unknowns, this one has {operator.size}. Pass the "
            "state of a solve of the same size, or None."
        )


def _solve(
    operator: _Counted,
    rows: Tensor,
    solver: Solver,
    initial: Tensor | None,
    state: State | None,
    full: bool,
) -> Solution:
    if rows.shape[1] == 0:
        return _nothing_to_solve(rows, state)
    # The largest entry, not the norm: squaring 1e-30 in float32 would make it vanish.
    scale = largest(rows)
    sizes = scale.tolist()
    if not all(map(math.isfinite, sizes)):
        raise NonFiniteError("b holds a NaN or an infinity; nothing was solved.")
    if not any(sizes):
        return _nothing_to_solve(rows, state)
    system = scaled(rows, scale, solver)
    start = None
    if initial is not None:
        if not bool(torch.isfinite(initial).all()):
            raise NonFiniteError("initial holds a NaN or an infinity; nothing was solved.")
        start = warm_start(operator, system, initial)
    _check_state(state, operator)
    state = _Prepared(state or solver.init(operator))
    outcome = solver.compute(
        operator, system.rhs if start is None else start.remaining, system.target, state
    )
    progress = arrived(operator, system, start, outcome)
    budget = solver.steps(operator.size)
    asked = not solver.fixed
    if asked:
        progress = _refined(operator, system, solver, state, progress, budget)
    table = figures(system, progress, outcome.curvature).tolist()
    ritz = extremes(outcome) if full else None
    answer = progress.value * column(system.scale)
    kept = outcome.recycle() if full and outcome.recycle else dict(state)
    found = verdict(answer, table, asked, budget, solver, operator.products, ritz, kept)
    return replace(found, recyclable=solver.recycles(operator))


def _refined(
    operator: LinearOperator,
    system: System,
    solver: Solver,
    state: State,
    progress: Progress,
    budget: float,
) -> Progress:
    """Go on from the true residual where the solver stopped early but did not arrive."""
    rhs, target = system.rhs, system.target
    for _ in range(_ROUNDS):
        at = progress
        short = (at.norm > target) & (at.flag == OK) & (at.iterations < budget)
        if not bool(short.any()):
            break
        rest = torch.where(column(short), at.remaining, 0.0)
        left = budget - float(at.iterations[short].max())
        outcome = solver.limited(left).compute(operator, rest, target, state)
        value = at.value + outcome.value
        remaining = rhs - operator.rows(value)
        norm = torch.linalg.vector_norm(remaining, dim=1)
        better = norm < at.norm
        progress = Progress(
            torch.where(column(better), value, at.value),
            torch.where(column(better), remaining, at.remaining),
            torch.where(better, norm, at.norm),
            # A correction that came to nothing leaves what there is.
            torch.where(short & (outcome.flag != DIVERGED), outcome.flag, at.flag),
            at.iterations + torch.where(short, outcome.iterations, 0),
        )
        if not bool((norm < 0.5 * at.norm)[short].any()):
            break
    return progress


def _nothing_to_solve(rows: Tensor, state: State | None) -> Solution:
    zero = ColumnStats(Result.SUCCESS, 0, 0.0, 0.0, None)
    stats = gathered((zero,) * rows.shape[0], 0, None)
    return Solution(torch.zeros_like(rows), Result.SUCCESS, stats, state or {})


def _refuse_transforms(operator: LinearOperator, b: Any, initial: Any) -> None:
    if not _transforms.active():
        return
    # The operator may close over what a transform follows: one product tells.
    zeros = torch.zeros(
        operator.batch or 1, operator.size, dtype=operator.dtype, device=operator.device
    )
    if _transforms.wrapped(b, initial) or follows(operator.rows(zeros)):
        raise TransformError(
            "bilevel.solve reads convergence off the numbers, which torch.func transforms hide. "
            "Use bilevel.linear_solve inside a transform, or solve several "
            "right-hand sides as columns [n, k]."
        )


def report(solution: Solution, solver: Solver, on_failure: OnFailure) -> None:
    """Raise, warn or keep silent about a solve that failed."""
    stats = solution.stats
    text = (
        f"{type(solver).__name__}: {solution.result.name} after {stats.iterations} step(s) and "
        f"{stats.products} product(s), relative residual {stats.relative_residual:.2e}. "
        f"{solution.result.message}"
    )
    if len(stats.columns) > 1:
        failed = [i for i, c in enumerate(stats.columns) if not c.result.ok]
        text += f" Right-hand sides concerned: {failed[:10]}{'...' if len(failed) > 10 else ''}."
    if solution.result is Result.NON_FINITE:
        raise NonFiniteError(text)
    if on_failure == "raise":
        raise SolveError(text)
    if on_failure == "warn":
        warnings.warn(text, ConvergenceWarning, stacklevel=outside())
