"""A small separable problem, its control, and short runs of a learner on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structured.decoding import TunedThreshold
from structured.methods import Learner, Method
from structured.metrics import example_f1
from structured.models import ModelConfig, Models

FEATURES, LABELS = 6, 4
STEPS = 4
CONFIG = ModelConfig(hidden=(16,), dropout=0.1, input_dropout=0.0, energy_hidden=(8,))


def separable(rows: int = 128, seed: int = 0, *, shuffled: bool = False) -> tuple[Tensor, Tensor]:
    """Labels that lie on one side of a plane each; or the same labels in another order."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(FEATURES, LABELS, generator=torch.Generator().manual_seed(100))
    x = torch.randn(rows, FEATURES, generator=generator)
    y = (x @ planes > 0.5).float()
    return x, y[torch.randperm(rows, generator=generator)] if shuffled else y


def start(method: Method, *, seed: int = 1, double: bool = False) -> Learner:
    models = method.build(FEATURES, LABELS, CONFIG, 0)
    if double:
        models = as_double(models)
    return method.learner(models, steps_per_epoch=STEPS, seed=seed)


def as_double(models: Models) -> Models:
    assert models.energy is not None
    return Models(models.space, models.network.double(), models.energy.double())


def run(learner: Learner, epochs: int, seed: int = 0, **data: Any) -> list[dict[str, float]]:
    """The figures of all steps on minibatches of a quarter of the rows."""
    x, y = separable(seed=seed, **data)
    batches = list(zip(x.chunk(STEPS), y.chunk(STEPS), strict=True))
    figures = []
    for _ in range(epochs):
        figures += [learner.step(x, y) for x, y in batches]
        learner.end_epoch()
    return figures


def held_out_f1(learner: Learner) -> float:
    """Example-F1 on rows not trained on, under a threshold tuned on others."""
    (x, y), (x2, y2) = separable(400, seed=50), separable(400, seed=51)
    decoder = TunedThreshold().fit(learner.predict(x), y)
    return example_f1(decoder.decode(learner.predict(x2)), y2)


def same(left: nn.Module | None, right: nn.Module | None) -> bool:
    assert left is not None
    assert right is not None
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def central(function: Any, leaf: Tensor, place: tuple[int, ...], step: float = 1e-5) -> float:
    """The central difference of a function of nothing, as one entry of a parameter moves."""
    with torch.no_grad():
        kept = leaf[place].clone()
        ends = []
        for sign in (1.0, -1.0):
            leaf[place] = kept + sign * step
            ends.append(float(function()))
        leaf[place] = kept
    return (ends[0] - ends[1]) / (2.0 * step)
