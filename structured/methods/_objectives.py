"""The two objectives of the paper's Algorithm 1, as functions of phi, theta and one minibatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
class Objectives:
    """``L_P`` and ``L_A``. Pure: parameters and noise come in as arguments.

    Attributes:
        models: whose modules compute; their own parameters are not used.
        primary: the loss of L_P.
        sampler: how its candidates are drawn.
        cost: Delta.
        ce_weight: lam.
        cost_weight: of the cost within L_A, 0 in the paper.
        l2: r.
    """

    models: Models
    primary: Primary
    sampler: Sampler
    cost: Cost
    ce_weight: float
    cost_weight: float
    l2: float

    def logits(self, theta: Parameters, batch: Minibatch) -> Tensor:
        """Return the network's logits under the minibatch's dropout, ``[B, *event]``."""
        network = self.models.network
        extra = {} if batch.masks is None else {"dropout_masks": batch.masks}
        return functional_call(network, dict(theta), (batch.x,), extra)

    def energies(self, phi: Parameters, x: Tensor, points: Tensor) -> Tensor:
        """Return energies of points ``[..., B, *event]``, ``[..., B]``."""
        energy = self.models.energy
        assert energy is not None
        return functional_call(energy, dict(phi), (x, points))

    def compare(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Compared:
        """Draw the candidates and evaluate them beside the gold output, features of x once."""
        logits = self.logits(theta, batch)
        candidates = self.models.space.sample(
            logits, self.primary.samples, self.sampler, noise=batch.noise
        )
        energies = self.energies(phi, batch.x, torch.cat([batch.y[None], candidates]))
        return Compared(logits, energies[0], energies[1:], self.cost(candidates, batch.y))

    def outer(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """L_P: the primary loss at candidates from the network, mean over the minibatch."""
        found = self.compare(phi, theta, batch)
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
