"""Central differences of the outer objective, the inner problem solved again at each end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bilevel._probe import Probe
from bilevel._tree import Tree, check_finite
from bilevel.errors import ConvergenceWarning, NonFiniteError, ProductWarning
from bilevel.problem import ImplicitProblem


@dataclass(frozen=True)
class InnerSolver:
    """Solves the inner problem, again and again; everything flat.

    Attributes:
        problem: whose ``refine`` is used.
        probe: the objectives.
        solve: the user's, in place of ``refine``.
        tolerance: of ``refine``; None for its own.
    """

    problem: ImplicitProblem
    probe: Probe
    solve: Callable[[Tree, Tree], Tree] | None
    tolerance: float | None = None

    def solved(self, phi: Tensor, theta: Tensor) -> Tensor:
        """The inner solution at phi, from a start."""
        point = self.probe.point
        layout = point.theta_layout
        trees = point.phi_layout.unflatten(phi.clone()), layout.unflatten(theta.clone())
        if self.solve is not None:
            with point.inner.guard.replay():
                found = self.solve(*trees)
        else:
            with warnings.catch_warnings():
                # The result tells of the one; the implicit gradient will warn of the other.
                warnings.simplefilter("ignore", ConvergenceWarning)
                warnings.simplefilter("ignore", ProductWarning)
                found = self.problem.refine(
                    *trees, inner_args=point.inner.args, tolerance=self.tolerance
                )
        leaves = layout.matching_leaves(found, "what solve returned", "theta")
        check_finite(found, leaves, "what solve returned")
        return layout.join([leaf.detach() for leaf in leaves]).clone()

    def adapted(self, phi: Tensor, theta: Tensor, move: Tensor) -> tuple[InnerSolver, Tensor]:
        """The inner solution at phi, and a solver as exact as a step of phi asks for."""
        theta = self.solved(phi, theta)
        if self.solve is not None:
            return self, theta
        change = self.probe.slope(phi + move, theta) - self.probe.slope(phi, theta)
        small = math.sqrt(torch.finfo(theta.dtype).eps) * float(torch.linalg.vector_norm(change))
        finer = replace(self, tolerance=small or None) if math.isfinite(small) else self
        return finer, finer.solved(phi, theta)


def difference(
    solver: InnerSolver,
    base: Tensor,
    start: Tensor,
    adjoint: Tensor,
    direction: Tensor,
    step: float,
) -> tuple[float, float]:
    """A central difference of the outer value, and what unfinished inner solves may do to it.

    A gradient ``g`` left over at theta is, to first order, ``adjoint @ g`` of the outer value.
    """
    values, rests = [], []
    for phi in (base + step * direction, base - step * direction):
        theta = solver.solved(phi, start)
        values.append(solver.probe.outer(phi, theta))
        rests.append(float(adjoint @ solver.probe.slope(phi, theta)))
    if not all(math.isfinite(x) for x in (*values, *rests)):
        raise NonFiniteError(
            f"the value of outer or the gradient of inner is NaN or infinite a step of {step:.1e} "
            "from phi. Make the step smaller (step=), or look at the objectives near phi."
        )
    return (values[0] - values[1]) / (2 * step), abs(rests[0] - rests[1]) / (2 * step)
