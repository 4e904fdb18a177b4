"""Omega: what keeps a prediction from the corners, and how to descend an energy beside it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from structured.inference import (
    EnergyFunction,
    SlopedEnergy,
    energy_gradient,
    mirror_descent,
    projected_gradient,
)
from structured.losses.fenchel_young import (
    binary_negative_entropy,
    half_squared_norm,
    negative_entropy,
)
from structured.spaces import Space, Tags

# Without curvature one entropic step of infinite length would be exact. This one leaves a share of
# 1e-6 of the start, and its numbers stay finite.
_LONGEST_STEP = 1e6


@dataclass(frozen=True)
class Regularizer(ABC):
    """A strongly convex function Omega over a space.

    Args:
        weight: gamma, which multiplies it; positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight: found {self.weight}, wanted a finite positive number")

    @abstractmethod
    def value(self, point: Tensor, space: Space) -> Tensor:
        """Return Omega(p), ``[..., B]``, of points ``[..., B, *event]``."""

    @abstractmethod
    def strength(self, space: Space) -> float:
        """Return how strongly convex Omega is: the least eigenvalue of its Hessian anywhere."""

    @abstractmethod
    def linear(self, theta: Tensor, space: Space) -> Tensor:
        """Return ``argmax_p <theta, p> - Omega(p)``: the prediction if E is ``-<theta, p>``."""

    @abstractmethod
    def descend(
        self,
        energy_fn: EnergyFunction,
        start: Tensor,
        space: Space,
        *,
        curvature: float,
        steps: int,
        accelerated: bool,
    ) -> Tensor:
        """Descend ``E + Omega`` from a point of the space, and return the last point, detached.

        Args:
            energy_fn: E, a function of p alone.
            start: ``[..., B, *event]``.
            space: the space.
            curvature: the largest eigenvalue of E's Hessian, or a bound on it; decides the step.
            steps: how many.
            accelerated: by Nesterov's method, for convex energies.
        """


@dataclass(frozen=True)
class SquaredNorm(Regularizer):
    """``weight / 2 ||p||^2``: predictions reach the corners, and zeros are exact.

    Linear energies: clipping on the hypercube, sparsemax on a simplex. In general projected
    gradient with the step ``1 / (weight + curvature)``.

    Example:
        >>> import torch
        >>> from structured.spaces import Labels
        >>> SquaredNorm(2.0).linear(torch.tensor([[1.0, 3.0, -1.0]]), Labels(3))
        tensor([[0.5000, 1.0000, 0.0000]])
    """

    def value(self, point: Tensor, space: Space) -> Tensor:
        return half_squared_norm(point, weight=self.weight, event_dims=space.event_dims)

    def strength(self, space: Space) -> float:
        return self.weight

    def linear(self, theta: Tensor, space: Space) -> Tensor:
        return space.project(theta / self.weight)

    def descend(
        self,
        energy_fn: EnergyFunction,
        start: Tensor,
        space: Space,
        *,
        curvature: float,
        steps: int,
        accelerated: bool,
    ) -> Tensor:
        objective = SlopedEnergy(
            lambda point: energy_fn(point) + self.value(point, space),
            lambda point: energy_gradient(energy_fn, point) + self.weight * point,
        )
        rate = 1.0 / (self.weight + curvature)
        return projected_gradient(
            objective, start, space, steps=steps, rate=rate, accelerated=accelerated
        ).point


@dataclass(frozen=True)
class NegativeEntropy(Regularizer):
    """``weight`` times the negative entropy: binary per label or pixel, Shannon's per simplex.

    Linear energies: sigmoid or softmax of ``theta / weight``. In general damped mean field: the
    logits move from where they are towards ``-grad E / weight``. That is mirror descent with an
    entropy bonus, and the damping that never ascends follows from the curvature.

    Example:
        >>> import torch
        >>> from structured.spaces import Labels
        >>> NegativeEntropy().linear(torch.tensor([[0.0, 2.0]]), Labels(2))
        tensor([[0.5000, 0.8808]])
    """

    def value(self, point: Tensor, space: Space) -> Tensor:
        function = negative_entropy if isinstance(space, Tags) else binary_negative_entropy
        return self.weight * function(point, event_dims=space.event_dims)

    def strength(self, space: Space) -> float:
        # The second derivatives: 1 / p on a simplex, 1 / (p (1 - p)) on a hypercube.
        return self.weight if isinstance(space, Tags) else 4.0 * self.weight

    def linear(self, theta: Tensor, space: Space) -> Tensor:
        return space.relax(theta / self.weight)

    def descend(
        self,
        energy_fn: EnergyFunction,
        start: Tensor,
        space: Space,
        *,
        curvature: float,
        steps: int,
        accelerated: bool,
    ) -> Tensor:
        longest = _LONGEST_STEP / self.weight
        strength = self.strength(space) / self.weight
        rate = strength / curvature if curvature > strength / longest else longest
        return mirror_descent(
            energy_fn, start, space, steps=steps, rate=rate, entropy=self.weight,
            accelerated=accelerated,
        ).point  # fmt: skip
