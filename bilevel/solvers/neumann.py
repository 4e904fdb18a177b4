"""The truncated Neumann series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bilevel._checks import check_positive
from bilevel._spectrum import lanczos
from bilevel.errors import InputError
from bilevel.operators import LinearOperator
from bilevel.solution import State
from bilevel.solvers.base import (
    NEGATIVE,
    OK,
    SINGULAR,
    Carry,
    Outcome,
    Solver,
    Stepwise,
    Tolerance,
    check_count,
    check_tolerances,
    column,
    dot,
    lowest_curvature,
    ratio,
    resolve_rtol,
)

_LANCZOS_STEPS = 8


@dataclass(frozen=True)
class Neumann(Stepwise):
    """``step * sum_{j < terms} (I - step A)^j b``: one product a term, a fixed amount of work.

    The error is exactly ``(I - step A)^terms A^-1 b``; the residual ``(I - step A)^terms b`` falls
    out of the recurrence, so it is reported without a further product. Converges when every
    eigenvalue of A lies in ``(0, 2 / step)``; a growing residual is reported as divergence.

    Args:
        terms: number of terms, at least 1 (default 20).
        step: the scale. ``"auto"`` (default) bounds the largest eigenvalue by eight Lanczos steps
            and takes its inverse (symmetric operators only). For a fixed point ``x = T(x)``, where
            ``A = I - dT``, use ``step=1``.
        rtol: None (default) takes all terms; a number (or ``"auto"``) stops early once the
            relative residual is below it and warns when it is not reached.
        atol: absolute tolerance, default 0.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Diagonal(torch.tensor([0.5, 1.0]))
        >>> bilevel.solve(A, torch.ones(2), bilevel.Neumann(terms=3, step=1.0)).value
        tensor([1.7500, 1.0000])

    Reference:
        Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by implicit
        differentiation, 2020, section 4.
    """

    terms: int = 20
    step: float | Literal["auto"] = "auto"
    rtol: Tolerance = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_count("Neumann", "terms", self.terms)
        check_tolerances("Neumann", self.rtol, self.atol)
        if isinstance(self.step, str):
            if self.step != "auto":
                raise InputError(f'Neumann: step must be a number or "auto", found {self.step!r}.')
        else:
            check_positive("Neumann", "step", self.step)

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        return resolve_rtol(self.rtol, dtype), self.atol

    def steps(self, size: int) -> float:
        return self.terms

    def limited(self, steps: float) -> Solver:
        return replace(self, terms=int(steps))

    @property
    def prepares(self) -> bool:
        return self.step == "auto"

    def init(self, operator: LinearOperator) -> State:
        if self.step != "auto":
            return {}
        if not operator.symmetric:
            raise InputError(
                'Neumann(step="auto") bounds the spectrum of a symmetric operator; this one is not '
                "symmetric. Give a step (1.0 for a fixed point), or use GMRES."
            )
        spectrum = lanczos(operator, _LANCZOS_STEPS)
        largest = torch.maximum(spectrum.highest, -spectrum.lowest)
        return {"step": ratio(torch.ones_like(largest), largest), "lowest": spectrum.lowest}

    def begin(self, rhs: Tensor, target: Tensor, state: State) -> Carry:
        power = rhs.clone()
        square = _wide_dot(power, power)
        floor = target.to(square).square()
        # Past this no digit of the answer is right, and to go on would end in infinities: in
        # float16 sooner.
        kind = torch.finfo(rhs.dtype)
        ceiling = torch.minimum(square / kind.eps**2, (4 * square).clamp_min(kind.max))
        return {
            "x": torch.zeros_like(rhs),
            "power": power,
            "square": square,
            "zero": torch.zeros_like(target),
            "start": square,
            "floor": floor,
            "ceiling": ceiling,
            "step": state["step"] if self.step == "auto" else rhs.new_full((1,), self.step),
            "active": (square > floor) & (square < ceiling),
        }

    def advance(
        self, operator: LinearOperator, carry: Carry, state: State
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        total, power, step = carry["x"], carry["power"], carry["step"]
        product = operator.rows(power)
        record = (_wide_dot(power, product), carry["square"])
        # A row that is lost stays where it is, and one that has arrived where that is asked for.
        moves = carry["square"] < carry["ceiling"] if self.fixed else carry["active"]
        move = column(torch.where(moves, step, carry["zero"]))
        total.addcmul_(power, move)
        power.addcmul_(product, move, value=-1.0)
        square = _wide_dot(power, power)
        if self.fixed:
            return {**carry, "square": square}, record
        active = (square > carry["floor"]) & (square < carry["ceiling"])
        return {**carry, "square": square, "active": active}, record

    def finish(
        self, carry: Carry, records: Sequence[Tensor], state: State, symmetric: bool
    ) -> Outcome:
        along, squares = records
        power, square = carry["power"], carry["square"]
        kind = torch.finfo(power.dtype)
        active = (squares > carry["floor"]) & (squares < carry["ceiling"])
        smallest, negative, singular = lowest_curvature(along, squares, active, dtype=power.dtype)
        if self.step == "auto":
            # The Lanczos steps may have met what b does not feel.
            smallest = torch.minimum(smallest, state["lowest"])
            negative = negative | (state["lowest"] < 0)
        # What is left of a series that has converged is rounding, whose curvature says nothing.
        singular = singular & (square > kind.eps * carry["start"])
        flag = torch.where(negative, NEGATIVE, torch.where(singular, SINGULAR, OK))
        flag = flag if symmetric else torch.zeros_like(flag)
        return Outcome(carry["x"], active.sum(0), flag, smallest, residual=power)


def _wide_dot(left: Tensor, right: Tensor) -> Tensor:
    """Row-wise inner products; of float16, which counts to 65504 alone, in single precision."""
    if left.dtype is torch.float16:
        return dot(left.float(), right.float())
    return dot(left, right)
