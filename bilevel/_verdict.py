"""What the check of a hypergradient found: its figures, and the likely cause of a disagreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bilevel.report import HypergradientInfo
from bilevel.solution import Result

Cause = Literal["inner", "differences", "linear", "bias", "derivative"]

# A gradient is called wrong where it is off by more than this many times what an unfinished inner
# solve explains, and what the differences at h and h/2 disagree by. Across a jump that is half of
# the difference, and the jump then is the news.
_CLEARLY = 4.0

_MORE = " More terms or steps, or a solver with a tolerance, go further."


@dataclass(frozen=True)
class GradientCheck:
    """What :func:`bilevel.check_gradient` found; ``print`` it.

    Attributes:
        slopes: by the implicit gradient, along each direction.
        differences: the central differences at ``step / 2``, along each direction.
        uncertainties: of the differences: what those at ``step`` and ``step / 2`` differ by, and
            the rounding of the outer value.
        unfinished: what finishing the inner solves would, to first order, change the differences
            by, along each direction.
        remaining: what finishing the inner solve at phi would, to first order, change the outer
            value by, over the change of phi of which ``step`` is a small part: a slope too. 0 where
            it is rounding.
        scale: what errors are relative to: the largest of the slopes, of their direct and implicit
            parts, and of the differences.
        step: the length of the step in phi.
        tolerance: on the relative errors.
        damping: of the problem.
        gauss_newton: whether the problem has Gauss-Newton curvature.
        dtype: of phi and theta.
        info: of the implicit gradient: the stationarity reached, the linear solve's result.
        suspects: derivatives that differ from differences of their own; looked for only where the
            check fails.
    """

    slopes: tuple[float, ...]
    differences: tuple[float, ...]
    uncertainties: tuple[float, ...]
    unfinished: tuple[float, ...]
    remaining: float
    scale: float
    step: float
    tolerance: float
    damping: float
    gauss_newton: bool
    dtype: torch.dtype
    info: HypergradientInfo
    suspects: tuple[str, ...] = ()

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """``|slope - difference| / scale`` for each direction."""
        pairs = zip(self.slopes, self.differences, strict=True)
        return tuple(self._relative(abs(slope - found)) for slope, found in pairs)

    @property
    def stationarity(self) -> float:
        """The norm of the inner gradient at the theta the implicit gradient was taken at."""
        return self.info.stationarity

    @property
    def ok(self) -> bool:
        """Whether gradient and differences agree, and the differences are of solved problems."""
        return max(self.relative_errors) <= self.tolerance and self._solved

    @property
    def cause(self) -> Cause | None:
        """What is likely wrong, None where the check passes.

        ``"inner"``: the inner problem is not solved; ``"differences"``: they are unreliable;
        ``"linear"``: the linear solve failed or stopped short; ``"bias"``: damping or Gauss-Newton
        curvature; ``"derivative"``: the gradient is wrong.
        """
        if self.ok:
            return None
        error = max(self.relative_errors)
        if "the gradient of inner in theta" in self.suspects:
            return "derivative"  # by which everything else was judged
        if not self._solved and error <= _CLEARLY * self._unsolved:
            return "inner"
        if error <= _CLEARLY * self._relative(max(self.uncertainties)):
            return "differences"
        if not self.info.solution.result.ok or self._residual > self.tolerance:
            return "linear"
        if self._biases and not self.suspects:
            return "bias"
        return "derivative"

    @property
    def verdict(self) -> str:
        """The outcome in a sentence or two: what is likely wrong, and what to change."""
        said = [self._sentence()]
        if self.suspects:
            said.append(
                f"Differences contradict {' and '.join(self.suspects)}: look there for a custom "
                "autograd.Function with a wrong backward, .detach(), .item(), or a kink."
            )
        if self._biases and self.cause != "bias":
            said.append(f"Note: {self._biases} biases the gradient on purpose.")
        lowest = self.info.solution.stats.smallest_curvature
        if lowest is not None and lowest < 0:
            said.append(f"Note: a curvature of {lowest:.1e} was seen: theta is no minimum.")
        if self.dtype == torch.float32:
            said.append("float64 would tell more.")
        return " ".join(said)

    def __str__(self) -> str:
        """A table of the directions, the figures behind it, and the verdict."""
        head = f"{'direction':>9} {'implicit':>13} {'differences':>13} {'+-':>8} {'rel. error':>10}"
        columns = (self.slopes, self.differences, self.uncertainties, self.relative_errors)
        rows = [
            f"{index:>9} {slope:>13.6e} {found:>13.6e} {unsure:>8.1e} {error:>10.1e}"
            for index, (slope, found, unsure, error) in enumerate(zip(*columns, strict=True))
        ]
        figures = (
            f"step {self.step:.1e}, tolerance {self.tolerance:.1e}, stationarity "
            f"{self.stationarity:.1e}, linear solve {self.info.solution.result.name} (relative "
            f"residual {self._residual:.1e})"
        )
        outcome = "passed" if self.ok else f"FAILED ({self.cause})"
        return "\n".join([f"check_gradient {outcome}", head, *rows, figures, self.verdict])

    @property
    def _solved(self) -> bool:
        return self._unsolved <= self.tolerance

    @property
    def _unsolved(self) -> float:
        return self._relative(max(*self.unfinished, self.remaining))

    @property
    def _residual(self) -> float:
        return self.info.solution.stats.relative_residual

    @property
    def _biases(self) -> str:
        damping = f"damping {self.damping:g}" if self.damping else ""
        return " with ".join(filter(None, ["Gauss-Newton curvature" * self.gauss_newton, damping]))

    def _relative(self, error: float) -> float:
        return error / self.scale if self.scale else float(error > 0)

    def _sentence(self) -> str:
        off = f"{max(self.relative_errors):.1e}"
        if self.cause is None:
            return f"The gradient agrees with the differences to {off}."
        if self.cause == "inner":
            return (
                f"The inner problem is not solved (stationarity {self.stationarity:.1e} at phi): "
                f"finishing it would change this comparison by about {self._unsolved:.1e}. Solve "
                "it further, at phi and a step away (solve=, a start nearer by, float64)."
            )
        if self.cause == "differences":
            return (
                "The differences are unreliable: they are uncertain by "
                f"{self._relative(max(self.uncertainties)):.1e}, so that the error of {off} says "
                "little. The objective is noisy, theta*(phi) jumps or has a kink within the step, "
                "or the step does not fit: try another step, or float64."
            )
        if self.cause == "linear":
            return (
                f"The gradient is off by {off}, as the linear system is not solved to the "
                f"tolerance (relative residual {self._residual:.1e}). "
                f"{self.info.solution.result.message}"
            ) + _MORE * (self.info.solution.result is Result.TRUNCATED)
        if self.cause == "bias":
            return (
                f"The gradient is off by {off}, most likely as {self._biases} biases it on purpose."
            )
        return (
            f"The gradient is wrong by {off}, which neither the inner solves nor the linear solve "
            "nor the uncertainty of the differences explains."
        ) + ("" if self.suspects else " theta*(phi) may have a kink at phi, or jump beside it.")
