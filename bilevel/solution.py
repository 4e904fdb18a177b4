"""What a linear solve returns: the value, what became of it, and the figures behind that."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
"""What a solver prepared for an operator. Plain tensors, so that it can be stored anywhere."""


class Result(enum.Enum):
    """How a solve ended. Each member's ``message`` says what happened and what to change.

    Example:
        >>> Result.BUDGET.ok
        False
        >>> Result.BUDGET.message.startswith("The steps ran out")
        True
    """

    SUCCESS = "The tolerance was met."
    TRUNCATED = "The fixed budget that was asked for was spent; no tolerance was asked for."
    BUDGET = (
        "The steps ran out before the tolerance was met. The operator is likely badly conditioned, "
        "or the tolerance is below what this precision allows. Raise max_steps, add damping or a "
        "preconditioner, or loosen rtol."
    )
    STAGNATED = (
        "The residual stopped falling above the tolerance: rounding, products that are not exact "
        "(finite differences), a restart too short or a state kept from another operator set a "
        "floor. Loosen rtol, use float64 or another hvp, raise restart, or prepare anew (no state)."
    )
    NEGATIVE_CURVATURE = (
        "A direction of negative curvature was met (p'Ap < 0), which this solver cannot pass: the "
        "operator is indefinite, so theta is no minimum of the inner problem. Train the inner "
        "problem further, add damping, use GaussNewton curvature, or solve with MINRES."
    )
    SINGULAR = (
        "A direction of zero curvature was met (p'Ap = 0): the operator is singular, so that the "
        "solution is not unique (add damping, or a penalty on theta in the inner problem), or it "
        "is indefinite (solve with MINRES)."
    )
    BREAKDOWN = (
        "The recurrence broke down: two vectors it divides by became orthogonal, or the "
        "preconditioner is not positive definite. Use GMRES or MINRES, or drop the preconditioner."
    )
    DIVERGED = (
        "The residual grew beyond that of a zero solution. For Neumann, step * largest eigenvalue "
        'must stay below 2 (use step="auto" or a smaller step); for Chebyshev the bounds must hold '
        "the spectrum; for ScaledIdentity, lower the scale; for Nystrom, raise the rank or rho. "
        "For Auto, CG, MINRES and BiCGStab the operator is singular to this precision: add damping "
        "or a penalty on theta in the inner problem, or use float64. A state kept from another "
        "operator may have aged."
    )
    NON_FINITE = (
        "A NaN or an infinity appeared in a product or in the solution. Look at the objective near "
        "theta (overflow, log of zero, a derivative that does not exist), or scale it down."
    )

    @property
    def message(self) -> str:
        """What happened, the likely causes, and what to change."""
        return self.value

    @property
    def ok(self) -> bool:
        """True when the solve did what was asked of it."""
        return self in (Result.SUCCESS, Result.TRUNCATED)

    def __repr__(self) -> str:
        return f"Result.{self.name}"


@dataclass(frozen=True)
class ColumnStats:
    """The figures of one right-hand side."""

    result: Result
    iterations: int
    residual: float
    relative_residual: float
    smallest_curvature: float | None


@dataclass(frozen=True)
class Stats:
    """The figures of a solve; with several right-hand sides, the worst of each.

    Attributes:
        iterations: steps taken.
        products: operator products spent, each over all right-hand sides at once.
        residual: true residual norm ``||b - A x||``, recomputed from the final value.
        relative_residual: the same over ``||b||`` (0 for a zero right-hand side).
        smallest_curvature: smallest ``p'Ap / p'p`` over the directions seen; None if none was.
        ritz: smallest and largest Ritz value, where the solver gets them for nothing.
        columns: the figures of each right-hand side.
    """

    iterations: int
    products: int
    residual: float
    relative_residual: float
    smallest_curvature: float | None
    ritz: tuple[float, float] | None
    columns: tuple[ColumnStats, ...] = field(repr=False)


@dataclass(frozen=True)
class Solution:
    """The answer of :func:`bilevel.solve`. Printed, it shows result and figures alone.

    Attributes:
        value: the solution, shaped like the right-hand side.
        result: how the solve ended (the worst column with several right-hand sides).
        stats: figures; see :class:`Stats`.
        state: what the solver prepared (a factorization, a preconditioner, a step) or recycles;
            pass it to a later solve as ``state=`` to use it again.
        recyclable: whether the state is made of the vectors of solves, and so fits an operator that
            has moved; one that was prepared is for the operator it was prepared for.
    """

    value: Any = field(repr=False)
    result: Result
    stats: Stats
    state: State = field(repr=False)
    recyclable: bool = False
