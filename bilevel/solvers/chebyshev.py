"""Chebyshev semi-iteration: no inner products, given bounds on the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    CurvatureTrack,
    Iterative,
    Outcome,
    check_interval,
    column,
    dot,
    ratio,
)

_LANCZOS_STEPS = 20


@dataclass(frozen=True)
class Chebyshev(Iterative):
    """Chebyshev semi-iteration for symmetric positive definite operators.

    The best polynomial for a spectrum known only to lie in ``[lower, upper]``: a fixed sequence of
    products and vector additions, which makes it linear in b and reproducible.

    Args:
        rtol: relative tolerance on the true residual (default by dtype); None is a fixed budget.
        atol: absolute tolerance, default 0.
        max_steps: most steps; default 500 (there is no end after n steps, as CG has).
        lower: bound below the smallest eigenvalue; None (default) estimates it by Lanczos steps. A
            bound that is too large slows it down, but does not make it diverge.
        upper: bound above the largest eigenvalue; None (default) estimates it too. One that is too
            small makes it diverge, which is reported.

    Reference:
        Golub and Varga, Chebyshev semi-iterative methods, 1961; Saad, Iterative methods for sparse
        linear systems, algorithm 12.1.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Diagonal(torch.tensor([1.0, 3.0]))
        >>> bilevel.solve(A, torch.ones(2), bilevel.Chebyshev(lower=1.0, upper=3.0)).value
        tensor([1.0000, 0.3333])
    """

    lower: float | None = None
    upper: float | None = None

    needs_symmetric = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, bound in (("lower", self.lower), ("upper", self.upper)):
            if bound is not None:
                check_positive("Chebyshev", name, bound)
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise InputError(f"Chebyshev: lower {self.lower} is above upper {self.upper}.")

    def steps(self, size: int) -> int:
        return 500 if self.max_steps is None else self.max_steps

    def init(self, operator: LinearOperator) -> State:
        if self.lower is not None and self.upper is not None:
            bounds = torch.tensor([self.lower, self.upper], dtype=operator.dtype)
            lower, upper = bounds.to(operator.device).unsqueeze(-1)
            return {"lower": lower, "upper": upper, "lowest": torch.full_like(lower, math.inf)}
        spectrum = lanczos(operator, _LANCZOS_STEPS)
        upper = (
            spectrum.highest
            if self.upper is None
            else torch.full_like(spectrum.highest, self.upper)
        )
        if self.lower is None:
            known = spectrum.lowest > 16 * torch.finfo(operator.dtype).eps * upper
            lower = torch.where(known, 0.95 * spectrum.lowest, 1e-3 * upper)
        else:
            lower = torch.full_like(upper, self.lower)
        return {"lower": torch.minimum(lower, upper), "upper": upper, "lowest": spectrum.lowest}

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        center = column((state["upper"] + state["lower"]) / 2)
        radius = column((state["upper"] - state["lower"]) / 2)
        x = torch.zeros_like(rhs)
        r = rhs.clone()
        d = ratio(r, center)
        rho = ratio(radius, center)
        track = CurvatureTrack(rhs)
        norm = start = torch.linalg.vector_norm(r, dim=1)
        # Past this no digit of the answer is right, and to go on would end in infinities.
        rounding = torch.finfo(rhs.dtype).eps
        ceiling = start / rounding
        active = norm > target
        iterations = torch.zeros_like(active, dtype=torch.int64)
        every = check_interval(rhs.device)

        for step in range(self.steps(operator.size)):
            if not self.fixed and step % every == 0 and not bool(active.any()):
                break
            product = operator.rows(d)
            square = dot(d, d)
            track.note(dot(d, product), square, active & (square != 0))
            mask = column(active)
            x.addcmul_(d, mask.to(d.dtype))
            r.addcmul_(product, mask.to(d.dtype), value=-1.0)
            iterations += active
            # Saad's recurrence with rho scaled by the radius, so that a radius of 0 needs no case.
            gain = ratio(torch.ones_like(center), 2 * center - radius * rho)
            d = d * (radius * gain * rho) + r * (2 * gain)
            rho = radius * gain
            norm = torch.linalg.vector_norm(r, dim=1)
            active = active & (norm > target) & (norm < ceiling)

        smallest, negative, singular = track.read()
        # The Lanczos steps may have met what b does not feel, and no direction is left without a
        # spectrum; what is left of a solve that has converged is rounding, and says nothing.
        negative = negative | (state["lowest"] < 0)
        singular = (singular & (norm > math.sqrt(rounding) * start)) | (state["upper"] == 0)
        flag = torch.where(negative, NEGATIVE, torch.where(singular, SINGULAR, OK))
        return Outcome(x, iterations, flag, torch.minimum(smallest, state["lowest"]))
