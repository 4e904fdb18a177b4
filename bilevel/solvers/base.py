"""What a solver is: a frozen set of numbers, ``init`` once per operator, ``compute`` per solve."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bilevel._checks import check_count, is_number
from bilevel._spectrum import zero_below_rounding
from bilevel.errors import InputError
from bilevel.operators import LinearOperator
from bilevel.solution import Result, State

Carry = dict[str, Tensor]
"""What one step hands to the next."""

Tolerance = float | Literal["auto"] | None

# Codes of what became of each row, kept on the device while iterating.
OK, NEGATIVE, SINGULAR, BREAKDOWN, DIVERGED = 0, 1, 2, 3, 4
FLAGS = {
    NEGATIVE: Result.NEGATIVE_CURVATURE,
    SINGULAR: Result.SINGULAR,
    BREAKDOWN: Result.BREAKDOWN,
    DIVERGED: Result.DIVERGED,
}


@dataclass(frozen=True)
class Outcome:
    """What :meth:`Solver.compute` hands back, row by row, all of it on the device.

    Attributes:
        value: ``[k, n]``.
        iterations: steps taken by each row, ``[k]``.
        flag: for each row, ``[k]``: 0, or 1 for negative curvature, 2 for a singular operator, 3
            for a breakdown, 4 for divergence.
        curvature: smallest ``p'Ap / p'p`` each row saw, ``[k]``; infinite where none.
        residual: ``b - A x`` as ``[k, n]``, where the solver holds it exactly; else None.
        ritz: smallest and largest Ritz value of each row, ``[k]`` both, where they come for
            nothing; infinite where a row took no step.
        tridiagonal: what they are the eigenvalues of (the diagonal and the entries beside it, a
            matrix a row), where the solver leaves that to whoever asks for them.
        recycle: makes the state for a next solve from the vectors of this one, where it can.

    Example:
        >>> import torch
        >>> Outcome.after(torch.ones(2, 3), steps=5).iterations
        tensor([5, 5])
    """

    value: Tensor
    iterations: Tensor
    flag: Tensor
    curvature: Tensor
    residual: Tensor | None = None
    ritz: tuple[Tensor, Tensor] | None = None
    tridiagonal: tuple[Tensor, Tensor] | None = None
    recycle: Callable[[], State] | None = None

    @classmethod
    def after(cls, value: Tensor, steps: int) -> Outcome:
        """The outcome of a solver that has nothing to tell but its answer.

        Args:
            value: ``[k, n]``.
            steps: taken, the same for all rows.
        """
        count = torch.full_like(value[:, 0], steps, dtype=torch.int64)
        seen = torch.full_like(value[:, 0], math.inf)
        return cls(value, count, torch.zeros_like(count), seen)


class Solver(abc.ABC):
    """Solves ``A x = b``. Subclasses are frozen dataclasses that hold numbers only.

    Every solver works on rows ``[k, n]`` at once, each with its own convergence, so that several
    right-hand sides and batched operators cost one product per step.
    """

    #: Whether the operator must equal its transpose.
    needs_symmetric: bool = False

    #: How many times that of a zero solution a residual may be before it is called divergence.
    growth: ClassVar[float] = 1.01

    def init(self, operator: LinearOperator) -> State:
        """Prepare for an operator: a factorization, a preconditioner, a step. Reusable."""
        return {}

    @abc.abstractmethod
    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        """Solve for every row. Runs without gradients; the true residual is computed by the caller.

        Args:
            operator: A; ``operator.rows(v)`` is ``A v`` for every row of v.
            rhs: ``[k, n]``, scaled so that the largest entry of a row is one. Must not be written
                to.
            target: residual norm to reach, ``[k]``; tiny but positive for a fixed budget.
            state: what ``init`` returned, for this operator or one near it.

        Returns:
            The answer and what was noticed on the way; :meth:`Outcome.after` for the answer alone.
            A ``residual`` in it is believed, and spares the product that would compute it.
        """

    def recycles(self, operator: LinearOperator) -> bool:
        """Whether states are made by the solves themselves, and fit an operator that has moved."""
        return False

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        """``(rtol, atol)`` in force for a dtype; rtol None means a fixed budget."""
        return None, 0.0

    @property
    def fixed(self) -> bool:
        """Whether all steps are taken, whatever becomes of the residual."""
        return self.tolerances(torch.float64) == (None, 0.0)

    def steps(self, size: int) -> float:
        """The step budget for an operator of this size; infinite for a direct solver."""
        return math.inf

    def limited(self, steps: float) -> Solver:
        """The same solver with a budget of ``steps``, for what is left of it."""
        return self


@dataclass(frozen=True)
class Iterative(Solver):
    """A solver with a tolerance: stops when ``||b - A x|| <= max(rtol ||b||, atol)``.

    Args:
        rtol: relative tolerance. ``"auto"`` (default) is a tenth of the square root of the
            dtype's rounding unit: 1.5e-9 in float64, 3.5e-5 in float32. None is a fixed budget:
            all steps are taken and nothing is said about the residual.
        atol: absolute tolerance, default 0.
        max_steps: most steps; default ``min(2 n + 10, 500)``.
    """

    rtol: Tolerance = "auto"
    atol: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_tolerances(type(self).__name__, self.rtol, self.atol)
        if self.max_steps is not None:
            check_count(type(self).__name__, "max_steps", self.max_steps)

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        return resolve_rtol(self.rtol, dtype), self.atol

    def steps(self, size: int) -> int:
        """The step budget for an operator of this size."""
        return min(2 * size + 10, 500) if self.max_steps is None else self.max_steps

    def limited(self, steps: float) -> Solver:
        return replace(self, max_steps=int(steps))


def resolve_rtol(rtol: Tolerance, dtype: torch.dtype) -> float | None:
    """``"auto"`` as a number."""
    if rtol == "auto":
        return 0.1 * math.sqrt(torch.finfo(dtype).eps)
    return rtol


def check_tolerances(solver: str, rtol: Tolerance, atol: float) -> None:
    """Refuse tolerances no solve could mean."""
    if isinstance(rtol, str) and rtol != "auto":
        raise InputError(f'{solver}: rtol must be a number, "auto" or None, found {rtol!r}.')
    if rtol not in (None, "auto") and (not is_number(rtol) or not 0.0 <= rtol < 1.0):
        raise InputError(f"{solver}: rtol must be in [0, 1), found {rtol!r}.")
    if not is_number(atol) or not 0.0 <= atol < float("inf"):
        raise InputError(f"{solver}: atol must be a finite number of at least 0, found {atol!r}.")


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Row-wise inner products, ``[k]``."""
    if left.shape[0] == 1:  # one pass, and no product of n numbers to find memory for
        return torch.mv(left, right[0])
    return torch.linalg.vecdot(left, right)


def column(scalars: Tensor) -> Tensor:
    """``[k]`` as ``[k, 1]``, to scale rows by; a single one fits as it is."""
    return scalars if scalars.shape[0] == 1 else scalars.unsqueeze(-1)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def zero_if_worse(
    outcome: Outcome, rhs: Tensor, remaining: Tensor, size: Callable[[Tensor], Tensor]
) -> Outcome:
    """An outcome without the answers that leave more than zero would; their flags tell of them.

    So it ends where an operator is singular to its precision: what the recurrence divides by is
    rounding there, and x grows without bound.

    Args:
        outcome: what a recurrence came to.
        rhs: ``[k, n]``.
        remaining: the true residual ``b - A x``, ``[k, n]``.
        size: the norm ``[k, n] -> [k]`` that the solver lowers.
    """
    left = size(remaining)
    worse = (left > Solver.growth * size(rhs)) & left.isfinite()  # a NaN is left to be named
    if not bool(worse.any()):
        return replace(outcome, residual=remaining)
    flag = torch.where(worse & (outcome.flag == OK), DIVERGED, outcome.flag)
    value = torch.where(column(worse), 0.0, outcome.value)
    residual = torch.where(column(worse), rhs, remaining)
    return replace(outcome, value=value, flag=flag, residual=residual)


def check_interval(device: torch.device) -> int:
    """Steps between two looks at the tolerance: each look waits for an accelerator, not a CPU.

    Rows that have converged are frozen, so the interval changes no answer.
    """
    return 1 if device.type == "cpu" else 8


class Stepwise(Solver):
    """A solver whose step is one function of what it carries, so that steps can be compiled.

    What is carried is a dict of tensors, row by row; a record is what a step leaves behind for
    :meth:`finish`, ``[k]`` each. None of the three methods reads a number back from the device.
    """

    @property
    def prepares(self) -> bool:
        """Whether :meth:`init` spends products."""
        return type(self).init is not Solver.init

    @abc.abstractmethod
    def begin(self, rhs: Tensor, target: Tensor, state: State) -> Carry:
        """What the first step starts from; arguments as in :meth:`Solver.compute`."""

    @abc.abstractmethod
    def advance(
        self, operator: LinearOperator, carry: Carry, state: State
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        """One step: what the next one starts from, and the record. May write into the old one."""

    @abc.abstractmethod
    def finish(
        self, carry: Carry, records: Sequence[Tensor], state: State, symmetric: bool
    ) -> Outcome:
        """The outcome, from the records of all steps stacked as ``[steps, k]`` each."""

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        carry = self.begin(rhs, target, state)
        nothing = rhs.new_zeros(rhs.shape[0])
        records: list[tuple[Tensor, ...]] = []
        fixed, every = self.fixed, check_interval(rhs.device)
        for step in range(int(self.steps(operator.size))):
            if not fixed and step % every == 0 and not bool(carry["active"].any()):
                break
            carry, record = self.advance(operator, carry, state)
            records.append(record)
        if not records:
            flag = torch.where(carry.get("lost", nothing > 0), BREAKDOWN, OK)
            return Outcome(carry["x"], torch.zeros_like(flag), flag, nothing + math.inf)
        shape = (len(records), -1)
        stacked = [torch.cat(column).view(shape) for column in zip(*records, strict=True)]
        return self.finish(carry, stacked, state, operator.symmetric)


def lowest_curvature(
    along: Tensor, square: Tensor, active: Tensor, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest ``p'Ap / p'p`` of each row, and which rows met a negative and which a zero one.

    Curvature within rounding of zero, measured against the largest seen, counts as zero.

    Args:
        along: ``p'Ap`` of every step, ``[steps, k]``.
        square: ``p'p``, the same.
        active: which rows were still at work.
        dtype: of the vectors that these are products of; None is the one of ``along``.
    """
    seen = torch.where(active, along / square, math.inf)
    largest = torch.where(seen.isinf(), 0.0, seen).abs().amax(0)
    smallest = zero_below_rounding(
        seen.amin(0), largest, 16 * torch.finfo(dtype or along.dtype).eps
    )
    return smallest, smallest < 0, smallest == 0


class CurvatureTrack:
    """The curvature ``p'Ap / p'p`` of the directions each row has seen; read after the loop."""

    def __init__(self, rows: Tensor) -> None:
        nothing = rows.new_zeros(rows.shape[0])
        self._seen = [(nothing, nothing, nothing > 0)]

    def note(self, along: Tensor, square: Tensor, active: Tensor) -> None:
        """Take note of ``p'Ap`` and ``p'p``, ``[k]`` each, of the rows still at work."""
        self._seen.append((along, square, active))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`lowest_curvature`."""
        return lowest_curvature(*map(torch.stack, zip(*self._seen, strict=True)))
