"""Structured prediction energy networks, trained with a margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from structured import costs, losses
from structured.inference import EnergyFunction, SlopedEnergy
from structured.methods._gradient_inference import (
    Descent,
    Geometry,
    build_with_global_term,
    joint_energy,
    point_entropy,
)
from structured.methods._objectives import Cost
from structured.methods._optimizer import check_count, check_rate
from structured.methods._parts import check_cost
from structured.methods._staged import DescentLearner, Rule, Stage, pretraining
from structured.methods.base import Method, SearchSpace
from structured.methods.registry import register
from structured.models import ModelConfig, Models

Start = Literal["network", "centre"]


@register("spen")
@dataclass(frozen=True)
class SPEN(Method):
    """Train ``E(x, y) = -<A(x), y> + E_phi(x, y)`` with a margin; predict by descending it.

    There is no inference network: the network A is the feature network with its local term, as in
    the paper, and `build` makes E_phi the global term ``c'softplus(C y)`` alone. So SPEN has the
    encoder that all methods have, and nothing beside it that sees x.

    Objective: the structured hinge ``mean [Delta(yhat, y) - F(yhat) + F(y)]_+`` of the free energy
    ``F(y) = E(x, y) - entropy * H(y)`` at yhat, which approximately minimises ``F - Delta``
    (cost-augmented inference) by gradient descent over the relaxed space.

    Gradient of the energy: ``d E(y) - d E(yhat)`` at fixed yhat, where the hinge is active. Dropped
    is the path through yhat; that is exact where the inner minimisation is (Danskin's theorem), and
    after few steps it is not.

    Three stages: the network with cross-entropy; E_phi alone, the network at rest; both together.
    With ``entropy=1`` (default) the minimiser of F is the mean-field approximation of
    ``e^{-E} / Z``: a point of label probabilities, and the network's own ones where E_phi is
    constant. With ``entropy=0`` points run to corners, as in the paper.

    Args:
        pretrain_epochs: of the first stage.
        energy_epochs: of the second stage.
        pretrain_lr: of Adam in the first stage; the published code takes 5e-4.
        energy_lr: of Adam in the second stage.
        lr: of Adam in the last stage.
        weight_decay: decoupled, of Adam in the second and the last stage.
        steps: of inference.
        rate: step size of inference; for mirror steps in logits, the published code's 2 eta.
        geometry: "mirror" (entropic mirror descent) or "projected" (gradient descent with
            clamping, which needs ``entropy=0``).
        entropy: weight of the entropy, the paper's lambda_H.
        start: where inference starts: "network", its prediction, or "centre", as published.
        cost: Delta, one of `structured.costs` or a function like them; soft F1 and Hamming are
            faster, since inference takes their gradients by formula.
        cost_weight: multiplies Delta.
        max_norm: clip the norm of the gradient after pretraining; 1 in the published code.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = SPEN(pretrain_epochs=0, energy_epochs=1)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> learner.phase, sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ('energy', ['active_hinges', 'energy_gap', 'margin'])

    Reference:
        Belanger & McCallum, Structured Prediction Energy Networks, 2016; rates and stages from
        their code, https://github.com/davidBelanger/SPEN.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_epochs": (10, 20),
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "energy_lr": (3e-4, 1e-3, 3e-3),
        "lr": (1e-4, 3e-4, 1e-3),
        "entropy": (0.3, 1.0),
        "cost_weight": (0.3, 1.0, 3.0),
    }

    pretrain_epochs: int = 10
    energy_epochs: int = 5
    pretrain_lr: float = 1e-3
    energy_lr: float = 1e-3
    lr: float = 3e-4
    weight_decay: float = 0.0
    steps: int = 20
    rate: float = 0.5
    geometry: Geometry = "mirror"
    entropy: float = 1.0
    start: Start = "network"
    cost: Cost = costs.soft_f1
    cost_weight: float = 1.0
    max_norm: float | None = 1.0
    reweights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        check_count("energy_epochs", self.energy_epochs, 0)
        for name in ("pretrain_lr", "energy_lr", "lr"):
            check_rate(name, getattr(self, name))
        for name in ("weight_decay", "cost_weight"):
            check_rate(name, getattr(self, name), zero=True)
        _ = self.descent  # checks its options
        check_cost(self.cost)
        if self.start not in ("network", "centre"):
            raise ValueError(f'start: found {self.start!r}, wanted "network" or "centre"')
        if self.max_norm is not None:
            check_rate("max_norm", self.max_norm)

    @property
    def name(self) -> str:
        return "spen"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        alone, both = (Rule(rate, self.weight_decay) for rate in (self.energy_lr, self.lr))
        return (
            pretraining(self.pretrain_epochs, self.pretrain_lr),
            Stage("energy", self.energy_epochs, {"energy": alone}),
            Stage("all", None, {"network": both, "energy": both}),
        )

    @property
    def descent(self) -> Descent:
        """How inference descends."""
        return Descent(self.steps, self.rate, self.geometry, self.entropy)

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and an energy that only couples labels."""
        return build_with_global_term(n_features, n_labels, config, seed)

    def infer(
        self, models: Models, x: Tensor, logits: Tensor, gold: Tensor | None = None
    ) -> Tensor:
        """Descend the free energy, less the cost if gold outputs are given.

        Args:
            models: whose energy is descended.
            x: inputs, ``[B, ...]``.
            logits: A(x), ``[B, *event]``.
            gold: gold outputs, for cost-augmented inference.

        Returns:
            Points, ``[B, *event]``; no gradient passes.
        """
        space, energy = models.space, joint_energy(models, x, logits.detach())
        if gold is not None and self.cost_weight:
            energy = _less_cost(energy, self.cost, self.cost_weight, gold)
        first = logits.detach() if self.start == "network" else torch.zeros_like(logits)
        return self.descent.end(energy, first, space)

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return where the descent of the free energy ends, ``[B, *event]``."""
        with torch.no_grad():
            return self.infer(models, x, models.network(x))

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> SPENLearner:
        return SPENLearner(self, models, seed=seed, device=device)


def _less_cost(
    energy_fn: EnergyFunction, cost: Cost, weight: float, gold: Tensor
) -> EnergyFunction:
    """Return ``y -> E(y) - weight Delta(y, gold)``, with a formula if E and Delta have one."""

    def value(y: Tensor) -> Tensor:
        return energy_fn(y) - weight * cost(y, gold)

    rise = _cost_slope(cost, gold)
    if rise is None or not isinstance(energy_fn, SlopedEnergy):
        return value
    return SlopedEnergy(value, lambda y: energy_fn.slope(y) - weight * rise(y))


def _cost_slope(cost: Cost, gold: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return ``y -> dDelta/dy`` if it has a formula; what depends on gold alone is computed now."""
    if cost is costs.hamming:
        rise = (1.0 - 2.0 * gold) / gold.shape[-1]
        return lambda y: rise.expand_as(y)
    if cost is not costs.soft_f1:
        return None
    whole, size = gold >= 1.0, gold.sum(dim=-1, keepdim=True)

    def soft_f1_slope(y: Tensor) -> Tensor:
        # The cost is 1 - 2 m / t with m = sum min(y, gold) and t = sum y + sum gold, and so its
        # derivative 2 (m / t - [y is the minimum]) / t; 0 where both sets are empty.
        least = (y < gold) | whole
        total = y.sum(dim=-1, keepdim=True) + size
        total = torch.where(total == 0, 1.0, total)
        f1 = 2.0 * torch.where(least, y, gold).sum(dim=-1, keepdim=True) / total
        return (f1 - 2.0 * least) / total

    return soft_f1_slope


class SPENLearner(DescentLearner):
    """See `SPEN`."""

    def __init__(
        self, method: SPEN, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(
            method, models, method.stages, max_norm=method.max_norm, seed=seed, device=device
        )
        self._method = method

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        method, space = self._method, self.models.space
        logits = self._logits(x)
        candidate = method.infer(self.models, x, logits, y)
        gold_energy, energy = joint_energy(self.models, x, logits)(torch.stack([y, candidate]))
        cost = method.cost_weight * method.cost(candidate, y)
        if method.entropy:
            energy = energy - method.entropy * point_entropy(space, candidate)
        hinges = losses.margin(gold_energy, energy, cost)
        loss = hinges.mean()
        return loss, {
            "margin": float(loss.detach()),
            "energy_gap": float((energy - gold_energy).detach().mean()),
            "active_hinges": float((hinges.detach() > 0).to(loss.dtype).mean()),
        }
