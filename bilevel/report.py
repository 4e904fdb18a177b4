"""What stands behind a hypergradient: its parts, the solve, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._point import Point
from bilevel._tree import Tree
from bilevel.products import Products
from bilevel.solution import Solution, State


@dataclass(frozen=True)
class HypergradientInfo:
    """What stands behind a hypergradient.

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
    """

    outer_value: float
    direct: Tree
    implicit: Tree
    adjoint: Tree
    stationarity: float
    solution: Solution
    error_estimate: float | None
    hvp: str

    @property
    def state(self) -> State:
        """What the solver prepared; pass it as ``state=`` to use it again."""
        return self.solution.state


def hypergradient_info(
    point: Point,
    outer_value: Tensor,
    direct: Sequence[Tensor],
    implicit: Sequence[Tensor],
    adjoint: Tensor,
    inner: Products,
    solution: Solution,
) -> HypergradientInfo:
    """The report of a finished computation; ``adjoint`` is flat, the parts are leaves like phi."""
    tree = point.theta_layout.unflatten(adjoint)
    report = Solution(tree, solution.result, solution.stats, solution.state)
    return HypergradientInfo(
        outer_value=float(outer_value),
        direct=point.phi_layout.tree(direct),
        implicit=point.phi_layout.tree(implicit),
        adjoint=tree,
        stationarity=float(torch.linalg.vector_norm(inner.gradient)),
        solution=report,
        error_estimate=_error_estimate(implicit, adjoint, solution),
        hvp=inner.name,
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
