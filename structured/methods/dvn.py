"""Deep value networks: the energy learns the score of any output, and inference climbs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from structured import costs
from structured.inference import EnergyFunction, SlopedEnergy
from structured.methods._gradient_inference import (
    Descent,
    build_with_global_term,
    energy_slope,
    joint_energy,
)
from structured.methods._objectives import Cost
from structured.methods._optimizer import OptimizerName, check_count, check_finite, check_rate
from structured.methods._parts import check_cost
from structured.methods._staged import DescentLearner, Rule, Stage, pretraining
from structured.methods.base import Method, SearchSpace
from structured.methods.primaries import Value
from structured.methods.registry import register
from structured.models import ModelConfig, Models


@register("dvn")
@dataclass(frozen=True)
class DVN(Method):
    """Train ``sigma(-E(x, yhat))`` to be the score of yhat, and predict by climbing it.

    The energy is that of `SPEN` with a weight, ``E(x, y) = -w <A(x), y> + E_phi(x, y)``: A is the
    feature network with its local term and `build` makes E_phi the global term ``c'softplus(C y)``.

    Objective: the value loss, cross-entropy between ``sigma(-E(x, yhat))`` and the score ``1 -
    Delta(yhat, y)`` (by default the soft F1) of one point yhat for each example. Half of the
    minibatches take adversarial points: one step *up* the value loss, from gold for about half of
    the examples and from zero for the others. The other half take points of plain inference: all
    `steps` steps up the value from zero.

    Gradient of the energy: ``(sigma(-E) - (1 - Delta)) d(-E)(yhat)`` at fixed yhat. Dropped is how
    yhat depends on the energy; nothing is claimed of it, since any point will do to learn from. The
    adversarial step holds the score at that of its start.

    Prediction: inference from zero. What it returns are points of the hypercube, many entries at 0
    or 1 exactly; they are not probabilities.

    Args:
        steps: of inference, 20 in the published code.
        rate: its step size on the value, 0.5 in the published code.
        adversarial: the probability of a minibatch of adversarial points.
        from_gold: the probability of starting an adversarial point at gold.
        gold: also fit the gold output, whose score is 1, on every minibatch; not so in the
            published code, but it learns faster.
        cost: Delta, one of `structured.costs` or a function like them.
        kind: "cross_entropy", or "squared" for a squared error.
        optimizer: "adam", or "sgd" as published.
        lr: its rate; 0.1 with "sgd" in the published code.
        weight_decay: of the optimizer.
        drop_after: divide the rate by 10 after so many epochs of learning values, and once more
            after as many again; None (default) never does.
        local_weight: w; 1 in the published code. Logits that cross-entropy has trained add up to
            values near 0 and 1, where the sigmoid is flat; a smaller weight keeps them apart.
        pretrain_epochs: of the network, with cross-entropy; 0 in the published code, which takes
            315 epochs to learn values from nothing on bibtex.
        pretrain_lr: of Adam in pretraining.
        max_norm: clip the norm of the gradient after pretraining; None does not.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = DVN(pretrain_epochs=0)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> learner.phase, sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ('value', ['adversarial', 'score', 'value', 'value_loss'])

    Reference:
        Gygli, Norouzi & Angelova, Deep Value Networks Learn to Evaluate and Iteratively Refine
        Structured Outputs, 2017; numbers from their code, https://github.com/gyglim/dvn, which
        takes its "adversarial" step up the value, where the paper has it up the loss.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_epochs": (10, 20),
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "lr": (3e-4, 1e-3, 3e-3),
        "rate": (0.2, 0.5, 1.0),
        "local_weight": (0.1, 0.25, 0.5),
        "adversarial": (0.5, 0.75),
    }

    steps: int = 20
    rate: float = 0.5
    adversarial: float = 0.5
    from_gold: float = 0.5
    gold: bool = True
    cost: Cost = costs.soft_f1
    kind: Literal["cross_entropy", "squared"] = "cross_entropy"
    optimizer: OptimizerName = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    drop_after: int | None = None
    local_weight: float = 0.25
    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    max_norm: float | None = None

    def __post_init__(self) -> None:
        _ = self.descent, self.primary  # check their options
        check_cost(self.cost)
        for name in ("adversarial", "from_gold"):
            check_finite(name, getattr(self, name))
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, wanted a probability")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f'optimizer: found {self.optimizer!r}, wanted "adam" or "sgd"')
        for name in ("lr", "pretrain_lr", "local_weight"):
            check_rate(name, getattr(self, name))
        check_rate("weight_decay", self.weight_decay, zero=True)
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        if self.drop_after is not None:
            check_count("drop_after", self.drop_after, 1)
        if self.max_norm is not None:
            check_rate("max_norm", self.max_norm)

    @property
    def name(self) -> str:
        return "dvn"

    @property
    def primary(self) -> Value:
        """The value loss."""
        return Value(kind=self.kind, gold=self.gold)

    @property
    def descent(self) -> Descent:
        """How inference climbs."""
        return Descent(self.steps, self.rate, "projected", 0.0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""

        def learning(name: str, epochs: int | None, share: float) -> Stage:
            rule = Rule(self.lr * share, self.weight_decay, self.optimizer)
            return Stage(name, epochs, {"network": rule, "energy": rule})

        first = pretraining(self.pretrain_epochs, self.pretrain_lr)
        if self.drop_after is None:
            return first, learning("value", None, 1.0)
        return (
            first,
            learning("value", self.drop_after, 1.0),
            learning("value, rate / 10", self.drop_after, 0.1),
            learning("value, rate / 100", None, 0.01),
        )

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and an energy that only couples labels."""
        return build_with_global_term(n_features, n_labels, config, seed)

    def energy(self, models: Models, x: Tensor, logits: Tensor) -> EnergyFunction:
        """Return ``y -> E(x, y)``, given A(x)."""
        return joint_energy(models, x, logits, weight=self.local_weight)

    def climb(self, models: Models, energy_fn: EnergyFunction, like: Tensor) -> Tensor:
        """Return where `steps` steps up ``sigma(-E)`` from zero end; no gradient passes.

        Args:
            models: whose space is climbed in.
            energy_fn: y to energies.
            like: a tensor of the shape and type of the points.
        """
        space = models.space
        # Zero is in no simplex: there, its projection is the centre.
        start = space.project(torch.zeros_like(like))
        with torch.no_grad():
            *_, point = self.descent.visit(_minus_value(energy_fn), start, space)
        return point

    def provoke(
        self, models: Models, energy_fn: EnergyFunction, start: Tensor, gold: Tensor
    ) -> Tensor:
        """Return the points one step up the value loss from `start`; no gradient passes."""
        space = models.space
        with torch.no_grad():
            score = 1.0 - self.cost(start, gold)
            slope = energy_slope(lambda y: self._fit(energy_fn(y), score), start)
            return space.project(start + self.rate * slope)

    def _fit(self, energy: Tensor, score: Tensor) -> Tensor:
        # The value loss of one candidate, whatever it costs; its gold energy is not looked at.
        plain = Value(kind=self.kind, gold=False)
        return plain.loss(energy, energy[None], 1.0 - score)

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return where inference from zero ends, ``[B, *event]``."""
        with torch.no_grad():
            logits = models.network(x)
            return self.climb(models, self.energy(models, x, logits), logits)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> DVNLearner:
        return DVNLearner(self, models, seed=seed, device=device)


def _minus_value(energy_fn: EnergyFunction) -> EnergyFunction:
    """Return ``y -> -sigma(-E(y))``, with a formula for its gradient if E has one."""

    def value(y: Tensor) -> Tensor:
        return -torch.sigmoid(-energy_fn(y))

    if not isinstance(energy_fn, SlopedEnergy):
        return value

    def slope(y: Tensor) -> Tensor:
        score, inner = -value(y), energy_fn.slope(y)
        rise = score * (1.0 - score)
        return rise.reshape(rise.shape + (1,) * (y.ndim - rise.ndim)) * inner

    return SlopedEnergy(value, slope)


class DVNLearner(DescentLearner):
    """See `DVN`."""

    def __init__(
        self, method: DVN, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(
            method, models, method.stages, max_norm=method.max_norm, seed=seed, device=device
        )
        self._method = method

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        method = self._method
        logits = self._logits(x)
        fixed = method.energy(self.models, x, logits.detach())
        adversarial = self._chance(()) < method.adversarial
        if adversarial:
            point = method.provoke(self.models, fixed, self._starts(y), y)
        else:
            point = method.climb(self.models, fixed, y)
        gold_energy, energy = method.energy(self.models, x, logits)(torch.stack([y, point]))
        cost = method.cost(point, y)
        loss = method.primary.loss(gold_energy, energy[None], cost[None]).mean()
        return loss, {
            "value_loss": float(loss.detach()),
            "value": float(torch.sigmoid(-energy.detach()).mean()),
            "score": float((1.0 - cost).mean()),
            "adversarial": float(adversarial),
        }

    def _starts(self, y: Tensor) -> Tensor:
        """Gold for about as many examples as `from_gold` says, zero for the others."""
        zero = self.models.space.project(torch.zeros_like(y))
        golden = self._chance(y.shape[:1]) < self._method.from_gold
        return torch.where(golden.reshape(-1, *[1] * (y.ndim - 1)), y, zero)

    def _chance(self, shape: Any) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)
