"""What methods share that pretrain a network, and then move it and an energy by turns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structured import costs
from structured.methods._objectives import Cost
from structured.methods._optimizer import check_count, check_rate, check_weights
from structured.methods._parts import check_cost
from structured.methods._staged import (
    EnergyStart,
    Rule,
    Stage,
    StagedLearner,
    check_start,
    pretraining,
)
from structured.methods.base import Method, SearchSpace
from structured.models import Models


@dataclass(frozen=True, kw_only=True)
class Alternating(Method):
    """A method whose network and energy, after pretraining, move by turns on each minibatch.

    Its options are given by name, after those of the method itself. Where a method says more of
    one of them in its own docstring, that holds.

    Args:
        pretrain_epochs: of the network with cross-entropy.
        pretrain_lr: of Adam in pretraining.
        energy_start: "cross_entropy" (default) pretrains the energy's local term as a classifier
            beside the network; "network" makes it minus the pretrained logits and wants equal
            sizes; "random" leaves it.
        network_steps: steps on the network for one on the energy, on each minibatch.
        network_lr: of Adam on the network afterwards.
        energy_lr: of Adam on the energy.
        energy_weight_decay: decoupled, of Adam on the energy.
        cost: Delta, one of `structured.costs` or a function like them.

    Raises:
        ValueError: if an option does not fit.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "network_lr": (3e-4, 1e-3, 3e-3),
        "energy_lr": (3e-4, 1e-3, 3e-3),
    }

    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    energy_start: EnergyStart = "cross_entropy"
    network_steps: int = 1
    network_lr: float = 1e-3
    energy_lr: float = 1e-3
    energy_weight_decay: float = 0.0
    cost: Cost = costs.soft_f1

    def __post_init__(self) -> None:
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        check_count("network_steps", self.network_steps, 1)
        for name in ("pretrain_lr", "network_lr", "energy_lr"):
            check_rate(name, getattr(self, name))
        check_weights(self, "energy_weight_decay")
        check_start(self.energy_start)
        check_cost(self.cost)

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when: `pretraining` first, then stages of `rules`."""

    @property
    def pretraining(self) -> Stage:
        """The first stage."""
        return pretraining(self.pretrain_epochs, self.pretrain_lr, self.energy_start)

    @property
    def rules(self) -> dict[str, Rule]:
        """How "network" and "energy" move when they move by turns."""
        return {
            "network": Rule(self.network_lr),
            "energy": Rule(self.energy_lr, self.energy_weight_decay),
        }


class AlternatingLearner(StagedLearner):
    """A learner of an `Alternating` method: steps on the network, and then one on the energy.

    A method with another order has a `_train` of its own.
    """

    def __init__(
        self, method: Alternating, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(
            method,
            models,
            method.stages,
            energy_start=method.energy_start,
            seed=seed,
            device=device,
        )
        self._network_steps = method.network_steps

    @abstractmethod
    def _step_network(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Take one step on the network, the energy fixed, and return its figures."""

    @abstractmethod
    def _step_energy(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Take one step on the energy, the network fixed, and return its figures."""

    def _train(self, stage: Stage, x: Tensor, y: Tensor) -> dict[str, float]:
        figures: dict[str, float] = {}
        for _ in range(self._network_steps):
            figures = self._step_network(x, y)
        return figures | self._step_energy(x, y)
