"""The loss: inference with a certificate, and what training needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from structured.errors import StructuredError
from structured.fenchel_young.regularizers import Regularizer, SquaredNorm
from structured.inference import EnergyFunction, energy_gradient
from structured.losses.fenchel_young import fenchel_young
from structured.spaces import Space


class InnerGapError(StructuredError, RuntimeError):
    """Inference ended further from the minimum than the caller allows."""


@dataclass(frozen=True)
class Prediction:
    """A regularized prediction and how good it is.

    Attributes:
        point: p, ``[..., B, *event]``; carries no gradient.
        gap: ``[..., B]``, at least 0, and 0 only at a stationary point. If the energy is convex,
            ``E(p) + Omega(p)`` exceeds its minimum by no more, and by as much at most is the loss
            too low.
    """

    point: Tensor
    gap: Tensor


@dataclass(frozen=True)
class GeneralizedFenchelYoung:
    """``L(y) = [E(y) + Omega(y)] - min_p [E(p) + Omega(p)]``, for any energy and space.

    Args:
        space: what p is a point of.
        regularizer: Omega.
        steps: of the inference.
        accelerated: use Nesterov's method, which is for convex energies. None (default) uses it
            where its bound after `steps` steps is the better one, that is where the curvature is
            large beside the regularizer; say False for an energy that is not convex.
        tolerance: the largest gap allowed, on any example; None allows all.

    Raises:
        ValueError: if a number is out of range.

    Example:
        With a linear energy and the entropy it is the logistic loss, summed over labels.

        >>> import torch
        >>> from structured.fenchel_young import NegativeEntropy
        >>> from structured.spaces import Labels
        >>> logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
        >>> gold = torch.tensor([[1.0, 0.0]])
        >>> loss = GeneralizedFenchelYoung(Labels(2), NegativeEntropy(), tolerance=1e-4)
        >>> def energy(p):
        ...     return -(logits * p).sum(-1)
        >>> found = loss.predict(energy, torch.full((1, 2), 0.5))
        >>> value = loss(energy, gold, found.point)
        >>> value
        tensor([0.4402], grad_fn=<SubBackward0>)
        >>> torch.autograd.grad(value.sum(), logits)[0]  # sigmoid(logits) - gold
        tensor([[-0.1192,  0.2689]])

    Reference:
        Blondel, Llinares-López, Dadashi, Hussenot and Geist, Learning Energy Networks with
        Generalized Fenchel-Young Losses, 2022.
    """

    space: Space
    regularizer: Regularizer = field(default_factory=SquaredNorm)
    steps: int = 50
    accelerated: bool | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: found {self.steps}, wanted at least 1")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance: found {self.tolerance}, wanted a positive number or None")

    def __call__(self, energy_fn: EnergyFunction, gold: Tensor, point: Tensor) -> Tensor:
        """Return the loss, ``[B]``; gradients pass through E, never through the point.

        Args:
            energy_fn: E as a function of p, ``[..., B, *event] -> [..., B]``; called once.
            gold: y, ``[B, *event]``.
            point: p*, of the same shape, as `predict` returns it.
        """
        point = point.detach()
        energies = energy_fn(torch.stack([gold, point]))
        at_gold, at_point = (self.regularizer.value(p, self.space) for p in (gold, point))
        return fenchel_young(energies[0], at_gold, energies[1], at_point)

    def predict(
        self, energy_fn: EnergyFunction, start: Tensor, *, curvature: float = 0.0
    ) -> Prediction:
        """Return ``argmin_p E(p) + Omega(p)``, found by gradient steps.

        Args:
            energy_fn: E as a function of p; every example moves by its own gradient.
            start: a point of the space, ``[..., B, *event]``.
            curvature: the largest eigenvalue of E's Hessian over the space, or a bound on it; 0
                (default) for linear energies, which one step solves. The step follows from it.

        Raises:
            InnerGapError: if a gap exceeds `tolerance`.
        """
        if not (curvature >= 0 and math.isfinite(curvature)):
            raise ValueError(f"curvature: found {curvature}, wanted a finite number of at least 0")
        accelerated = self.accelerated
        if accelerated is None:
            accelerated = self._acceleration_pays(curvature)
        point = self.regularizer.descend(
            energy_fn,
            start.detach(),
            self.space,
            curvature=curvature,
            steps=self.steps,
            accelerated=accelerated,
        )
        return self.certify(energy_fn, point)

    def certify(self, energy_fn: EnergyFunction, point: Tensor) -> Prediction:
        """Return a point that any inference found, with its gap.

        The gap is what the linearized energy could still gain, ``max_q <grad E(p), p - q> +
        Omega(p) - Omega(q)``: itself the Fenchel-Young loss of ``-grad E(p)`` at p, and never more
        than the Frank-Wolfe gap of E + Omega.

        Raises:
            InnerGapError: if a gap exceeds `tolerance`.
        """
        point = point.detach()
        with torch.no_grad():
            theta = -energy_gradient(energy_fn, point)
            best = self.regularizer.linear(theta, self.space)
            dims = tuple(range(-self.space.event_dims, 0))
            values = (self.regularizer.value(p, self.space) for p in (point, best))
            at_point, at_best = values
            # Rounding may leave it below zero.
            gap = ((theta * (best - point)).sum(dim=dims) + at_point - at_best).clamp(min=0.0)
        if self.tolerance is not None and not bool((gap <= self.tolerance).all()):
            raise InnerGapError(
                f"gap: found {float(gap.max()):.1e} on an example, wanted at most "
                f"{self.tolerance:.1e}; take more steps, give a bound on the curvature, or raise "
                "the tolerance or the regularizer's weight"
            )
        return Prediction(point, gap)

    def _acceleration_pays(self, curvature: float) -> bool:
        """Compare both methods' worst cases: ``exp(-steps / c)`` and ``2 c / (steps + 1)^2``."""
        condition = 1.0 + curvature / self.regularizer.strength(self.space)
        return 2.0 * condition / (self.steps + 1) ** 2 < math.exp(-self.steps / condition)


def augmented(
    energy_fn: EnergyFunction, cost: Callable[[Tensor, Tensor], Tensor], gold: Tensor
) -> EnergyFunction:
    """Return ``p -> E(p) - Delta(p, y)``: in place of E it gives the cost-augmented loss.

    Inference then looks for points that are both likely and bad, as in a structured SVM. Since
    ``Delta(y, y) = 0``, the loss is an upper bound of the one without a cost.

    Args:
        energy_fn: E as a function of p.
        cost: Delta, one of `structured.costs` or a function like them. With `costs.hamming`, which
            is linear in p, a convex energy stays convex and its curvature the same.
        gold: y, ``[B, *event]``.

    Example:
        >>> import torch
        >>> from structured.costs import hamming
        >>> gold = torch.tensor([[1.0, 0.0]])
        >>> harder = augmented(lambda p: -p.sum(-1), hamming, gold)
        >>> harder(gold), harder(1 - gold)
        (tensor([-1.]), tensor([-2.]))
    """
    return lambda point: energy_fn(point) - cost(point, gold)
