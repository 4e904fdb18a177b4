"""A method whose validation figures are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from structured.data import MultiLabelData
from structured.methods import Learner, Method
from structured.models import Models
from structured.train_config import TrainConfig
from structured.training import RunResult, train
from tests.structured.runs import MODEL


@dataclass(frozen=True)
class Scripted(Method):
    """Its network is right on a given share of the validation labels in each epoch."""

    values: tuple[float, ...]
    phases: tuple[str, ...]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "scripted"

    def learner(self, models: Models, **options: Any) -> ScriptedLearner:
        return ScriptedLearner(self, models, seed=0, device="cpu")


class ScriptedLearner(Learner):
    mixed_precision: ClassVar[bool] = True
    method: Scripted

    @property
    def phase(self) -> str:
        return self.method.phases[min(self.epoch, len(self.method.phases) - 1)]

    @property
    def preparation(self) -> int:
        return self.method.phases.index(self.method.phases[-1])

    @property
    def notice(self) -> str:
        return self.method.notices[self.epoch] if self.method.notices else ""

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        *others, bias = self.models.network.parameters()
        for leaf in others:
            nn.init.zeros_(leaf)
        nn.init.constant_(bias, _logit(self.method.values[self.epoch]))
        return {"rows": float(len(x)), "epoch_so_far": float(self.epoch)}

    def _progress(self) -> dict[str, Any]:
        return {}

    def _load_progress(self, state: dict[str, Any]) -> None:
        assert state == {}


def _logit(p: float) -> float:
    return math.inf if p == 1.0 else math.log(p / (1.0 - p))


ONE_LABEL = MultiLabelData(X=np.ones((5, 2)), Y=np.ones((5, 1)))


def train_scripted(
    values: Sequence[float], phases: Sequence[str] = ("joint",), **options: Any
) -> RunResult:
    """With one label, always present, the cross-entropy is minus the logarithm of the value."""
    config = TrainConfig(
        epochs=len(values),
        batch_size=2,
        patience=2,
        monitor="cross_entropy",
        average=0.0,
        device="cpu",
    )
    config = replace(config, **options)
    method = Scripted(tuple(values), tuple(phases))
    return train(method, ONE_LABEL, ONE_LABEL, config, model=MODEL)
