"""What stands behind a hypergradient: its parts, the solve, and how far it can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bilevel._tree import Layout, Tree
from bilevel.errors import CurvatureWarning, outside
from bilevel.solution import Solution, State


@dataclass(frozen=True)
class HypergradientInfo:
    """What stands behind a hypergradient. Printed, it shows the figures alone.

    Attributes:
        outer_value: the outer objective, a float.
        direct: the part of the gradient at fixed theta, a tree like phi.
        implicit: the part through ``theta*(phi)``, a tree like phi; the gradient is their sum.
        adjoint: v in ``(H + damping I) v = d_theta outer``, a tree like theta.
        stationarity: norm of ``d_theta inner`` at theta. The formula holds at 0; how far from it
            matters is measured against the curvature: theta is about ``stationarity / lambda`` away
            from the optimum along a direction of curvature lambda.
        solution: the solve for the adjoint, with its result and figures.
        error_estimate: estimated norm of the hypergradient's error from the unfinished solve,
            ``||implicit|| / ||v|| * ||residual|| / smallest curvature``; None where the smallest
            curvature seen is not positive or nothing was seen. An estimate, not a bound: the
            smallest curvature seen is at least the smallest eigenvalue.
        hvp: the way products were made, after any fallback.
        compile_seconds: seconds that this call has spent on compiling, 0 where it used what an
            earlier one had compiled; None where nothing compiled was used.
    """

    outer_value: float
    direct: Tree = field(repr=False)
    implicit: Tree = field(repr=False)
    adjoint: Tree = field(repr=False)
    stationarity: float
    solution: Solution
    error_estimate: float | None
    hvp: str
    compile_seconds: float | None = None

    @property
    def state(self) -> State:
        """What the solver prepared or recycles; pass it as ``state=`` to use it again."""
        return self.solution.state


def hypergradient_info(
    phi: Layout,
    theta: Layout,
    outer_value: Tensor,
    direct: Sequence[Tensor],
    implicit: Sequence[Tensor],
    adjoint: Tensor,
    inner_gradient: Tensor,
    hvp: str,
    solution: Solution,
) -> HypergradientInfo:
    """The report of a finished computation; ``adjoint`` is flat, the parts are leaves like phi."""
    tree = theta.unflatten(adjoint)
    report = replace(solution, value=tree)
    return HypergradientInfo(
        outer_value=float(outer_value),
        direct=phi.tree(direct),
        implicit=phi.tree(implicit),
        adjoint=tree,
        stationarity=float(torch.linalg.vector_norm(inner_gradient)),
        solution=report,
        error_estimate=_error_estimate(implicit, adjoint, solution),
        hvp=hvp,
    )


def name_negative_curvature(solution: Solution, damping: float, on_failure: str) -> None:
    """Warn where a system was solved although its matrix is indefinite."""
    lowest = solution.stats.smallest_curvature
    if lowest is None or lowest >= 0 or not solution.result.ok or on_failure == "ignore":
        return
    warnings.warn(
        f"the inner curvature{' (with damping)' if damping else ''} is indefinite: "
        f"p'Hp / p'p = {lowest:.2e} was seen, so theta is no minimum of the inner problem. The "
        "linear system was solved, but the formula of the implicit gradient assumes a minimum. "
        "Train the inner problem further (refine), add damping, or use GaussNewton curvature.",
        CurvatureWarning,
        stacklevel=outside(),
    )


def _error_estimate(
    implicit: Sequence[Tensor], adjoint: Tensor, solution: Solution
) -> float | None:
    stats = solution.stats
    if stats.residual == 0.0:
        return 0.0
    lowest = stats.smallest_curvature
    if stats.ritz is not None:
        lowest = stats.ritz[0] if lowest is None else min(lowest, stats.ritz[0])
    size = float(torch.linalg.vector_norm(adjoint))
    if lowest is None or lowest <= 0 or size == 0 or not math.isfinite(size):
        return None
    moved = math.sqrt(sum(float(torch.linalg.vector_norm(leaf)) ** 2 for leaf in implicit))
    return moved / size * stats.residual / lowest
