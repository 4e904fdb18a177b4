"""What methods share that move a network and an energy in turn, each with the other held fixed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from structured.energies import unaries_from_network
from structured.methods._objectives import Compared, Minibatch, Parameters, draw_masks
from structured.methods._optimizer import check_rate, descend, make_optimizer
from structured.methods.base import Learner, Method
from structured.models import Models

EnergyStart = Literal["network", "cross_entropy", "random"]
PRETRAINING = "pretraining"

Optimizers = dict[str, torch.optim.Optimizer]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: found {value!r}, wanted one of {', '.join(choices)}")


def check_start(start: str) -> None:
    """Raise ValueError unless `start` is one of `EnergyStart`."""
    check_choice("energy_start", start, get_args(EnergyStart))


def check_weights(method: Method, *names: str) -> None:
    """Raise ValueError unless these options of a method are finite numbers of at least 0."""
    for name in names:
        check_rate(name, getattr(method, name), zero=True)


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number, of either sign."""
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: found {value!r}, wanted a finite number")


def energy_of(models: Models) -> nn.Module:
    """Return the energy, or raise ValueError if there is none."""
    if models.energy is None:
        raise ValueError("models: found no energy, wanted one; this method trains it")
    return models.energy


def fixed(parameters: Parameters) -> dict[str, Tensor]:
    """Return the same parameters with no gradient passing to them."""
    return {name: leaf.detach() for name, leaf in parameters.items()}


def squared_norm(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the squares of all entries, 0-d."""
    return torch.stack([leaf.square().sum() for leaf in parameters.values()]).sum()


def comparison_figures(found: Compared) -> dict[str, float]:
    """Return "energy_gap" and "active_hinges" as `structured.methods.figures` defines them."""
    gap = (found.energies - found.gold_energy).detach()
    active = (found.costs.detach() > gap).to(gap.dtype)
    return {"energy_gap": float(gap.mean()), "active_hinges": float(active.mean())}


class AlternatingLearner(Learner):
    """A run in stages: the network's pretraining with cross-entropy, then those of a subclass.

    Each stage has optimizers of its own, made when its first minibatch comes.

    Args:
        method: whose run it is.
        models: what is trained.
        stages: each stage's name and how many epochs it has; the last one has no end, whatever is
            said. The first is the pretraining, maybe of no epochs.
        energy_start: "random" leaves the energy as it is; "cross_entropy" trains its local term as
            a classifier beside the network; "network" makes it minus the pretrained logits.
        pretrain_lr: of Adam in pretraining.
        seed: of all noise.
        device: where the parameters and the minibatches are.
    """

    def __init__(
        self,
        method: Method,
        models: Models,
        *,
        stages: Sequence[tuple[str, int]],
        energy_start: EnergyStart,
        pretrain_lr: float,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._energy = energy_of(models)
        super().__init__(method, models, seed=seed, device=device)
        self._stages, self._start, self._pretrain_lr = tuple(stages), energy_start, pretrain_lr
        self._phi = dict(self._energy.named_parameters())
        self._theta = dict(models.network.named_parameters())
        if energy_start == "cross_entropy":
            unaries_of(self._energy)
        # The stage begun last, what moves in it, and what was put aside when it began.
        self._begun, self._optimizers = "", cast(Optimizers, {})
        self._kept: dict[str, Tensor] = {}

    @property
    def phase(self) -> str:
        return self._stage()

    @property
    def preparation(self) -> int:
        return sum(epochs for _, epochs in self._stages[:-1])

    @property
    def notice(self) -> str:
        return ""

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        stage = self._stage()
        if stage != self._begun:
            self._enter(stage)
            self._open(stage)
        return self._pretrain(x, y) if stage == PRETRAINING else self._train(stage, x, y)

    @abstractmethod
    def _train(self, stage: str, x: Tensor, y: Tensor) -> dict[str, float]:
        """Take the steps of one minibatch in a stage after pretraining."""

    @abstractmethod
    def _make_optimizers(self, stage: str) -> Optimizers:
        """Return new optimizers for a stage after pretraining."""

    def _enter(self, stage: str) -> None:
        """Change what has to be changed when a stage begins, once and never again on resuming."""
        first = stage != PRETRAINING and self._begun in ("", PRETRAINING)
        if first and self._start == "network":
            unaries_from_network(cast(Any, self._energy), self.models.network)

    def _stage(self) -> str:
        epoch = self.epoch
        for name, epochs in self._stages[:-1]:
            if epoch < epochs:
                return name
            epoch -= epochs
        return self._stages[-1][0]

    def _open(self, stage: str) -> None:
        self._begun = stage
        if stage != PRETRAINING:
            self._optimizers = self._make_optimizers(stage)
            return
        leaves = list(self.models.network.parameters())
        if self._start == "cross_entropy":
            leaves += unaries_of(self._energy).parameters()
        self._optimizers = {"network": make_optimizer("adam", leaves, self._pretrain_lr)}

    def _pretrain(self, x: Tensor, y: Tensor) -> dict[str, float]:
        space = self.models.space
        loss = -space.log_prob(self._logits(x), y).mean()
        figures = {"cross_entropy": float(loss.detach())}
        if self._start == "cross_entropy":
            local = -space.log_prob(-unaries_of(self._energy)(x), y).mean()
            figures["energy_cross_entropy"] = float(local.detach())
            loss = loss + local
        descend(self._optimizers["network"], loss)
        return figures

    def _logits(self, x: Tensor) -> Tensor:
        """Return the network's logits under new dropout masks, ``[B, *event]``."""
        network = self.models.network
        masks = draw_masks(network, x, self.generator)
        return network(x) if masks is None else network(x, dropout_masks=masks)

    def _minibatch(self, x: Tensor, y: Tensor) -> Minibatch:
        """Return the data with new dropout masks."""
        return Minibatch(x, y, draw_masks(self.models.network, x, self.generator))

    def _progress(self) -> dict[str, Any]:
        states = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"stage": self._begun, "optimizers": states, "kept": self._kept}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._begun, self._optimizers = "", {}
        self._kept = {name: value.to(self.device) for name, value in state["kept"].items()}
        if state["stage"]:
            self._open(state["stage"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def unaries_of(energy: nn.Module) -> nn.Module:
    """Return the network of the energy's local term, or raise ValueError if it has none."""
    unaries = getattr(energy, "unaries", None)
    if not isinstance(unaries, nn.Module):
        raise ValueError(
            f"energy_start: {type(energy).__name__} has no `unaries`, which every choice but "
            '"random" needs; use energy_start="random"'
        )
    return unaries
