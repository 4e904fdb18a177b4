"""Small runs that several files of tests share, and what such a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from structured.methods import CrossEntropy, Learner, Method
from structured.model_file import weights_of
from structured.models import Models, build_models
from structured.train_config import TrainConfig
from structured.training import RunResult, train
from tests.structured import _killed_run as program

TRAINING, VALIDATION = program.parts()
MODEL, CONFIG, METHODS = program.MODEL, program.CONFIG, program.METHODS
STEPS = 3  # in an epoch
QUICK = replace(CONFIG, epochs=3, checkpoint_seconds=1e9, log_steps=False)

# Runs with a refit: with these rates the third of four epochs is the best.
REFIT = replace(QUICK, epochs=4, average=0.5, monitor="cross_entropy", refit=True)
BEST = 3
REFIT_STEPS = 5  # in an epoch on both parts
FAST = CrossEntropy(lr=0.3)
FAST_IMPLICIT = replace(program.IMPLICIT, pretrain_lr=0.2, inner_lr=0.2)


def run(method: Method | None = None, config: TrainConfig = QUICK, **options: Any) -> RunResult:
    """Train on the digits of all these tests."""
    options = {"model": MODEL, **options}
    return train(method or CrossEntropy(), TRAINING, VALIDATION, config, **options)


def models() -> Models:
    return build_models(TRAINING.n_features, TRAINING.n_labels, MODEL, seed=0)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for what it says about time and place."""
    names = ("log.csv", "steps.csv", "model.safetensors", "selection.safetensors")
    files = [folder / part / name for part in ("", "refit") for name in names]
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files if file.exists()}
    result = json.loads((folder / "result.json").read_text())
    for name in ("seconds", "refit_seconds", "total_seconds", "folder"):
        del result[name]
    return {**found, "result": result}


def epochs_of(log: Path) -> int:
    """How many epochs a log has."""
    return len(log.read_text().splitlines()) - 1


def same_weights(first: Models, second: Models) -> bool:
    """Whether two models are equal to the last bit."""
    a, b = weights_of(first), weights_of(second)
    return a.keys() == b.keys() and all(
        a[part].keys() == b[part].keys() and all(a[part][k].equal(b[part][k]) for k in a[part])
        for part in a
    )


class Killed(BaseException):
    """Stands for a kill, where a process of its own would be too slow."""


@contextmanager
def killed_in_step(method: Method, number: int) -> Iterator[None]:
    """Within the block the n-th step of this method's learner is the end, which must come."""
    learner = type(method.learner(models(), steps_per_epoch=STEPS))
    original, calls = learner.step, 0

    def step(self: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return original(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "step", step)
        with pytest.raises(Killed):
            yield
