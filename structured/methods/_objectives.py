"""Objectives as functions of phi, theta and one minibatch; above all the two of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from structured._space import Space
from structured.methods.primaries import Primary
from structured.models import Models
from structured.sampling import Sampler

Cost = Callable[[Tensor, Tensor], Tensor]
"""``(candidate [..., B, *event], gold [B, *event]) -> [..., B]``; see `structured.costs`."""

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Data with all the noise an evaluation needs, so that it can be evaluated again exactly.

    Attributes:
        x: inputs, ``[B, ...]``.
        y: gold outputs, ``[B, *event]``.
        masks: dropout masks of the network; None for no dropout.
        noise: of the samples, ``[K, B, *event]``; None if the sampler takes none.
    """

    x: Tensor
    y: Tensor
    masks: Any = None
    noise: Tensor | None = None


def fixed(parameters: Parameters) -> dict[str, Tensor]:
    """Return the same parameters with no gradient passing to them."""
    return {name: leaf.detach() for name, leaf in parameters.items()}


def squared_norm(parameters: Parameters) -> Tensor:
    """Return the sum of the squares of all entries, 0-d."""
    return torch.stack([leaf.square().sum() for leaf in parameters.values()]).sum()


def draw_masks(network: nn.Module, x: Tensor, generator: torch.Generator) -> Any:
    """Return the network's dropout masks for `x`; None where it has no method to draw them."""
    draw = getattr(network, "dropout_masks", None)
    return None if draw is None else draw(x, generator=generator)


def network_logits(
    network: nn.Module, x: Tensor, masks: Any, parameters: Parameters | None = None
) -> Tensor:
    """Return the network's logits under given dropout masks.

    Args:
        network: A.
        x: inputs, ``[B, ...]``.
        masks: of `draw_masks`; None where there are none.
        parameters: take these instead of the network's own.

    Returns:
        ``[B, *event]``.
    """
    extra = {} if masks is None else {"dropout_masks": masks}
    if parameters is None:
        return network(x, **extra)
    return functional_call(network, dict(parameters), (x,), extra)


def training_logits(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the network's logits under new dropout, ``[B, *event]``."""
    return network_logits(network, x, draw_masks(network, x, generator))


def pretraining_loss(
    space: Space, logits: Tensor, local: Tensor | None, y: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return what is descended before an energy is used, 0-d, and its figures.

    Args:
        space: of the outputs.
        logits: of the network, ``[B, *event]``.
        local: coefficients of the energy's local term, if it is to become a classifier beside the
            network: its logits are their negatives.
        y: gold outputs, ``[B, *event]``.
    """
    loss = -space.log_prob(logits, y).mean()
    figures = {"cross_entropy": float(loss.detach())}
    if local is not None:
        beside = -space.log_prob(-local, y).mean()
        figures["energy_cross_entropy"] = float(beside.detach())
        loss = loss + beside
    return loss, figures


def trained_energy(models: Models) -> nn.Module:
    """Return the energy, or raise ValueError if there is none."""
    if models.energy is None:
        raise ValueError("models: found no energy, wanted one; this method trains it")
    return models.energy


@dataclass(frozen=True)
class Compared:
    """Gold output and candidates under the energy.

    Attributes:
        logits: of the network, ``[B, *event]``.
        gold_energy: E(x, y), ``[B]``.
        energies: E(x, yhat_k), ``[K, B]``.
        costs: Delta(yhat_k, y), ``[K, B]``.
    """

    logits: Tensor
    gold_energy: Tensor
    energies: Tensor
    costs: Tensor


@dataclass(frozen=True)
class EnergyObjectives:
    """What objectives of an energy have in common. Pure: parameters come in as arguments.

    Attributes:
        models: whose modules compute; their own parameters are not used.
        cost: Delta.
    """

    models: Models
    cost: Cost

    def energies(self, phi: Parameters, x: Tensor, points: Tensor) -> Tensor:
        """Return energies of points ``[..., B, *event]``, ``[..., B]``."""
        return functional_call(trained_energy(self.models), dict(phi), (x, points))

    def compare(
        self, phi: Parameters, x: Tensor, y: Tensor, logits: Tensor, candidates: Tensor
    ) -> Compared:
        """Evaluate candidates ``[K, B, *event]`` beside the gold output, features of x once."""
        energies = self.energies(phi, x, torch.cat([y[None], candidates]))
        return Compared(logits, energies[0], energies[1:], self.cost(candidates, y))


@dataclass(frozen=True)
class Objectives(EnergyObjectives):
    """``L_P`` and ``L_A``. Pure: parameters and noise come in as arguments.

    Attributes:
        primary: the loss of L_P.
        sampler: how its candidates are drawn.
        ce_weight: lam.
        cost_weight: of the cost within L_A, 0 in the paper.
        l2: r.
    """

    primary: Primary
    sampler: Sampler
    ce_weight: float
    cost_weight: float
    l2: float

    def logits(self, theta: Parameters, batch: Minibatch) -> Tensor:
        """Return the network's logits under the minibatch's dropout, ``[B, *event]``."""
        return network_logits(self.models.network, batch.x, batch.masks, theta)

    def compare_samples(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Compared:
        """Draw the candidates and evaluate them beside the gold output."""
        logits = self.logits(theta, batch)
        candidates = self.models.space.sample(
            logits, self.primary.samples, self.sampler, noise=batch.noise
        )
        return self.compare(phi, batch.x, batch.y, logits, candidates)

    def outer(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """L_P: the primary loss at candidates from the network, mean over the minibatch."""
        found = self.compare_samples(phi, theta, batch)
        return self.primary.loss(found.gold_energy, found.energies, found.costs).mean()

    def inner(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """L_A = mean [E(x, A) - cost_weight Delta(A, y) + lam CE(A, y)] + r ||theta||^2 (eq. 6)."""
        value = self.auxiliary(phi, self.logits(theta, batch), batch)
        return value + self.penalty(phi, theta, batch) if self.l2 else value

    def auxiliary(self, phi: Parameters, logits: Tensor, batch: Minibatch) -> Tensor:
        """Return L_A but for the penalty, as a function of the logits, 0-d."""
        point = self.models.space.relax(logits)
        values = self.energies(phi, batch.x, point)
        if self.ce_weight:
            values = values + self.ce_weight * self.cross_entropy(logits, batch.y)
        if self.cost_weight:
            values = values - self.cost_weight * self.cost(point, batch.y)
        return values.mean()

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return CE(A, y), ``[B]``."""
        return -self.models.space.log_prob(logits, y)

    def penalty(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """Return ``r ||theta||^2``, 0-d."""
        return self.l2 * squared_norm(theta)

    def network_output(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """The model of the Gauss-Newton curvature: ``theta -> logits``."""
        return self.logits(theta, batch)

    def convex_part(self, phi: Parameters, logits: Tensor, batch: Minibatch) -> Tensor:
        """A convex stand-in for L_A as a function of the logits z, for Gauss-Newton curvature.

        Cross-entropy is convex in z and stands as it is. Of the energy at relax(z) only curvature
        that is surely positive is kept: the positive entries of ``dE/dy_i relax''(z_i)``, what the
        bend of an elementwise relaxation contributes. The energy's own curvature in y, of either
        sign, is left out, and so is everything for a simplex, where the relaxation is not
        elementwise.
        """
        centre = logits.detach()
        bend = self._bend(phi, centre, batch).clamp(min=0.0)
        bowl = 0.5 * (bend * (logits - centre).square()).sum()
        return self.ce_weight * self.cross_entropy(logits, batch.y).mean() + bowl

    def _bend(self, phi: Parameters, logits: Tensor, batch: Minibatch) -> Tensor:
        space = self.models.space
        with torch.enable_grad():
            point = space.relax(logits).requires_grad_()
            total = self.energies(fixed(phi), batch.x, point).mean()
            if self.cost_weight:
                total = total - self.cost_weight * self.cost(point, batch.y).mean()
            (slope,) = torch.autograd.grad(total, point)
            z = logits.clone().requires_grad_()
            (first,) = torch.autograd.grad((slope * space.relax(z)).sum(), z, create_graph=True)
            # The sum over entries gives the diagonal where relax is elementwise, and zero on a
            # simplex, whose slopes sum to zero.
            (second,) = torch.autograd.grad(first.sum(), z)
        return second
