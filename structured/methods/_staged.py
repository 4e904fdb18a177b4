"""Learners that train in stages: which modules move, at which rate, for how long."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from structured.methods._objectives import draw_masks
from structured.methods._optimizer import OptimizerName, make_optimizer
from structured.methods.base import Learner, Method
from structured.models import Models

PRETRAINING = "pretraining"
"""The stage that trains the network alone, with cross-entropy."""


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: the phase that users see.
        epochs: how long; None for the last stage, which has no end.
        moves: what is trained: "network", "energy" or both. The rest stays as it is.
        rate: the learning rate.
        optimizer: "adam" or "sgd", begun anew with the stage.
        weight_decay: of that optimizer.
    """

    name: str
    epochs: int | None
    moves: tuple[str, ...]
    rate: float
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0


def pretraining(epochs: int, rate: float) -> Stage:
    """Return the stage that trains the network with cross-entropy."""
    return Stage(PRETRAINING, epochs, ("network",), rate)


class StagedLearner(Learner):
    """A learner that goes through stages, each the descent of one loss; see `_loss`.

    Args:
        method: whose run it is.
        models: what is trained; they need an energy.
        stages: in their order; the last one has no end.
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
        max_norm: float | None = None,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        if models.energy is None:
            raise ValueError("models: found no energy, wanted one; this method trains it")
        self._stages, self._max_norm = tuple(stages), max_norm
        self._notice = ""
        self._opened: Stage | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @abstractmethod
    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return what all stages but pretraining descend, 0-d, and its figures."""

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
        if self._opened is not stage:
            self._open(stage)
        optimizer = self._optimizer
        assert optimizer is not None
        loss, figures = self._fit(x, y) if stage.name == PRETRAINING else self._loss(x, y)
        leaves = self._leaves(stage)
        # Not backward(): the modules at rest get no gradients, not even ones to be thrown away.
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if self._max_norm is not None and stage.name != PRETRAINING:
            nn.utils.clip_grad_norm_(leaves, self._max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return figures

    def _fit(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = -self.models.space.log_prob(self._logits(x), y).mean()
        return loss, {"cross_entropy": float(loss.detach())}

    def _logits(self, x: Tensor) -> Tensor:
        """Return the network's logits under new dropout, without a graph if it is at rest."""
        network = self.models.network
        masks = draw_masks(network, x, self.generator)
        with nullcontext() if "network" in self._stage.moves else torch.no_grad():
            return network(x) if masks is None else network(x, dropout_masks=masks)

    @property
    def _stage(self) -> Stage:
        end = 0
        for stage in self._stages[:-1]:
            end += stage.epochs or 0
            if self.epoch < end:
                return stage
        return self._stages[-1]

    def _leaves(self, stage: Stage) -> list[nn.Parameter]:
        modules = self._modules()
        return [leaf for part in stage.moves for leaf in modules[part].parameters()]

    def _open(self, stage: Stage) -> None:
        self._optimizer = make_optimizer(
            stage.optimizer, self._leaves(stage), stage.rate, stage.weight_decay
        )
        self._opened = stage

    def _progress(self) -> dict[str, Any]:
        if self._opened is None or self._optimizer is None:
            return {"stage": ""}
        return {"stage": self._opened.name, "optimizer": self._optimizer.state_dict()}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._notice = ""
        self._opened = self._optimizer = None
        if state["stage"]:
            opened = {stage.name: stage for stage in self._stages}[state["stage"]]
            self._open(opened)
            assert self._optimizer is not None
            self._optimizer.load_state_dict(state["optimizer"])
