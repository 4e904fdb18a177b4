"""Comparing methods: the same data, models, settings and seeds for each, one table for all."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from structured._atomic import write_json
from structured.comparison import TEST, ComparedRun, Comparison
from structured.data.multilabel import MultiLabelData
from structured.errors import CheckpointError
from structured.evaluation import VALIDATION, Evaluation, evaluate, with_joint
from structured.methods import Method, to_dict
from structured.models import ModelConfig
from structured.train_config import TrainConfig
from structured.training import RunResult, train

COMPARISON = "comparison.json"
"""The file of the results, in the folder of the comparison."""
EVALUATION = "evaluation.json"
"""The scores of one run, in its folder."""

OnRun: TypeAlias = Callable[[ComparedRun, RunResult, Path | None], None]


def compare(
    methods: Mapping[str, Method],
    training: MultiLabelData,
    validation: MultiLabelData,
    test: MultiLabelData,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    config: TrainConfig | None = None,
    model: ModelConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    command: str = "",
    progress: bool | None = None,
    on_run: OnRun | None = None,
) -> Comparison:
    """Train every method with every seed, and score all under the four decoders.

    The methods share the network's sizes and initial weights, the order of the rows, the settings
    and the validation part, which alone chooses epochs and fits decoders.

    Args:
        methods: label -> method; the first is the baseline.
        training: what to learn from.
        validation: what stops training, chooses the weights and fits the decoders.
        test: what is reported, once per run.
        seeds: of the runs; at least one.
        config: the settings; its seed is replaced by each of `seeds`.
        model: sizes of the models.
        folder: for one folder per run and for `COMPARISON`, written anew after every run; None
            writes nothing.
        resume: go on in `folder`: finished runs are not repeated, others resume where they were.
        command: what repeats the comparison, to be printed under the table.
        progress: show a bar per run; None (default) does on a terminal and nowhere else.
        on_run: called after each run with its record, its result and its folder.

    Raises:
        CheckpointError: if `folder` holds a comparison already and `resume` is False, or runs of
            other methods, settings or data under the same labels.
        ValueError: if there is no method or no seed, or two labels give one folder.

    Example:
        >>> from structured.data import digit_strips
        >>> from structured.methods import CrossEntropy
        >>> parts = digit_strips(64, 16, 16).split("disjoint_images")
        >>> found = compare(
        ...     {"slow": CrossEntropy(lr=1e-5), "fast": CrossEntropy(lr=1e-2)},
        ...     *parts.values(),
        ...     seeds=(0, 1),
        ...     config=TrainConfig(epochs=3, device="cpu"),
        ...     model=ModelConfig(hidden=(16,), dropout=0.0, input_dropout=0.0),
        ... )
        >>> [record["method"] for record in found.summary()], len(found.runs)
        (['slow', 'fast'], 4)
    """
    config, model = config or TrainConfig(), model or ModelConfig()
    names = {label: folder_name(label) for label in methods}
    if not methods or not seeds or len(set(names.values())) != len(names):
        raise ValueError(
            f"methods: found {list(methods)} with the seeds {list(seeds)}, wanted at least one of "
            "each, and labels that differ in letters and digits"
        )
    place = None if folder is None else Path(folder)
    found = Comparison(
        data=training.name,
        split=str(training.meta.get("split", "")),
        sizes={
            "features": training.n_features,
            "labels": training.n_labels,
            "training rows": training.n_rows,
            "validation rows": validation.n_rows,
            "test rows": test.n_rows,
        },
        methods={label: to_dict(method) for label, method in methods.items()},
        model=model.to_dict(),
        training={key: value for key, value in config.to_dict().items() if key != "seed"},
        seeds=tuple(seeds),
        command=command,
        machine=_machine(config),
    )
    _claim(place, resume)
    # Seed by seed, so that a comparison that is interrupted has all methods for the first seeds.
    for seed in seeds:
        for label, method in methods.items():
            run_dir = None if place is None else place / names[label] / f"seed{seed}"
            result = train(
                method,
                training,
                validation,
                replace(config, seed=seed),
                model=model,
                run_dir=run_dir,
                resume=resume and run_dir is not None,
                progress=progress,
            )
            run = _compared(label, result, validation, test)
            found = replace(found, runs=(*found.runs, run))
            if run_dir is not None and place is not None:
                write_json(run_dir / EVALUATION, run.evaluation.to_dict())
                write_json(place / COMPARISON, found.to_dict())
            if on_run is not None:
                on_run(run, result, run_dir)
    return found


def score_run(
    result: RunResult, validation: MultiLabelData, test: MultiLabelData, *, method: str = ""
) -> Evaluation:
    """Score a trained model on validation and test under the four decoders.

    Args:
        result: of the training.
        validation: what the decoders are fitted on.
        test: what is reported.
        method: what the method is called; by default its own name.
    """
    found = evaluate(
        {VALIDATION: result.predict_held_out(validation.X), TEST: result.predict(test.X)},
        {VALIDATION: validation.Y, TEST: test.Y},
        data=validation.name,
        split=str(validation.meta.get("split", "")),
        method=method or result.method.name,
        seed=result.seed,
    )
    return with_joint(
        found,
        result.method,
        result.models,
        {VALIDATION: validation.X, TEST: test.X},
        {VALIDATION: validation.Y, TEST: test.Y},
        held_out=result.selection,
    )


def folder_name(label: str) -> str:
    """Return a label as part of a path: letters, digits, dots and dashes.

    Example:
        >>> folder_name("implicit: margin, T = 2")
        'implicit-margin-T-2'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.") or "method"


def _compared(
    label: str, result: RunResult, validation: MultiLabelData, test: MultiLabelData
) -> ComparedRun:
    last = result.history[-1]["phase"]
    times = zip(result.history, result.seconds, strict=True)
    return ComparedRun(
        method=label,
        seed=result.seed,
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        seconds=sum(result.seconds),
        epoch_seconds=statistics.median(
            seconds for record, seconds in times if record["phase"] == last
        ),
        evaluation=score_run(result, validation, test, method=label),
    )


def _claim(place: Path | None, resume: bool) -> None:
    if place is None or resume or not (place / COMPARISON).exists():
        return
    raise CheckpointError(
        f"{place}: holds a comparison already ({COMPARISON}); resume it, which repeats no finished "
        "run, or choose another folder"
    )


def _machine(config: TrainConfig) -> dict[str, Any]:
    return {
        "device": str(config.torch_device()),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
