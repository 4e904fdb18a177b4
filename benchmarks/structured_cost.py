"""What the implicit method costs: an epoch over one of cross-entropy, prediction over one pass.

Steps are those of the trainer, with the average of the weights it keeps and the sparse rows it
makes dense, on the default models. A round takes so many steps with every method in turn; both the
defaults (a hypergradient on every fourth minibatch) and one on every minibatch are timed.
Prediction by the trained network is set against a bare pass of it and against gradient descent on
the energy in y, as SPEN predicts: 20 steps, the features of x computed once.

    python benchmarks/structured_cost.py
    python benchmarks/structured_cost.py --data digits --repeats 3
"""

from __future__ import annotations

import os
import statistics
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _harness import Contender, arguments, compare, interleave, milliseconds, print_table, save
from torch import Tensor

from structured._loop import Loop
from structured.batches import Batches, Rows
from structured.data import MultiLabelData, load, train_validation_test
from structured.evaluation import predict_probabilities
from structured.inference import projected_gradient
from structured.methods import ContrastiveDivergence, CrossEntropy, Implicit, Margin, Method, Value
from structured.models import ModelConfig, Models, evaluating
from structured.train_config import TrainConfig

SPLITS = {"bibtex": "split3_surrogate", "digits": "disjoint_images"}
BATCH_SIZES = (32, 64, 128)
PRIMARIES = (Margin(), ContrastiveDivergence(), Value())
TARGET = 6.0  # an epoch of the defaults over one of cross-entropy
ROWS = 512  # predicted at once
INFERENCE_STEPS = 20
BASELINE = "cross-entropy"


def data_here() -> str:
    """Bibtex where the folder of data sets has it, else the digits, which need no file."""
    folder = os.environ.get("STRUCTURED_DATA")
    return "bibtex" if folder and Path(folder, "bibtex", "bibtex.npz").exists() else "digits"


def methods() -> dict[str, Method]:
    """The baseline, and each primary loss with hypergradients now and then or always."""
    found: dict[str, Method] = {BASELINE: CrossEntropy()}
    for primary in PRIMARIES:
        for every in (Implicit().outer_every, 1):
            method = Implicit(primary=primary, outer_every=every, pretrain_epochs=1)
            found[f"{primary.name}, every {every}"] = method
    return found


class Steps:
    """So many steps of the trainer a call; those of the implicit method are of its joint phase.

    Attributes:
        solved: of every hypergradient, whether there was a system to solve. There is none while no
            hinge is active, which would make it look cheap.
    """

    def __init__(
        self, method: Method, training: MultiLabelData, batch_size: int, options: Namespace
    ) -> None:
        models = method.build(training.n_features, training.n_labels, ModelConfig(), seed=0)
        batches = Batches(training.X, training.Y, batch_size, device=options.device)
        learner = method.learner(
            models, steps_per_epoch=batches.steps_per_epoch, device=options.device
        )
        config = TrainConfig(batch_size=batch_size, device=options.device)
        self.solved: list[bool] = []
        self._loop, self._count = Loop(learner, batches, None, config), options.steps
        self._rows = endless(batches)
        self()
        learner.end_epoch()  # the end of pretraining, where there is one

    def __call__(self) -> None:
        for _ in range(self._count):
            figures = self._loop._step(*next(self._rows))
            if "implicit_norm" in figures:
                self.solved.append(figures["implicit_norm"] > 0)


def endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Minibatches of one epoch after the other."""
    while True:
        yield from batches


def training_costs(training: MultiLabelData, options: Namespace) -> list[dict[str, Any]]:
    """Every method at every batch size."""
    results = []
    for batch_size in BATCH_SIZES:
        contenders = {
            name: Steps(method, training, batch_size, options) for name, method in methods().items()
        }
        seconds = interleave(dict(contenders), options.repeats, options.device)
        for name, steps in contenders.items():
            results.append(
                {
                    "batch_size": batch_size,
                    "method": name,
                    "solved": statistics.fmean(steps.solved) if steps.solved else None,
                    "default": name.endswith(f"every {Implicit().outer_every}"),
                    "ms_per_step": milliseconds(seconds[name]) / options.steps,
                    **compare(seconds[name], seconds[BASELINE]),
                }
            )
    return results


@torch.no_grad()
def bare_pass(models: Models, X: Any, device: str) -> Tensor:
    """Probabilities of all rows by nothing but the network."""
    with evaluating(models):
        return torch.cat([models.network(x).sigmoid().cpu() for x in Rows(X, device).chunks(ROWS)])


@torch.no_grad()
def descent(models: Models, X: Any, device: str) -> Tensor:
    """Points of low energy for all rows, from the middle of the cube."""
    energy: Any = models.energy
    found = []
    with evaluating(models):
        for x in Rows(X, device).chunks(ROWS):
            features = energy.features(x)
            local = energy.unaries.output(features)
            start = models.space.uniform((len(x),), dtype=x.dtype, device=x.device)
            result = projected_gradient(
                lambda y, local=local: (y * local).sum(dim=-1) + energy.global_(y),
                start,
                models.space,
                steps=INFERENCE_STEPS,
            )
            found.append(result.point.cpu())
    return torch.cat(found)


def prediction_costs(test: MultiLabelData, options: Namespace) -> list[dict[str, Any]]:
    """The implicit method's prediction beside what it stands for and what it spares."""
    method = Implicit()
    models = method.build(test.n_features, test.n_labels, ModelConfig(), seed=0)
    method.learner(models, steps_per_epoch=1, device=options.device)  # moves them to the device
    X = test.dense()[0]
    ours, bare = "implicit method", "bare pass of the network"
    contenders: dict[str, Contender] = {
        ours: lambda: predict_probabilities(method, models, X, batch_size=ROWS),
        bare: lambda: bare_pass(models, X, options.device),
        f"gradient descent, {INFERENCE_STEPS} steps": lambda: descent(models, X, options.device),
    }
    torch.testing.assert_close(contenders[ours](), contenders[bare]())
    seconds = interleave(contenders, 4 * options.repeats, options.device)
    return [
        {
            "prediction": name,
            "rows": test.n_rows,
            "ms": milliseconds(found),
            "over_bare_pass": compare(found, seconds[bare]),
            "over_implicit_method": compare(found, seconds[ours]),
        }
        for name, found in seconds.items()
    ]


def main() -> None:
    """Time, print, save."""
    options = arguments(
        "Time training and prediction by the implicit method.",
        repeats=7,
        own={
            "--data": {"default": data_here(), "choices": list(SPLITS), "help": "the data set"},
            "--steps": {"type": int, "default": 40, "help": "of every method in a round"},
        },
    )
    options.steps += -options.steps % Implicit().outer_every  # as many of each kind in each round
    training, _, test = train_validation_test(load(options.data), SPLITS[options.data])
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        results.append(
            {
                "data": training.title,
                "features": training.n_features,
                "labels": training.n_labels,
                "model": ModelConfig().to_dict(),
                "threads": threads,
                "steps": options.steps,
                "target": TARGET,
                "training": training_costs(training, options),
                "prediction": prediction_costs(test, options),
            }
        )
        show(results[-1])
    save("structured_cost", options, results)


def show(result: dict[str, Any]) -> None:
    """Two tables."""
    print_table(
        f"Training on {result['data']}, {result['threads']} thread(s): milliseconds a step "
        "(medians), and an epoch over one of cross-entropy",
        ["method", "batch", "ms", "ratio", "quartiles", "target", "solved"],
        [
            [
                row["method"],
                str(row["batch_size"]),
                f"{row['ms_per_step']:.2f}",
                f"{row['ratio_of_medians']:.2f}",
                f"{row['ratio_lower_quartile']:.2f}-{row['ratio_upper_quartile']:.2f}",
                f"{result['target']:.0f}" if row["default"] else "",
                "" if row["solved"] is None else f"{row['solved']:.0%}",
            ]
            for row in result["training"]
        ],
    )
    print_table(
        f"Prediction for {result['prediction'][0]['rows']} rows, milliseconds (medians)",
        ["prediction", "ms", "over a bare pass", "over the implicit method"],
        [
            [
                row["prediction"],
                f"{row['ms']:.1f}",
                f"{row['over_bare_pass']['ratio_of_medians']:.2f}",
                f"{row['over_implicit_method']['ratio_of_medians']:.2f}",
            ]
            for row in result["prediction"]
        ],
    )


if __name__ == "__main__":
    main()
