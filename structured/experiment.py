"""Comparing methods: the same data, models, settings, search and seeds for each, one table."""

from __future__ import annotations

import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from structured._atomic import write_json
from structured.comparison import ComparedRun, Comparison
from structured.control import CONTROL
from structured.data.multilabel import MultiLabelData
from structured.earlier import COMPARISON, read_earlier, trials_of, with_kept
from structured.errors import CheckpointError
from structured.methods import Method, to_dict
from structured.models import ModelConfig
from structured.progress import RunsBar
from structured.search import Trial, best_trial, candidates
from structured.single_run import (
    EVALUATION,
    Failure,
    Run,
    Shared,
    carry_out,
    forget,
    is_kept,
    score_run,
)
from structured.train_config import TrainConfig
from structured.workers import Workers

__all__ = ["COMPARISON", "EVALUATION", "compare", "folder_name", "score_run"]

OnRun: TypeAlias = Callable[[ComparedRun, Path], None]
OnTrial: TypeAlias = Callable[[Trial], None]
_Outcome: TypeAlias = "Trial | ComparedRun | Failure"
_Execute: TypeAlias = "Callable[[Sequence[Run]], Iterator[tuple[Run, _Outcome]]]"

_log = logging.getLogger(__name__)


def compare(
    methods: Mapping[str, Method],
    training: MultiLabelData,
    validation: MultiLabelData,
    test: MultiLabelData,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    trials: int = 1,
    control: bool = False,
    config: TrainConfig | None = None,
    model: ModelConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    jobs: int = 1,
    threads: int = 1,
    command: str = "",
    progress: bool | None = None,
    on_run: OnRun | None = None,
    on_trial: OnTrial | None = None,
) -> Comparison:
    """Train every method with every seed, and score all under the four decoders.

    The methods share the network's sizes and initial weights, the order of the rows, the settings
    and the validation part, which alone chooses epochs and options and fits decoders.

    With `trials` above 1 the options in each method's `Method.search_space` are searched first:
    so many candidates (`structured.search.candidates`) are trained with the first seed, and the
    one that is best on validation is trained with the other seeds. Its search run is its run of the
    first seed. No trial is scored on the test part.

    A run whose training diverges does not stop the others: it is named in `Comparison.failed`, and
    a trial that diverges is not chosen.

    Args:
        methods: label -> method; the first is the baseline.
        training: what to learn from.
        validation: what stops training, chooses the weights and options, and fits the decoders.
        test: what is reported, once per run.
        seeds: of the runs; at least one.
        trials: candidates of each method's search; 1 takes the methods as they are.
        control: also train the baseline's method on training rows whose labels are shuffled: what
            can be had without looking at the inputs.
        config: the settings; its seed is replaced by each of `seeds`.
        model: sizes of the models.
        folder: for one folder per run and for `COMPARISON`, written anew after every run; None
            keeps nothing.
        resume: go on in `folder`: finished runs are not repeated, others resume where they were.
            What the folder has of other labels, seeds and trials stays, as `Comparison.kept`.
        jobs: trainings at once, each in a process of its own; 1 (default) trains in this one. A
            script that takes more needs the usual ``if __name__ == "__main__":``.
        threads: of PyTorch in each such process.
        command: what repeats the comparison, to be printed under the table.
        progress: show a bar per run, or with several jobs one over all runs; None (default) does on
            a terminal and nowhere else.
        on_run: called after each run with its record and its folder.
        on_trial: called after each trial of a search.

    Raises:
        CheckpointError: if `folder` holds a comparison already and `resume` is False, or runs of
            other methods, settings or data under the same labels.
        ValueError: if there is no method or no seed, two labels give one folder, or `trials` or
            `jobs` is not at least 1.
        WorkerError: if the process of a run was killed.

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
    rows = dict(methods)
    if control and methods:
        rows[CONTROL] = next(iter(methods.values()))
    names = {label: folder_name(label) for label in rows}
    _check(methods, control, names, seeds, trials, jobs)
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
        methods={label: to_dict(method) for label, method in rows.items()},
        model=model.to_dict(),
        training={key: value for key, value in config.to_dict().items() if key != "seed"},
        seeds=tuple(seeds),
        command=command,
        machine=_machine(config, jobs, threads),
        trials=trials,
        control=CONTROL if control else "",
    )
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="structured-"))
        place = Path(folder)
        _claim(place, resume)
        # Killed before its first run was done, a comparison has left no record.
        earlier = (read_earlier(place) or found) if resume else None
        if earlier is not None:
            found = with_kept(found, earlier)
        shared = Shared(training, validation, test, config, model, progress)
        tried = {label: candidates(method, trials, seeds[0]) for label, method in rows.items()}
        total = len(rows) * len(seeds) + (trials > 1) * sum(map(len, tried.values()))
        execute = _execution(stack, shared, total, jobs=jobs, threads=threads, progress=progress)
        chosen: Mapping[str, Method] = rows
        if trials > 1:
            found, chosen = _search(found, earlier, tried, shared, place, names, execute, on_trial)
        return _train_all(found, chosen, place, names, resume, execute, on_run)


def folder_name(label: str) -> str:
    """Return a label as part of a path: letters, digits, dots and dashes.

    Example:
        >>> folder_name("implicit: margin, T = 2")
        'implicit-margin-T-2'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.") or "method"


def _search(
    found: Comparison,
    earlier: Comparison | None,
    tried: Mapping[str, Sequence[Method]],
    shared: Shared,
    place: Path,
    names: Mapping[str, str],
    execute: _Execute,
    on_trial: OnTrial | None,
) -> tuple[Comparison, dict[str, Method]]:
    """Train the candidates that no record tells about; return all records and the best methods."""
    plan = [
        Run(
            label,
            method,
            found.seeds[0],
            _trial_folder(place, names[label], number),
            resume=earlier is not None,
            control=label == found.control,
            trial=number,
        )
        # A trial of each method after another: all get equally far if the search is interrupted.
        for number in range(found.trials)
        for label, methods in tried.items()
        for method in methods[number : number + 1]
    ]
    records = {} if earlier is None else _recorded(found, earlier, plan, shared)
    runs = [run for run in plan if (run.label, run.trial) not in records]
    order = [(label, number) for label in tried for number in range(found.trials)]
    found = replace(found, search=tuple(records[key] for key in order if key in records))
    for run, trial in execute(runs):
        assert isinstance(trial, Trial)
        records[run.label, trial.number] = trial
        found = replace(found, search=tuple(records[key] for key in order if key in records))
        write_json(place / COMPARISON, found.to_dict())
        best = found.chosen(run.label)
        for other in found.search:
            if other.label == run.label and other != best:
                forget(_trial_folder(place, names[run.label], other.number))
        if on_trial is not None:
            on_trial(trial)
    bests = {label: found.chosen(label) for label in tried}
    chosen = {label: tried[label][best.number] for label, best in bests.items() if best is not None}
    reasons = tuple(f"{label}: every trial diverged" for label in tried if label not in chosen)
    methods = {**found.methods, **{label: to_dict(method) for label, method in chosen.items()}}
    return replace(found, methods=methods, failed=reasons), chosen


def _train_all(
    found: Comparison,
    methods: Mapping[str, Method],
    place: Path,
    names: Mapping[str, str],
    resume: bool,
    execute: _Execute,
    on_run: OnRun | None,
) -> Comparison:
    """Train the methods with all seeds."""
    plan = [
        Run(
            label,
            method,
            seed,
            place / names[label] / f"seed{seed}",
            resume=resume,
            control=label == found.control,
            begun=_begun(found, label, seed, place, names[label]),
        )
        # Seed by seed, so that an interrupted comparison has all methods for the first seeds.
        for seed in found.seeds
        for label, method in methods.items()
    ]
    done: dict[Path, ComparedRun] = {}
    for run, outcome in execute(plan):
        if isinstance(outcome, Failure):
            _log.warning("%s", outcome.reason)
            found = replace(found, failed=(*found.failed, outcome.reason))
        elif isinstance(outcome, ComparedRun):
            done[run.folder] = outcome
            runs = tuple(done[each.folder] for each in plan if each.folder in done)
            found = replace(found, runs=runs)
        write_json(place / COMPARISON, found.to_dict())
        if isinstance(outcome, ComparedRun) and on_run is not None:
            on_run(outcome, run.folder)
    return found


def _begun(found: Comparison, label: str, seed: int, place: Path, name: str) -> Path | None:
    best = found.chosen(label)
    if best is None or seed != found.seeds[0]:
        return None
    return _trial_folder(place, name, best.number)


def _trial_folder(place: Path, name: str, number: int) -> Path:
    return place / name / "search" / f"trial{number}"


def _recorded(
    found: Comparison, earlier: Comparison, plan: Sequence[Run], shared: Shared
) -> dict[tuple[str, int], Trial]:
    """The trials of a plan that an earlier part of the same search has finished.

    Raises:
        CheckpointError: if a trial of that label and number was of another method or other rows.
    """
    # Of the settings epochs alone may change in a folder: its trials then go on.
    if earlier.training.get("epochs") != found.training["epochs"]:
        return {}
    trials = trials_of(earlier)
    records: dict[tuple[str, int], Trial] = {}
    for run in plan:
        trial = trials.get((run.label, run.trial or 0))
        if trial is None:
            continue
        # The best one may have become the run of its seed.
        seed = run.folder.parents[1] / f"seed{run.seed}"
        rivals = [each for each in trials.values() if each.label == run.label]
        best = best_trial(rivals, earlier.training["monitor"])
        folders = [run.folder, seed] if trial == best else [run.folder]
        if is_kept(shared, run, folders):
            records[run.label, trial.number] = trial
    return records


def _execution(
    stack: ExitStack,
    shared: Shared,
    total: int,
    *,
    jobs: int,
    threads: int,
    progress: bool | None,
) -> _Execute:
    """What carries out runs: this process, or several others for the length of the stack."""
    if jobs == 1:
        return lambda runs: ((run, carry_out(shared, run)) for run in runs)
    quiet = replace(shared, progress=False)
    workers: Workers[Shared, Run, _Outcome] = stack.enter_context(
        Workers(carry_out, quiet, count=jobs, threads=threads)
    )
    bar = stack.enter_context(RunsBar(total, show=progress))

    def execute(runs: Sequence[Run]) -> Iterator[tuple[Run, _Outcome]]:
        for run, outcome in workers.run(runs):
            bar.done(f"{run}: {_validation(outcome, shared.config.monitor)}")
            yield run, outcome

    return execute


def _validation(outcome: _Outcome, monitor: str) -> str:
    if isinstance(outcome, ComparedRun):
        score = outcome.evaluation.scores["validation"]["expected F1"].example_f1
        return f"validation example-F1 {100 * score:.2f}"
    if isinstance(outcome, Trial) and outcome.value is not None:
        return f"validation {monitor} {outcome.value:.4f}"
    return "diverged"


def _check(
    methods: Mapping[str, Method],
    control: bool,
    names: Mapping[str, str],
    seeds: Sequence[int],
    trials: int,
    jobs: int,
) -> None:
    taken = control and CONTROL in methods
    if not methods or not seeds or taken or len(set(names.values())) != len(names):
        raise ValueError(
            f"methods: found {list(methods)} with the seeds {list(seeds)}, wanted at least one of "
            "each, and labels that differ in letters and digits"
            + (f", none of them {CONTROL!r}, which is the control's" if taken else "")
        )
    for name, found in (("trials", trials), ("jobs", jobs)):
        if found < 1:
            raise ValueError(f"{name}: found {found}, wanted at least 1")


def _claim(place: Path, resume: bool) -> None:
    if resume or not (place / COMPARISON).exists():
        return
    raise CheckpointError(
        f"{place}: holds a comparison already ({COMPARISON}); resume it, which repeats no finished "
        "run, or choose another folder"
    )


def _machine(config: TrainConfig, jobs: int, threads: int) -> dict[str, Any]:
    return {
        "device": str(config.torch_device()),
        "processor": platform.machine(),
        "jobs": jobs,
        "threads": torch.get_num_threads() if jobs == 1 else threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
