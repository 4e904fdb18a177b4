"""What a learner logs about a hypergradient, and when its implicit part cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel import HypergradientInfo
from structured.methods._objectives import Compared, Minibatch, Objectives
from structured.methods._optimizer import is_number


@dataclass(frozen=True)
class TrustLimits:
    """From where on the implicit term is called untrustworthy.

    Args:
        ratio: most of ``||implicit|| / ||direct||``.
        distance: most of the estimated distance of theta from the inner optimum, the norm of the
            inner gradient over the smallest curvature seen, in units of ``||theta||``.
    """

    ratio: float = 10.0
    distance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ratio", "distance"):
            found = getattr(self, name)
            if not (is_number(found) and found > 0):
                raise ValueError(f"{name}: found {found!r}, wanted a positive number")


def norm(tree: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all leaves together."""
    return math.hypot(*(float(torch.linalg.vector_norm(leaf.detach())) for leaf in tree.values()))


def comparison_figures(found: Compared) -> dict[str, float]:
    """Return "energy_gap" and "active_hinges" as `objective_figures` defines them."""
    gap = (found.energies - found.gold_energy).detach()
    active = (found.costs.detach() > gap).to(gap.dtype)
    return {"energy_gap": float(gap.mean()), "active_hinges": float(active.mean())}


@torch.no_grad()
def objective_figures(
    objectives: Objectives,
    phi: Mapping[str, Tensor],
    theta: Mapping[str, Tensor],
    batch: Minibatch,
) -> dict[str, float]:
    """Evaluate both objectives' parts on one minibatch.

    Returns:
        "auxiliary" (L_A less the penalty), "cross_entropy", "energy_gap" (mean of E(x, yhat) -
        E(x, y); above zero where gold outputs lie lower) and "active_hinges" (the share of
        candidates that violate their margin, whatever the primary loss is).
    """
    found = objectives.compare_samples(phi, theta, batch)
    return {
        "auxiliary": float(objectives.auxiliary(phi, found.logits, batch)),
        "cross_entropy": float(objectives.cross_entropy(found.logits, batch.y).mean()),
        **comparison_figures(found),
    }


def hypergradient_figures(info: HypergradientInfo, *, solved: bool) -> dict[str, float]:
    """Return the figures of one hypergradient.

    Args:
        info: what `bilevel` reports.
        solved: whether a linear system stands behind it, whose figures are then included.

    Returns:
        "primary" (L_P), "inner_gradient" (stationarity), "direct_norm", "implicit_norm", and if
        `solved` "residual", "relative_residual" and, where a direction was seen,
        "smallest_curvature".
    """
    figures = {
        "primary": info.outer_value,
        "inner_gradient": info.stationarity,
        "direct_norm": norm(info.direct),
        "implicit_norm": norm(info.implicit),
    }
    if solved:
        stats = info.solution.stats
        figures["residual"] = stats.residual
        figures["relative_residual"] = stats.relative_residual
        if stats.smallest_curvature is not None:
            figures["smallest_curvature"] = stats.smallest_curvature
    return figures


def distrust(info: HypergradientInfo, size: float, limits: TrustLimits) -> str:
    """Say why the implicit term of a hypergradient cannot be trusted.

    Args:
        info: what `bilevel` reports.
        size: ``||theta||``.
        limits: from where on a figure is too large.

    Returns:
        One sentence with every reason; empty if there is none.
    """
    solution = info.solution
    curvature = solution.stats.smallest_curvature
    reasons = []
    if not solution.result.ok:
        reasons.append(f"the linear solve ended as {solution.result.name}")
    if curvature is not None and curvature < 0:
        reasons.append(
            f"the inner curvature is indefinite ({curvature:.1e} was seen), so theta is no minimum"
        )
    direct, implicit = norm(info.direct), norm(info.implicit)
    if implicit > limits.ratio * direct:
        reasons.append(f"its norm {implicit:.1e} dwarfs the direct term's {direct:.1e}")
    if curvature is not None and curvature > 0:
        distance = info.stationarity / curvature
        if distance > limits.distance * size:
            reasons.append(
                f"theta is far from the inner optimum (about {distance:.1e}, its own norm is "
                f"{size:.1e})"
            )
    if not reasons:
        return ""
    remedy = "lower the solver's step, add damping or gauss_newton, or take more inner steps"
    return f"The implicit term cannot be trusted: {'; '.join(reasons)}. To mend it, {remedy}."
