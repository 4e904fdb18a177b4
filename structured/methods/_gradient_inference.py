"""What methods without an inference network share: one energy, and descents over it.

The energy is ``E(x, y) = -<A(x), y> + E_phi(x, y)``: the network A is the feature network with its
local term (Belanger & McCallum 2016, eq. 2-3), E_phi what is beyond it. So these methods have the
encoder, with its dropout, that all others have, and nothing beside it that sees x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from structured._space import Space, mirror_dual_step
from structured.energies import MultiLabelEnergy
from structured.inference import EnergyFunction, SlopedEnergy
from structured.methods._optimizer import check_count, check_rate
from structured.models import ModelConfig, Models, build_models

Geometry = Literal["mirror", "projected"]


class GlobalTerm(nn.Module):
    """What couples labels in the multi-label energy: ``c'softplus(C y)``, and ``g(sum_i y_i)``.

    Args:
        whole: the energy whose terms these are; they are taken, not copied.
        counts: whether g is there, which has kinks.
    """

    def __init__(self, whole: MultiLabelEnergy, *, counts: bool) -> None:
        super().__init__()
        self.global_weight, self.global_matrix = whole.global_weight, whole.global_matrix
        self.cardinality = whole.cardinality if counts else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return energies of points ``[..., B, L]``, ``[..., B]``; x is not looked at."""
        return MultiLabelEnergy.global_(cast(Any, self), y)

    def slope(self, y: Tensor) -> Tensor:
        """Return the gradient of ``c'softplus(C y)``, of the shape of y."""
        return (torch.sigmoid(y @ self.global_matrix.T) * self.global_weight) @ self.global_matrix

    def label_hessian(self, y: Tensor) -> Tensor:
        """Return what `MultiLabelEnergy.label_hessian` does, ``[L, L]``."""
        return MultiLabelEnergy.label_hessian(cast(Any, self), y)


def build_with_global_term(
    n_features: int, n_labels: int, config: ModelConfig, seed: int, *, counts: bool = False
) -> Models:
    """Return the common models, but of the energy what couples labels alone."""
    models = build_models(n_features, n_labels, config, seed)
    return replace(models, energy=GlobalTerm(cast(MultiLabelEnergy, models.energy), counts=counts))


def joint_energy(
    models: Models, x: Tensor, logits: Tensor, *, weight: float = 1.0
) -> EnergyFunction:
    """Return ``y -> -weight <logits, y> + E_phi(x, y)``.

    Args:
        models: whose energy is E_phi.
        x: inputs, ``[B, ...]``.
        logits: A(x), ``[B, *event]``.
        weight: of the local term.
    """
    dims = tuple(range(-models.space.event_dims, 0))
    energy = models.energy
    assert energy is not None

    def value(y: Tensor) -> Tensor:
        return energy(x, y) - weight * (logits * y).sum(dim=dims)

    if isinstance(energy, GlobalTerm) and energy.cardinality is None:
        return SlopedEnergy(value, lambda y: energy.slope(y) - weight * logits)
    return value


def energy_of_points(energy: nn.Module, x: Tensor) -> EnergyFunction:
    """Return ``y -> E(x, y)``, with the features of x computed once if the energy has them."""
    if not isinstance(energy, MultiLabelEnergy):
        return lambda y: energy(x, y)
    features = energy.features(x)
    return lambda y: energy.local(features, y) + energy.global_(y)


def energy_slope(energy_fn: EnergyFunction, y: Tensor, *, graph: bool = False) -> Tensor:
    """Return each example's gradient in y; with `graph`, differentiable itself."""
    if isinstance(energy_fn, SlopedEnergy):
        with torch.set_grad_enabled(graph):
            return energy_fn.slope(y)
    # autograd.grad where torch.func.grad would do as well: it takes half the time.
    with torch.enable_grad():
        point = y if graph and y.requires_grad else y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy_fn(point).sum(), point, create_graph=graph)
    return slope


@dataclass(frozen=True)
class Descent:
    """Gradient descent over a relaxed space, every example by its own gradient.

    Args:
        steps: how many.
        rate: the step size.
        geometry: "mirror" (steps in logits, see `structured.inference.mirror_descent`) or
            "projected" (steps in points, projected back).
        entropy: weight of the entropy bonus of mirror steps.

    Raises:
        ValueError: if an option does not fit.
    """

    steps: int
    rate: float
    geometry: Geometry
    entropy: float

    def __post_init__(self) -> None:
        if self.geometry not in ("mirror", "projected"):
            raise ValueError(f'geometry: found {self.geometry!r}, wanted "mirror" or "projected"')
        check_count("steps", self.steps, 1)
        check_rate("rate", self.rate)
        check_rate("entropy", self.entropy, zero=True)
        if self.entropy and self.geometry == "projected":
            raise ValueError(
                f"entropy: found {self.entropy} with projected steps, which know no entropy; take "
                '0, or geometry="mirror"'
            )

    def visit(
        self, energy_fn: EnergyFunction, start: Tensor, space: Space, *, graph: bool = False
    ) -> Iterator[Tensor]:
        """Yield the state after each step: logits of mirror steps, points of projected ones.

        Args:
            energy_fn: y to energies.
            start: the first state, ``[..., B, *event]``.
            space: the space.
            graph: keep the graph, through the steps and their gradients.
        """
        state = start
        for _ in range(self.steps):
            if self.geometry == "projected":
                slope = energy_slope(energy_fn, state, graph=graph)
                state = space.project(state - self.rate * slope)
            else:
                slope = energy_slope(energy_fn, space.relax(state), graph=graph)
                state = mirror_dual_step(state, slope, self.rate, self.entropy)
            yield state

    def end(self, energy_fn: EnergyFunction, logits: Tensor, space: Space) -> Tensor:
        """Descend from the point of some logits; return the last point, without a graph."""
        mirror = self.geometry == "mirror"
        with torch.no_grad():
            start = logits.detach() if mirror else space.relax(logits)
            *_, state = self.visit(energy_fn, start, space)
            return space.relax(state) if mirror else state


def point_entropy(space: Space, point: Tensor) -> Tensor:
    """Return the entropy of the factorised distribution whose mean a point is, ``[..., B]``."""
    return space.entropy(space.dual(point))
