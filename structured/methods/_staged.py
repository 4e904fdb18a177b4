"""Learners that train in stages: which parts move, at which rates, for how long."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from structured.energies import unaries_from_network
from structured.methods._objectives import (
    Minibatch,
    draw_masks,
    pretraining_loss,
    trained_energy,
    training_logits,
)
from structured.methods._optimizer import OptimizerName, check_choice, make_optimizer
from structured.methods.base import Learner, Method
from structured.models import Models

PRETRAINING = "pretraining"
"""The stage that trains the network with cross-entropy."""

EnergyStart = Literal["network", "cross_entropy", "random"]
"""How the energy's local term starts: minus the pretrained logits, as a classifier trained beside
the network, or as it is."""


def check_start(start: str) -> None:
    """Raise ValueError unless `start` is one of `EnergyStart`."""
    check_choice("energy_start", start, get_args(EnergyStart))


@dataclass(frozen=True)
class Rule:
    """How a part moves, from the beginning of its stage on.

    Attributes:
        rate: the learning rate.
        weight_decay: of the optimizer.
        optimizer: "adam" or "sgd".
    """

    rate: float
    weight_decay: float = 0.0
    optimizer: OptimizerName = "adam"


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: the phase that users see.
        epochs: how long; None for the last stage, which has no end.
        moves: what is trained, "network", "energy" or another of the learner's modules, and how.
            The rest stays as it is.
    """

    name: str
    epochs: int | None
    moves: Mapping[str, Rule]


def pretraining(epochs: int, rate: float, energy_start: EnergyStart = "random") -> Stage:
    """Return the stage that trains the network, and maybe the energy's local term beside it."""
    parts = ("network", "energy") if energy_start == "cross_entropy" else ("network",)
    return Stage(PRETRAINING, epochs, {part: Rule(rate) for part in parts})


class StagedLearner(Learner):
    """A learner that goes through stages, each with optimizers of its own.

    They are made when the first minibatch of a stage comes, one for each part that moves.

    Args:
        method: whose run it is.
        models: what is trained; they need an energy.
        stages: in their order; the last one has no end.
        energy_start: what becomes of the energy's local term in `pretraining`, or after it.
        max_norm: clip the norm of the gradient of all that moves, but not in pretraining, which is
            the training of `CrossEntropy` step for step; None does not.
        seed: of all noise.
        device: where the parameters and the minibatches are.
    """

    def __init__(
        self,
        method: Method,
        models: Models,
        stages: Sequence[Stage],
        *,
        energy_start: EnergyStart = "random",
        max_norm: float | None = None,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._energy = trained_energy(models)
        super().__init__(method, models, seed=seed, device=device)
        self._stages, self._start, self._max_norm = tuple(stages), energy_start, max_norm
        self._phi = dict(self._energy.named_parameters())
        self._theta = dict(models.network.named_parameters())
        self._unaries = unaries_of(self._energy) if energy_start == "cross_entropy" else None
        self._notice = ""
        # The stage begun last, and what moves in it.
        self._begun = ""
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def _train(self, stage: Stage, x: Tensor, y: Tensor) -> dict[str, float]:
        """Take the steps of one minibatch in a stage after pretraining."""

    @property
    def phase(self) -> str:
        return self._stage.name

    @property
    def preparation(self) -> int:
        return sum(stage.epochs or 0 for stage in self._stages[:-1])

    @property
    def notice(self) -> str:
        return self._notice

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        stage, self._notice = self._stage, ""
        if stage.name != self._begun:
            self._enter(stage)
            self._open(stage)
        return self._pretrain(x, y) if stage.name == PRETRAINING else self._train(stage, x, y)

    def _enter(self, stage: Stage) -> None:
        """Change what has to be changed when a stage begins, once and never again on resuming."""
        first = stage.name != PRETRAINING and self._begun in ("", PRETRAINING)
        if first and self._start == "network":
            unaries_from_network(cast(Any, self._energy), self.models.network)

    def _pretrain(self, x: Tensor, y: Tensor) -> dict[str, float]:
        logits, unaries = self._logits(x), self._unaries
        local = None if unaries is None else unaries(x)
        loss, figures = pretraining_loss(self.models.space, logits, local, y)
        self._descend(loss, *self._stage.moves)
        return figures

    def _descend(self, loss: Tensor, *parts: str) -> None:
        """Take one step of these parts down a 0-d tensor; no gradient is left in any."""
        modules = self._modules()
        leaves = [leaf for part in parts for leaf in modules[part].parameters()]
        # The modules at rest get no gradients, not even ones to be thrown away.
        loss.backward(inputs=leaves)
        if self._max_norm is not None and self._begun != PRETRAINING:
            nn.utils.clip_grad_norm_(leaves, self._max_norm)
        for part in parts:
            self._optimizers[part].step()
            self._optimizers[part].zero_grad(set_to_none=True)

    def _logits(self, x: Tensor) -> Tensor:
        """Return the network's logits under new dropout, without a graph if it is at rest."""
        with nullcontext() if "network" in self._stage.moves else torch.no_grad():
            return training_logits(self.models.network, x, self.generator)

    def _minibatch(self, x: Tensor, y: Tensor) -> Minibatch:
        """Return the data with new dropout masks."""
        return Minibatch(x, y, draw_masks(self.models.network, x, self.generator))

    @property
    def _stage(self) -> Stage:
        end = 0
        for stage in self._stages[:-1]:
            end += stage.epochs or 0
            if self.epoch < end:
                return stage
        return self._stages[-1]

    def _open(self, stage: Stage) -> None:
        modules = self._modules()
        self._begun = stage.name
        self._optimizers = {
            part: make_optimizer(
                rule.optimizer, modules[part].parameters(), rule.rate, rule.weight_decay
            )
            for part, rule in stage.moves.items()
        }

    def _progress(self) -> dict[str, Any]:
        states = {part: optimizer.state_dict() for part, optimizer in self._optimizers.items()}
        return {"stage": self._begun, "optimizers": states}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._notice, self._begun, self._optimizers = "", "", {}
        if state["stage"]:
            self._open({stage.name: stage for stage in self._stages}[state["stage"]])
        for part, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])


class DescentLearner(StagedLearner):
    """A learner whose stages after pretraining all descend one loss, see `_loss`."""

    @abstractmethod
    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return what is descended, 0-d, and its figures."""

    def _train(self, stage: Stage, x: Tensor, y: Tensor) -> dict[str, float]:
        loss, figures = self._loss(x, y)
        self._descend(loss, *stage.moves)
        return figures


def unaries_of(energy: nn.Module) -> nn.Module:
    """Return the network of the energy's local term, or raise ValueError if it has none."""
    unaries = getattr(energy, "unaries", None)
    if not isinstance(unaries, nn.Module):
        raise ValueError(
            f"energy_start: {type(energy).__name__} has no `unaries`, which every choice but "
            '"random" needs; use energy_start="random"'
        )
    return unaries
