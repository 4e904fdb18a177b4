"""What each method of the family costs: a step of training, and predicting.

Every method of ``structured compare --methods all`` trains at its defaults in turn, in one process:
so many minibatches of its last phase in each round. Then each predicts the test rows in turn,
before any decoder: by one pass of a network, or by descending an energy.

    python benchmarks/structured_family.py
    python benchmarks/structured_family.py --data digits --repeats 3
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from _harness import arguments, compare, interleave, milliseconds, print_table, save
from structured_cost import ROWS, SPLITS, data_here, endless

from structured._loop import Loop
from structured.batches import Batches
from structured.commands.specs import parse_method
from structured.data import MultiLabelData, load, train_validation_test
from structured.evaluation import predict_probabilities
from structured.methods import Method
from structured.models import ModelConfig
from structured.presets import ALL_METHODS, setting
from structured.train_config import TrainConfig

REFERENCE = "implicit contrastive"


class Run:
    """A method in its last phase: a call takes so many steps, `predict` predicts.

    Args:
        method: at its defaults.
        training: rows to learn from.
        batch_size: rows of a minibatch.
        options: of the command.
    """

    def __init__(
        self, method: Method, training: MultiLabelData, batch_size: int, options: Namespace
    ) -> None:
        self._method, self._count, self._device = method, options.steps, options.device
        self.models = method.build(training.n_features, training.n_labels, ModelConfig(), seed=0)
        batches = Batches(training.X, training.Y, batch_size, device=options.device)
        learner = method.learner(
            self.models, steps_per_epoch=batches.steps_per_epoch, device=options.device
        )
        config = TrainConfig(batch_size=batch_size, device=options.device)
        self._loop, self._rows = Loop(learner, batches, None, config), endless(batches)
        self()
        for _ in range(learner.preparation):  # of each phase a minibatch, then the last one
            self._loop._step(*next(self._rows))
            learner.end_epoch()

    def __call__(self) -> None:
        for _ in range(self._count):
            self._loop._step(*next(self._rows))

    def predict(self, test: MultiLabelData) -> None:
        """Predict all test rows."""
        predict_probabilities(self._method, self.models, test.X, batch_size=ROWS)


def measure(options: Namespace, threads: int) -> dict[str, Any]:
    """Time all methods, training and predicting."""
    torch.set_num_threads(threads)
    training, _, test = train_validation_test(load(options.data), SPLITS[options.data])
    batch_size = setting("training", "batch_size", options.data)
    runs = {
        label: Run(parse_method(spec), training, batch_size, options)
        for label, spec in ALL_METHODS.items()
    }
    learning = interleave(dict(runs), options.repeats, options.device)
    predicting = interleave(
        {label: lambda run=run: run.predict(test) for label, run in runs.items()},
        options.repeats,
        options.device,
    )
    rows = [
        {
            "method": label,
            "ms_per_step": milliseconds(learning[label]) / options.steps,
            "step_over_reference": compare(learning[label], learning[REFERENCE]),
            "ms_per_1000_rows": milliseconds(predicting[label]) * 1000 / test.n_rows,
            "prediction_over_reference": compare(predicting[label], predicting[REFERENCE]),
        }
        for label in runs
    ]
    return {
        "data": training.title,
        "batch_size": batch_size,
        "model": ModelConfig().to_dict(),
        "threads": threads,
        "steps": options.steps,
        "reference": REFERENCE,
        "methods": rows,
    }


def main() -> None:
    """Time, print, save."""
    options = arguments(
        "Time training and prediction by every method.",
        repeats=7,
        own={
            "--data": {"default": data_here(), "choices": list(SPLITS), "help": "the data set"},
            "--steps": {"type": int, "default": 12, "help": "of every method in a round"},
        },
    )
    results = [measure(options, threads) for threads in options.threads]
    for result in results:
        print_table(
            f"{result['data']}, batches of {result['batch_size']}, {result['threads']} thread(s): "
            f"medians, and ratios to {REFERENCE!r}",
            ["method", "ms / step", "ratio", "ms / 1000 rows", "ratio"],
            [
                [
                    row["method"],
                    f"{row['ms_per_step']:.1f}",
                    f"{row['step_over_reference']['ratio_of_medians']:.2f}",
                    f"{row['ms_per_1000_rows']:.1f}",
                    f"{row['prediction_over_reference']['ratio_of_medians']:.2f}",
                ]
                for row in result["methods"]
            ],
        )
    save("structured_family", options, results)


if __name__ == "__main__":
    main()
