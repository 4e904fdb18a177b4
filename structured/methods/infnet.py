"""Inference networks trained against the energy by turns (Tu & Gimpel 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from structured.methods._alternating import Alternating, AlternatingLearner
from structured.methods._objectives import Minibatch, Objectives, Parameters, fixed, squared_norm
from structured.methods._optimizer import check_count, check_finite, check_rate, check_weights
from structured.methods._staged import Rule, Stage, unaries_of
from structured.methods.base import SearchSpace
from structured.methods.figures import comparison_figures
from structured.methods.primaries import Margin
from structured.methods.registry import register
from structured.models import Models
from structured.sampling import Soft

JOINT, RETUNING = "joint", "retuning"


@register("infnet")
@dataclass(frozen=True)
class InfNet(Alternating):
    """Let a network find the most violated output, and an energy learn from it, by turns.

    After pretraining with cross-entropy the network is cost-augmented, F: it ascends the margin
    ``[Delta(F, y) - E(F) + E(y)]_+``, the energy descends it. Afterwards the same network, now the
    one to predict, A, is retuned: it minimises E(A) alone, the energy fixed. While F learns,
    penalties hold it: ``l2 ||theta||^2 + anchor ||theta - theta_0||^2 + entropy H(F) + ce_weight
    CE(F, y)``, theta_0 the pretrained network.

    The published code has ``energy_start="network"``, so that ``b_i`` is minus the output weights,
    and holds labels by ``anchor=10, entropy=1, ce_weight=0``, which supposes a network that is
    trained to the end beforehand: from there on it hardly moves. By default it is held by
    cross-entropy alone, the penalty the paper takes for tags, and goes on learning.

    *Gradient of the energy:* that of the margin in phi at a fixed F(x), ``dE(y)/dphi - dE(F)/dphi``
    where the hinge is active and nothing elsewhere. *Dropped:* the way phi moves F, that is
    ``dF/dphi``, which is zero for an exact maximiser of the margin; F is a network a few steps
    along, held back by penalties.

    Options that are not listed here, given by name, are those of `Alternating`.

    Args:
        joint_epochs: of network and energy by turns; what follows is retuning, to the end.
        anchor: weight of the squared distance to the pretrained network.
        entropy: weight of the entropy of F(x); above 0 decided outputs are favoured, below 0
            undecided ones (better for tags, in the paper).
        l2: weight of the squared norm of F's parameters.
        ce_weight: weight of cross-entropy for F.
        freeze_features: keep the features f of the energy's local term as pretraining left them.
        network_lr: of Adam on F.
        retune_lr: of Adam in retuning.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = InfNet(pretrain_epochs=0, joint_epochs=1).learner(models, steps_per_epoch=1)
        >>> sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ['active_hinges', 'auxiliary', 'cross_entropy', 'distance', 'energy_gap', 'primary']
        >>> learner.end_epoch()
        >>> learner.phase
        'retuning'

    Reference:
        Tu & Gimpel 2018, Learning Approximate Inference Networks for Structured Prediction.
    """

    search_space: ClassVar[SearchSpace] = {
        **Alternating.search_space,
        "ce_weight": (0.3, 1.0, 3.0),
        "entropy": (0.0, 0.3, 1.0),
    }

    joint_epochs: int = 20
    anchor: float = 0.0
    entropy: float = 0.0
    l2: float = 0.0
    ce_weight: float = 1.0
    freeze_features: bool = True
    retune_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("joint_epochs", self.joint_epochs, 0)
        check_weights(self, "anchor", "l2", "ce_weight")
        check_finite("entropy", self.entropy)
        check_rate("retune_lr", self.retune_lr)
        if self.freeze_features and self.energy_start == "random":
            raise ValueError(
                'freeze_features: found True with energy_start="random", which would keep features '
                "that nothing has learned; wanted freeze_features=False, or another start"
            )

    @property
    def name(self) -> str:
        return "infnet"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        return (
            self.pretraining,
            Stage(JOINT, self.joint_epochs, self.rules),
            Stage(RETUNING, None, {"network": Rule(self.retune_lr)}),
        )

    def objectives(self, models: Models) -> InfNetObjectives:
        """Return what the network and the energy minimise, as functions of their parameters."""
        margin = Objectives(
            models=models,
            primary=Margin(),
            sampler=Soft(),
            cost=self.cost,
            ce_weight=self.ce_weight,
            cost_weight=0.0,
            l2=self.l2,
        )
        return InfNetObjectives(margin, self.entropy, self.anchor)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> InfNetLearner:
        return InfNetLearner(self, models, seed=seed, device=device)


@dataclass(frozen=True, eq=False)
class InfNetObjectives:
    """What is minimised in each stage. Pure: parameters and noise come in as arguments.

    Attributes:
        margin: `outer` is the margin, what the energy descends; it also holds the weights of
            cross-entropy and of the norm.
        entropy: weight of the entropy of F(x).
        anchor: weight of the squared distance to the pretrained network.
    """

    margin: Objectives
    entropy: float
    anchor: float

    def network(
        self, phi: Parameters, theta: Parameters, pretrained: Parameters, batch: Minibatch
    ) -> Tensor:
        """Return minus the margin, plus the penalties: what F descends."""
        found, parts = self.margin.compare_samples(phi, theta, batch), self.margin
        values = -parts.primary.loss(found.gold_energy, found.energies, found.costs)
        if self.entropy:
            values = values + self.entropy * parts.models.space.entropy(found.logits)
        if parts.ce_weight:
            values = values + parts.ce_weight * parts.cross_entropy(found.logits, batch.y)
        total = values.mean()
        if parts.l2:
            total = total + parts.l2 * squared_norm(theta)
        if self.anchor:
            moved = {name: leaf - pretrained[name] for name, leaf in theta.items()}
            total = total + self.anchor * squared_norm(moved)
        return total

    def retuning(self, phi: Parameters, theta: Parameters, batch: Minibatch) -> Tensor:
        """Return E(x, A(x)), mean over the minibatch: what A descends in the end."""
        point = self.margin.models.space.relax(self.margin.logits(theta, batch))
        return self.margin.energies(phi, batch.x, point).mean()


class InfNetLearner(AlternatingLearner):
    """See `InfNet`."""

    def __init__(
        self, method: InfNet, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._objectives = method.objectives(models)
        # The pretrained network, while F is held to it.
        self._kept: dict[str, Tensor] = {}
        self._frozen: set[str] = set()
        if method.freeze_features:
            unaries = unaries_of(self._energy)
            kept = {id(leaf) for leaf in unaries.parameters()}
            kept -= {id(leaf) for leaf in unaries.get_submodule("output").parameters()}
            self._frozen = {name for name, leaf in self._phi.items() if id(leaf) in kept}

    def _enter(self, stage: Stage) -> None:
        super()._enter(stage)
        self._kept = {}
        if stage.name == JOINT:
            self._kept = {name: leaf.detach().clone() for name, leaf in self._theta.items()}

    def _train(self, stage: Stage, x: Tensor, y: Tensor) -> dict[str, float]:
        return self._retune(x, y) if stage.name == RETUNING else super()._train(stage, x, y)

    def _retune(self, x: Tensor, y: Tensor) -> dict[str, float]:
        batch = self._minibatch(x, y)
        value = self._objectives.retuning(fixed(self._phi), self._theta, batch)
        self._descend(value, "network")
        return {"auxiliary": float(value.detach())}

    def _step_network(self, x: Tensor, y: Tensor) -> dict[str, float]:
        batch = self._minibatch(x, y)
        value = self._objectives.network(fixed(self._phi), self._theta, self._kept, batch)
        self._descend(value, "network")
        return {"auxiliary": float(value.detach())}

    def _step_energy(self, x: Tensor, y: Tensor) -> dict[str, float]:
        margin, batch, theta = self._objectives.margin, self._minibatch(x, y), fixed(self._theta)
        phi = {
            name: leaf.detach() if name in self._frozen else leaf
            for name, leaf in self._phi.items()
        }
        found = margin.compare_samples(phi, theta, batch)
        loss = margin.primary.loss(found.gold_energy, found.energies, found.costs).mean()
        self._descend(loss, "energy")
        moved = {name: leaf - self._kept[name] for name, leaf in theta.items()}
        return {
            "primary": float(loss.detach()),
            "cross_entropy": float(margin.cross_entropy(found.logits, batch.y).mean()),
            "distance": float(squared_norm(moved).sqrt()),
            **comparison_figures(found),
        }

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), "kept": self._kept}

    def _load_progress(self, state: dict[str, Any]) -> None:
        super()._load_progress(state)
        self._kept = {name: value.to(self.device) for name, value in state["kept"].items()}
