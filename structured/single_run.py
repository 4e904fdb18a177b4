"""One run of a comparison, a trial of its search or a seed: training, scores and times."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from structured._atomic import write_json
from structured.comparison import TEST, ComparedRun
from structured.control import with_shuffled_labels
from structured.data.multilabel import MultiLabelData
from structured.errors import CheckpointError, TrainingError
from structured.evaluation import VALIDATION, Evaluation, evaluate, with_joint
from structured.fingerprint import data_fingerprint
from structured.methods import Method
from structured.models import ModelConfig
from structured.run_folder import CHECKPOINT, DESCRIPTION, MODEL, RunFolder
from structured.search import Trial, searched_options
from structured.train_config import TrainConfig
from structured.training import RunResult, describe, train

EVALUATION = "evaluation.json"
"""The scores of one run, in its folder."""
COMPARED = "compared.json"
"""The record of one run in the comparison, in its folder: scores and times."""

_PASSES = 3


@dataclass(frozen=True)
class Shared:
    """What all runs of a comparison have in common.

    Args:
        training: what to learn from.
        validation: what stops training, chooses weights and options, and fits the decoders.
        test: what is reported.
        config: the settings, but for the seed.
        model: sizes of the models.
        progress: show a bar per run; see `structured.progress.ProgressBar`.
    """

    training: MultiLabelData
    validation: MultiLabelData
    test: MultiLabelData
    config: TrainConfig
    model: ModelConfig
    progress: bool | None = None


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        label: of the method in the comparison.
        method: with its options.
        seed: of the run.
        folder: of the run.
        resume: go on with what is in the folder.
        control: learn from shuffled labels, and do not refit on validation rows, whose labels are
            right.
        trial: its number in the method's search, whose trials are neither refitted nor scored on
            test; None for a run that is reported.
        begun: the folder of the trial that this run is: it is moved to `folder`, and what a refit
            and scores need is added.
    """

    label: str
    method: Method
    seed: int
    folder: Path
    resume: bool = False
    control: bool = False
    trial: int | None = None
    begun: Path | None = None

    def __str__(self) -> str:
        trial = "" if self.trial is None else f", trial {self.trial}"
        return f"{self.label}, seed {self.seed}{trial}"


@dataclass(frozen=True)
class Failure:
    """A run whose training diverged.

    Args:
        reason: what happened, in a line that names method and seed.
    """

    reason: str


def carry_out(shared: Shared, run: Run) -> Trial | ComparedRun | Failure:
    """Train, and unless the run is a trial, score it; all of it goes to the run's folder.

    Raises:
        Exception: what training raised, but for divergence, with the run named in the message.
    """
    begun = time.monotonic()
    try:
        result = _train(shared, run)
    except TrainingError as error:
        if run.trial is None:
            return Failure(f"{run}: {error}")
        options = searched_options(run.method)
        return Trial(run.label, run.trial, options, None, None, time.monotonic() - begun)
    except Exception as error:
        if error.args == (str(error),):
            error.args = (f"{run}: {error}",)
        else:
            error.add_note(str(run))
        raise
    if run.trial is None:
        return _scored(shared, run, result)
    return Trial(
        run.label,
        run.trial,
        searched_options(run.method),
        result.best_value,
        result.best_epoch,
        result.total_seconds,
    )


def is_kept(shared: Shared, trial: Run, folders: Sequence[Path]) -> bool:
    """Whether the folder of a finished trial is still there.

    Args:
        shared: by all runs.
        trial: as it would be carried out now.
        folders: where it may be; the first that is there counts.

    Raises:
        CheckpointError: if what is there is another training: of another method, other rows, ...
    """
    held = [folder for folder in folders if (folder / DESCRIPTION).exists()]
    if not held:
        return False
    training, config = _task(shared, trial)
    parts = {"training": training, "validation": shared.validation}
    try:
        RunFolder(held[0], describe(trial.method, shared.model, config, parts)).check()
    except CheckpointError as error:
        raise CheckpointError(
            f"{trial}: {error}; give back what it was, or choose another label or folder"
        ) from error
    return True


def forget(folder: Path) -> None:
    """Remove the large files of a trial that another one has beaten."""
    for name in (CHECKPOINT, MODEL):
        (folder / name).unlink(missing_ok=True)


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


def _train(shared: Shared, run: Run) -> RunResult:
    resume = run.resume
    if run.begun is not None and run.begun.exists() and not run.folder.exists():
        os.replace(run.begun, run.folder)
        resume = True
    training, config = _task(shared, run)
    return train(
        run.method,
        training,
        shared.validation,
        config,
        model=shared.model,
        run_dir=run.folder,
        resume=resume,
        progress=shared.progress,
    )


def _task(shared: Shared, run: Run) -> tuple[MultiLabelData, TrainConfig]:
    """What a run learns from, and its settings."""
    training, config = shared.training, replace(shared.config, seed=run.seed)
    if run.control:
        training = with_shuffled_labels(training, run.seed)
    if run.control or run.trial is not None:
        config = replace(config, refit=False)
    return training, config


def _scored(shared: Shared, run: Run, result: RunResult) -> ComparedRun:
    """The record of a finished run: as it was written, if it is of this very training."""
    file = run.folder / COMPARED
    mark = {
        "label": run.label,
        "seconds": result.total_seconds,
        "refit": result.selection is not None,
        "test": data_fingerprint(shared.test),
    }
    if run.resume and file.exists():
        written = _read(file)
        if written.get("mark") == mark:
            return ComparedRun.from_dict(written["run"])
    last = result.history[-1]["phase"]
    times = zip(result.history, result.seconds, strict=True)
    found = ComparedRun(
        method=run.label,
        seed=result.seed,
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        seconds=result.total_seconds,
        epoch_seconds=statistics.median(
            seconds for record, seconds in times if record["phase"] == last
        ),
        evaluation=score_run(result, shared.validation, shared.test, method=run.label),
        predict_seconds=_predict_seconds(result, shared.test),
        earlier_phase="" if result.best_phase == last else result.best_phase,
    )
    write_json(run.folder / EVALUATION, found.evaluation.to_dict())
    write_json(file, {"mark": mark, "run": found.to_dict()})
    return found


def _predict_seconds(result: RunResult, test: MultiLabelData) -> float:
    """What predicting a thousand rows takes: the median of a few passes over the test part."""
    passes = []
    for _ in range(_PASSES):
        begun = time.perf_counter()
        result.predict(test.X)
        passes.append(time.perf_counter() - begun)
    return 1000 * statistics.median(passes) / test.n_rows


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except ValueError:  # damaged: scored anew
        return {}
