"""A linear system in the scale it is solved in, where its rows stand, and what to say of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import ritz
from bilevel.operators import LinearOperator
from bilevel.solution import ColumnStats, Result, Solution, State, Stats
from bilevel.solvers.base import FLAGS, OK, Outcome, Solver, column, dot


@dataclass(frozen=True)
class System:
    """Right-hand sides scaled to a largest entry of one, their norms, and the residuals to reach.

    ``rhs`` is ``[k, n]``; ``scale``, ``size`` and ``target`` are ``[k]``.
    """

    rhs: Tensor
    scale: Tensor
    size: Tensor
    target: Tensor


@dataclass(frozen=True)
class Start:
    """A first guess and its residual, ``[k, n]`` both."""

    value: Tensor
    remaining: Tensor


@dataclass(frozen=True)
class Progress:
    """Where the rows of a scaled system stand."""

    value: Tensor
    remaining: Tensor
    norm: Tensor
    flag: Tensor
    iterations: Tensor


def scaled(rows: Tensor, scale: Tensor, solver: Solver) -> System:
    """The system with its largest entries, ``scale``, divided out."""
    scale = torch.where(scale > 0, scale, 1.0)
    rhs = rows / column(scale)
    size = torch.linalg.vector_norm(rhs, dim=1)
    if rows.dtype is torch.float16:  # which counts to 65504, less than the square of a longer one
        longer = (size / 16).clamp_min(1).minimum(torch.finfo(rows.dtype).max / scale)
        scale, rhs, size = scale * longer, rhs / column(longer), size / longer
    rtol, atol = solver.tolerances(rows.dtype)
    # Also a fixed budget stops at rounding, past which further steps only add noise.
    target = max(rtol or 0.0, torch.finfo(rows.dtype).eps) * size
    return System(rhs, scale, size, torch.maximum(target, atol / scale) if atol else target)


def warm_start(operator: LinearOperator, system: System, initial: Tensor) -> Start:
    """The first guess and its residual; rows where the guess is worse than zero start at zero."""
    guess = initial / column(system.scale)
    remaining = system.rhs - operator.rows(guess)
    size = torch.linalg.vector_norm(remaining, dim=1)
    better = column(size < torch.linalg.vector_norm(system.rhs, dim=1))
    return Start(torch.where(better, guess, 0.0), torch.where(better, remaining, system.rhs))


def arrived(
    operator: LinearOperator, system: System, start: Start | None, outcome: Outcome
) -> Progress:
    """Where the rows stand after a solve, by the true residual."""
    value = outcome.value if start is None else start.value + outcome.value
    remaining = outcome.residual
    if remaining is None:
        remaining = system.rhs - operator.rows(value)
    norm = torch.linalg.vector_norm(remaining, dim=1)
    return Progress(value, remaining, norm, outcome.flag, outcome.iterations)


def figures(system: System, progress: Progress, curvature: Tensor) -> Tensor:
    """All that :func:`verdict` reads, ``[k, 10]``, to be brought from the device at once."""
    answer = progress.value
    product = dot(answer, system.rhs) - dot(answer, progress.remaining)
    done = (progress.iterations, progress.flag, progress.norm)
    asked = (system.size, system.target, curvature, system.scale)
    columns = (*done, *asked, largest(answer), dot(answer, answer), product)
    # Half precision cannot count to 500.
    wide = torch.promote_types(system.rhs.dtype, torch.float32)
    return torch.stack([column.to(wide) for column in columns], dim=1)


def verdict(
    answer: Tensor,
    table: list[list[float]],
    asked: bool,
    budget: float,
    solver: Solver,
    products: int,
    ritz: tuple[float, float] | None,
    state: State,
) -> Solution:
    """The answer with what became of it, from the figures."""
    kind = torch.finfo(answer.dtype)
    columns = tuple(_column(row, asked, budget, solver.growth, kind) for row in table)
    return Solution(answer, _worst(columns), gathered(columns, products, ritz), state)


def _curvature_along(square: float, product: float, size: float, kind: torch.finfo) -> float:
    """``x'Ax / x'x`` of the answer itself, one more direction seen at no further product.

    Infinite where rounding hides it: an answer far too short hardly moves the residual.

    Args:
        square: ``x'x``.
        product: ``x'Ax``.
        size: norms of the right-hand side and of the residual, together.
        kind: of the numbers that these were made from.
    """
    seen = kind.tiny < square < math.inf
    noise = 16 * kind.eps * math.sqrt(square) * size if seen else math.inf
    return product / square if abs(product) > noise else math.inf


def extremes(outcome: Outcome) -> tuple[float, float] | None:
    """The extreme Ritz values over all rows."""
    if outcome.tridiagonal is not None:
        return extremes_of(outcome.tridiagonal, outcome.iterations)
    return None if outcome.ritz is None else _ends(outcome.ritz)


def extremes_of(
    tridiagonal: tuple[Tensor, Tensor], iterations: Tensor
) -> tuple[float, float] | None:
    """The same from the Lanczos coefficients."""
    return _ends(ritz(*tridiagonal, iterations))


def _ends(values: tuple[Tensor, Tensor]) -> tuple[float, float] | None:
    lowest, highest = float(values[0].min()), float(values[1].max())
    return (lowest, highest) if lowest <= highest else None


def largest(rows: Tensor) -> Tensor:
    """The largest absolute entry of every row, ``[k]``."""
    return torch.maximum(rows.amax(1), -rows.amin(1))  # no abs(): it would need a copy


def _column(
    figures: list[float], asked: bool, budget: float, growth: float, kind: torch.finfo
) -> ColumnStats:
    iterations, flag, norm, size, target, curvature, scale, largest, square, product = figures
    curvature = min(curvature, _curvature_along(square, product, size + norm, kind))
    if not (math.isfinite(norm) and math.isfinite(largest)) or math.isnan(curvature):
        result = Result.NON_FINITE
    elif asked and norm <= 1.01 * target:
        result = Result.SUCCESS
    elif flag != OK:
        result = FLAGS[int(flag)]
    elif norm > growth * size:
        result = Result.DIVERGED
    elif not asked:
        result = Result.TRUNCATED
    else:
        result = Result.BUDGET if iterations >= budget else Result.STAGNATED
    return ColumnStats(
        result=result,
        iterations=int(iterations),
        residual=norm * scale,
        relative_residual=norm / size if size else 0.0,
        smallest_curvature=curvature if math.isfinite(curvature) else None,
    )


def _worst(columns: tuple[ColumnStats, ...]) -> Result:
    order = list(Result)
    return max((c.result for c in columns), key=order.index, default=Result.SUCCESS)


def gathered(
    columns: tuple[ColumnStats, ...], products: int, ritz: tuple[float, float] | None
) -> Stats:
    """The figures of all right-hand sides."""
    seen = [c.smallest_curvature for c in columns if c.smallest_curvature is not None]
    return Stats(
        iterations=max((c.iterations for c in columns), default=0),
        products=products,
        residual=max((c.residual for c in columns), default=0.0),
        relative_residual=max((c.relative_residual for c in columns), default=0.0),
        smallest_curvature=min(seen) if seen else None,
        ritz=ritz,
        columns=columns,
    )
