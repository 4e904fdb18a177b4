"""Inference networks for training and for prediction, with the energy (Tu, Pang & Gimpel 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from structured.losses import compound_energy_loss, compound_network_loss
from structured.methods._alternating import Alternating, AlternatingLearner
from structured.methods._augmented import Augmented, Parameterization, augmented
from structured.methods._objectives import Compared, EnergyObjectives, fixed
from structured.methods._optimizer import check_choice, check_weights
from structured.methods._staged import Stage
from structured.methods.base import SearchSpace
from structured.methods.figures import comparison_figures
from structured.methods.registry import register
from structured.models import Models

JOINT = "joint"


@register("infnet_plus")
@dataclass(frozen=True)
class InfNetPlus(Alternating):
    """Train the energy against two networks at once: one that violates margins, one that predicts.

    F, cost-augmented, is needed in training only; A predicts. After pretraining A with
    cross-entropy, by turns, on each minibatch: the energy descends ``[Delta(F, y) - E(F) + E(y)]_+
    + weight [-E(A) + E(y)]_+``, and the networks descend the same terms negated and *not*
    truncated, with a local term, ``-(Delta(F, y) - E(F) + E(y)) - weight (-E(A) + E(y)) +
    ce_weight CE(A, y)``: without hinges they go on learning where the energy is satisfied. No
    penalties and no retuning are needed.

    *Gradient of the energy:* that of both hinges in phi at fixed F(x) and A(x), zero for a term
    whose hinge is inactive. *Dropped:* the ways phi moves F and A, ``dF/dphi`` and ``dA/dphi``.
    They would vanish at networks that maximise the very hinges the energy descends; the truncation
    and cross-entropy make sure these are not the same.

    Options that are not listed here, given by name, are those of `Alternating`.

    Args:
        parameterization: what F shares with A. "separate" (default): nothing. "shared": the body;
            F has a last layer of its own. "stacked": all of A; ``F = sigma(W [A(x); y] + b)``, the
            softmax of it for tags, has a single layer to itself, and costs next to nothing.
        detach: let no gradient of F's term pass to what it shares with A, so that A learns from
            its own terms alone, whatever is shared. False trains what is shared for both.
        weight: lam, of the terms of A.
        ce_weight: tau, of A's cross-entropy.
        network_steps: steps on the networks for one on the energy, on each minibatch.
        pretrain_epochs: of A with cross-entropy; F then begins as A (stacked: decides as A does).
        network_lr: of Adam on F and A.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = InfNetPlus(pretrain_epochs=0).learner(models, steps_per_epoch=10)
        >>> figures = learner.step(torch.randn(2, 4), torch.ones(2, 3))
        >>> sorted(figures)[2:]
        ['cross_entropy', 'energy_gap', 'predicted_gap', 'primary']

    Reference:
        Tu, Pang & Gimpel 2020, Improving Joint Training of Inference Networks and Structured
        Prediction Energy Networks.
    """

    search_space: ClassVar[SearchSpace] = {
        **Alternating.search_space,
        "weight": (0.3, 1.0, 3.0),
        "ce_weight": (0.3, 1.0, 3.0),
    }

    parameterization: Parameterization = "separate"
    detach: bool = True
    weight: float = 1.0
    ce_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("parameterization", self.parameterization, get_args(Parameterization))
        check_weights(self, "weight", "ce_weight")

    @property
    def name(self) -> str:
        return f"infnet+-{self.parameterization}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        moves = self.rules | {"augmented": self.rules["network"]}
        return self.pretraining, Stage(JOINT, None, moves)

    def objectives(self, models: Models) -> CompoundObjectives:
        """Return what networks and energy descend, as functions of what they put out."""
        return CompoundObjectives(models, self.cost, self.weight, self.ce_weight)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> InfNetPlusLearner:
        return InfNetPlusLearner(self, models, seed=seed, device=device)


@dataclass(frozen=True)
class CompoundObjectives(EnergyObjectives):
    """The two compound losses.

    Attributes:
        weight: lam.
        ce_weight: tau.
    """

    weight: float
    ce_weight: float

    def candidates(self, logits: Tensor, augmented_logits: Tensor) -> Tensor:
        """Return what the gold output is compared with, F(x) and A(x), ``[2, B, *event]``."""
        space = self.models.space
        return torch.stack([space.relax(augmented_logits), space.relax(logits)])

    def energy(self, found: Compared) -> Tensor:
        """Return both hinges, mean over the minibatch: what the energy descends."""
        augmented, predicted = found.energies
        cost, _ = found.costs
        return compound_energy_loss(
            found.gold_energy, augmented, predicted, cost, weight=self.weight
        ).mean()

    def networks(self, found: Compared, y: Tensor) -> Tensor:
        """Return what the networks descend, mean over the minibatch."""
        augmented, predicted = found.energies
        cost, _ = found.costs
        return compound_network_loss(
            found.gold_energy,
            augmented,
            predicted,
            cost,
            -self.models.space.log_prob(found.logits, y),
            weight=self.weight,
            cross_entropy_weight=self.ce_weight,
        ).mean()


class InfNetPlusLearner(AlternatingLearner):
    """See `InfNetPlus`."""

    def __init__(
        self, method: InfNetPlus, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        self._augmented: Augmented = augmented(
            method.parameterization, models.network, models.space, detach=method.detach
        )
        super().__init__(method, models, seed=seed, device=device)
        self._objectives = method.objectives(models)

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"augmented": self._augmented}

    def _enter(self, stage: Stage) -> None:
        super()._enter(stage)
        if stage.name == JOINT:
            self._augmented.begin(self.models.network)

    def _step_network(self, x: Tensor, y: Tensor) -> dict[str, float]:
        objectives = self._objectives
        found = objectives.compare(fixed(self._phi), x, y, *self._proposals(x, y))
        value = objectives.networks(found, y)
        self._descend(value, "network", "augmented")
        return {"auxiliary": float(value.detach())}

    def _step_energy(self, x: Tensor, y: Tensor) -> dict[str, float]:
        objectives = self._objectives
        with torch.no_grad():
            proposals = self._proposals(x, y)
        found = objectives.compare(self._phi, x, y, *proposals)
        loss = objectives.energy(found)
        self._descend(loss, "energy")
        augmented = Compared(found.logits, found.gold_energy, found.energies[:1], found.costs[:1])
        gap = (found.energies[1] - found.gold_energy).detach()
        return {
            "primary": float(loss.detach()),
            "cross_entropy": float(-self.models.space.log_prob(found.logits, y).mean()),
            "predicted_gap": float(gap.mean()),
            **comparison_figures(augmented),
        }

    def _proposals(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of A, and the candidates."""
        logits, augmented = self._augmented.both(self.models.network, x, y, self.generator)
        return logits, self._objectives.candidates(logits, augmented)
