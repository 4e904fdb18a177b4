"""Training: models, a method and data in; the weights of the best epoch and the history out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structured._atomic import write_json
from structured._loop import Loop, OnEpoch
from structured.batches import Batches, Rows
from structured.data.multilabel import MultiLabelData
from structured.data.splits import joined, same_columns
from structured.errors import DataError, TrainingError
from structured.evaluation import predict_probabilities
from structured.fingerprint import data_fingerprint
from structured.methods import Learner, Method
from structured.methods import to_dict as method_to_dict
from structured.model_file import save_models, set_weights
from structured.models import ModelConfig, Models
from structured.networks import fit_inputs
from structured.randomness import own_randomness
from structured.run_folder import MODEL, REFIT, RESULT, SELECTION, RunFolder
from structured.train_config import TrainConfig

__all__ = ["RunResult", "TrainConfig", "TrainingError", "describe", "train"]

_log = logging.getLogger(__name__)
_LARGE = 20.0


@dataclass(frozen=True)
class RunResult:
    """A trained model and how it came about.

    Args:
        method: that trained it.
        data: the title of the training data.
        seed: of the run.
        models: with the weights of the best epoch; or, after a refit, of the last epoch of it.
        monitor: what was watched on validation data.
        best_epoch: the epoch, counted from 1, whose weights were best; the last one without
            validation data.
        best_value: what the monitor was then; None without validation data.
        best_phase: what the method did in that epoch.
        stopped: why training ended.
        history: a record per epoch: "epoch", "step", "phase", the means of the figures of its
            steps, and on validation data the three example-F1 and the cross-entropy.
        seconds: of each epoch in `history`, validation included.
        folder: where the run was written, or None.
        selection: after a refit, the models that chose the epoch, which never saw the validation
            rows; else None.
        refit_seconds: of each epoch of the refit.
    """

    method: Method
    data: str
    seed: int
    models: Models
    monitor: str
    best_epoch: int
    best_value: float | None
    best_phase: str
    stopped: str
    history: tuple[dict[str, Any], ...]
    seconds: tuple[float, ...]
    folder: Path | None = None
    selection: Models | None = None
    refit_seconds: tuple[float, ...] = ()

    @property
    def total_seconds(self) -> float:
        """What the whole training took, a refit included."""
        return sum(self.seconds) + sum(self.refit_seconds)

    def predict(self, X: Any) -> Tensor:
        """Return what the method predicts for rows, ``[n, L]`` probabilities, on the CPU.

        Args:
            X: inputs, sparse or dense, ``[n, D]``.
        """
        return predict_probabilities(self.method, self.models, X)

    def predict_held_out(self, X: Any) -> Tensor:
        """Return the same by models that never saw the validation rows: to fit decoders there."""
        return predict_probabilities(self.method, self.selection or self.models, X)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the models as plain JSON values."""
        values = {key: value for key, value in vars(self).items() if key != "models"}
        return values | {
            "method": self.method.name,
            "history": list(self.history),
            "seconds": list(self.seconds),
            "refit_seconds": list(self.refit_seconds),
            "total_seconds": self.total_seconds,
            "folder": None if self.folder is None else str(self.folder),
            "selection": self.selection is not None,
        }


def train(
    method: Method,
    training: MultiLabelData,
    validation: MultiLabelData | None,
    config: TrainConfig | None = None,
    *,
    model: ModelConfig | Models | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train models by a method, and keep the weights of the epoch that was best on validation.

    Args:
        method: how to train.
        training: what to learn from.
        validation: what decides when to stop and which weights to keep. Never the test part. None
            trains for all epochs and keeps the last weights.
        config: the settings; by default ``TrainConfig()``.
        model: sizes of the models, by default ``ModelConfig()``; or models of your own, which are
            then trained in place (and not with ``config.refit``, which has to start anew).
        run_dir: a folder for checkpoints, logs and the result; None writes nothing.
        resume: go on with the run in `run_dir`, where its last checkpoint left it. If there is
            none yet, the run starts; if it is finished, its result is returned.
        progress: show a progress bar; None (default) shows one on a terminal and nowhere else.
        on_epoch: called with the record of each epoch; those of a refit follow, counted anew.

    Returns:
        The models with their best weights, and the history. The caller's random generators are
        left as they were.

    Raises:
        CheckpointError: if `run_dir` holds a run and `resume` is False, or holds another run, or
            another process is training in it, or a checkpoint is damaged or cannot be written.
            Nothing is overwritten.
        DataError: if the two parts differ in features or labels.
        TrainingError: if a figure stops being finite.
        ValueError: if the device is not there, mixed precision does not suit the method, or a refit
            lacks validation data or a `ModelConfig`.

    Example:
        >>> from structured.data import digit_strips
        >>> from structured.methods import CrossEntropy
        >>> parts = digit_strips(64, 16, 16).split("disjoint_images")
        >>> result = train(
        ...     CrossEntropy(),
        ...     parts["train"],
        ...     parts["validation"],
        ...     TrainConfig(epochs=2, device="cpu"),
        ...     model=ModelConfig(hidden=(16,)),
        ... )
        >>> len(result.history), result.stopped
        (2, 'all epochs done')
    """
    config, model = config or TrainConfig(), model or ModelConfig()
    if resume and run_dir is None:
        raise ValueError("resume: found True without run_dir, wanted the folder of the run")
    place = None if run_dir is None else Path(run_dir)
    if config.refit and (validation is None or isinstance(model, Models)):
        raise ValueError(
            "refit: found True without a validation part or with models of your own; wanted a "
            "part to choose the epochs on, and a ModelConfig to start anew from"
        )
    with ExitStack() as locks:  # of the folders, until the last file is written
        once = partial(
            _train_once,
            method,
            model=model,
            locks=locks,
            resume=resume,
            progress=progress,
            on_epoch=on_epoch,
        )
        result = once(training, validation, config, run_dir=place)
        if config.refit and validation is not None:
            final = replace(config, epochs=result.best_epoch, refit=False)
            again = None if place is None else place / REFIT
            refitted = once(joined(training, validation), None, final, refit=True, run_dir=again)
            result = replace(
                result,
                models=refitted.models,
                selection=result.models,
                refit_seconds=refitted.seconds,
            )
        if place is not None:
            _write(result, place, model, training)
    return result


def _train_once(
    method: Method,
    training: MultiLabelData,
    validation: MultiLabelData | None,
    config: TrainConfig,
    *,
    model: ModelConfig | Models,
    refit: bool = False,
    run_dir: Path | None,
    locks: ExitStack,
    resume: bool,
    progress: bool | None,
    on_epoch: OnEpoch | None,
) -> RunResult:
    """One training, from the first step or from a checkpoint to its end."""
    parts = {"training": training} | ({} if validation is None else {"validation": validation})
    _check_parts(parts)
    device = config.torch_device()
    # One stream each: parameters and the first dropout masks must not come from equal numbers.
    seeds = [int(s) for s in np.random.SeedSequence(config.seed).generate_state(4)]
    with own_randomness(seeds[0], device):
        if isinstance(model, ModelConfig):
            models = method.build(training.n_features, training.n_labels, model, seeds[1])
            fit_inputs(filter(None, (models.network, models.energy)), training.X)
            if not (model.standardize or refit):
                _warn_of_scale(training)
        else:
            models = model
        batches = Batches(training.X, training.Y, config.batch_size, seed=seeds[2], device=device)
        learner = method.learner(
            models, steps_per_epoch=batches.steps_per_epoch, seed=seeds[3], device=device
        )
        _check_precision(config, learner)
        watched = None
        if validation is not None:
            gold = Rows(validation.Y).take(np.arange(validation.n_rows))
            watched = (Rows(validation.X, device), gold)
        folder = None
        if run_dir is not None:
            folder = RunFolder(run_dir, describe(method, model, config, parts))
            locks.enter_context(folder.alone())
        loop = Loop(learner, batches, watched, config, folder, on_epoch)
        loop.open(resume)
        # A refit has the epochs of the best one, whatever its phase.
        if not (refit or loop.progress.stopped) and config.epochs <= learner.preparation:
            _log.warning("%s", _unreached(learner, config.epochs))
        loop.run(progress)
    done, best = loop.progress, loop.progress.best
    assert best is not None
    set_weights(models, best.weights)
    return RunResult(
        method=method,
        data=training.title,
        seed=config.seed,
        models=models,
        monitor=config.monitor,
        best_epoch=best.epoch,
        best_value=best.value,
        best_phase=best.phase,
        stopped=done.stopped,
        history=tuple(done.history),
        seconds=tuple(done.seconds),
        folder=None if folder is None else folder.path,
    )


def _write(
    result: RunResult, folder: Path, model: ModelConfig | Models, training: MultiLabelData
) -> None:
    about = {
        "method": method_to_dict(result.method),
        "data": training.title,
        "seed": result.seed,
        "label_names": list(training.label_names),
    }
    config = model if isinstance(model, ModelConfig) else None
    files = {SELECTION: result.selection, MODEL: result.models}
    for name, models in files.items():
        if models is not None:
            sizes = {"features": training.n_features, "labels": training.n_labels}
            save_models(folder / name, models, config, **sizes, method=result.method, about=about)
    if result.selection is None:  # that of an earlier refit is of another training
        (folder / SELECTION).unlink(missing_ok=True)
    write_json(folder / RESULT, result.to_dict())


def _check_parts(parts: Mapping[str, MultiLabelData]) -> None:
    training, validation = parts["training"], parts.get("validation", parts["training"])
    if not same_columns(training, validation):
        raise DataError(
            f"validation: found {validation.n_features} features and {validation.n_labels} labels, "
            f"wanted those of the training part, {training.n_features} and {training.n_labels}, "
            "with the same names"
        )


def _check_precision(config: TrainConfig, learner: Learner) -> None:
    if config.mixed_precision and not learner.mixed_precision:
        raise ValueError(
            f"mixed_precision: found True for {learner.method.name}, which differentiates twice; "
            "in bfloat16 products with the Hessian lose the digits that curvature is made of; "
            "leave it off"
        )


def _warn_of_scale(training: MultiLabelData) -> None:
    largest = float(abs(training.X).max())
    if largest > _LARGE:
        _log.warning(
            "%s: features reach %.3g, which networks learn badly from; standardize them "
            "(ModelConfig.standardize, --standardize)",
            training.title,
            largest,
        )


def _unreached(learner: Learner, epochs: int) -> str:
    return (
        f"{learner.method.name}: its last phase begins after {learner.preparation} epochs, but "
        f"epochs is {epochs}, so that it never runs; take more epochs, or shorten the phases before"
    )


def describe(
    method: Method,
    model: ModelConfig | Models,
    config: TrainConfig,
    parts: Mapping[str, MultiLabelData],
) -> dict[str, Any]:
    """Return what a run's folder says is run there; see `structured.run_folder.RunFolder`.

    Args:
        method: how to train.
        model: sizes of the models; nothing is said of models of your own.
        config: the settings.
        parts: the rows: "training", and "validation" where there are some.
    """
    return {
        "method": method_to_dict(method),
        "model": model.to_dict() if isinstance(model, ModelConfig) else {},
        "training": config.to_dict() | {"device": config.torch_device().type},
        "data": {
            part: {"title": data.title, "rows": data.n_rows, "sha256": data_fingerprint(data)}
            for part, data in parts.items()
        },
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
