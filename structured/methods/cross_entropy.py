"""The baseline every table needs: the same network, trained with cross-entropy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from structured.methods._objectives import training_logits
from structured.methods._optimizer import check_rate, descend, make_optimizer
from structured.methods.base import Learner, Method, SearchSpace
from structured.methods.registry import register
from structured.models import Models


@register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(Method):
    """Train the network with cross-entropy, summed over labels (the paper's MBCE).

    Args:
        lr: learning rate of Adam.
        weight_decay: of Adam, decoupled from the gradient.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = CrossEntropy().learner(models, steps_per_epoch=10)
        >>> sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ['cross_entropy']
    """

    search_space: ClassVar[SearchSpace] = {
        "lr": (3e-4, 1e-3, 3e-3),
        "weight_decay": (0.0, 1e-2, 1e-1),
    }

    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_rate("lr", self.lr)
        check_rate("weight_decay", self.weight_decay, zero=True)

    @property
    def name(self) -> str:
        return "cross-entropy"

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> CrossEntropyLearner:
        return CrossEntropyLearner(self, models, seed=seed, device=device)


class CrossEntropyLearner(Learner):
    """See `CrossEntropy`."""

    mixed_precision: ClassVar[bool] = True

    def __init__(
        self, method: CrossEntropy, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._optimizer = make_optimizer(
            "adam", models.network.parameters(), method.lr, method.weight_decay
        )

    @property
    def phase(self) -> str:
        return "cross-entropy"

    @property
    def preparation(self) -> int:
        return 0

    @property
    def notice(self) -> str:
        return ""

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        logits = training_logits(self.models.network, x, self.generator)
        loss = -self.models.space.log_prob(logits, y).mean()
        descend(self._optimizer, loss)
        return {"cross_entropy": float(loss.detach())}

    def _progress(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
