"""What earlier calls of a comparison left in its folder, for those that go on there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from structured.comparison import Comparison, Kept
from structured.errors import CheckpointError
from structured.methods import Method, to_dict
from structured.search import Trial, searched_options

COMPARISON = "comparison.json"
"""The file of the results, in the folder of the comparison."""


def read_earlier(folder: str | os.PathLike[str]) -> Comparison | None:
    """Return the comparison in a folder; None if there is none yet.

    Raises:
        CheckpointError: if its file is damaged.
    """
    file = Path(folder) / COMPARISON
    try:
        return Comparison.from_dict(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: is cut short or damaged ({error}); remove it, and what the folders of the "
            "runs hold is taken from there"
        ) from error


def trials_of(earlier: Comparison) -> dict[tuple[str, int], Trial]:
    """Return (label, number) -> trial, of all that an earlier comparison tells about."""
    return {(trial.label, trial.number): trial for trial in (*earlier.kept.search, *earlier.search)}


def with_kept(found: Comparison, earlier: Comparison) -> Comparison:
    """Return a comparison that keeps what an earlier one has and it was not asked for.

    Args:
        found: about to begin.
        earlier: in the same folder.
    """
    asked = {(label, seed) for label in found.methods for seed in found.seeds}
    searched = {(label, number) for label in found.methods for number in range(found.trials)}
    if found.trials == 1:
        searched = set()
    runs = {(run.method, run.seed): run for run in (*earlier.kept.runs, *earlier.runs)}
    # Trials of another number of epochs are no part of any search that goes on from here.
    same = earlier.training.get("epochs") == found.training.get("epochs")
    trials = trials_of(earlier) if same else {}
    kept_runs = tuple(run for key, run in runs.items() if key not in asked)
    kept_trials = tuple(trial for key, trial in trials.items() if key not in searched)
    named = {run.method for run in kept_runs} | {trial.label for trial in kept_trials}
    methods = {
        label: method
        for label, method in {**earlier.kept.methods, **earlier.methods}.items()
        if label in named and label not in found.methods
    }
    return replace(found, kept=Kept(methods, kept_runs, kept_trials))


def with_known_labels(
    methods: Mapping[str, Method], folder: str | os.PathLike[str]
) -> dict[str, Method]:
    """Give methods the labels that they have in a folder, where their runs are.

    Args:
        methods: label -> method. A label that the folder knows stays, and so does that of a method
            which it does not know.
        folder: of a comparison; may be missing.

    Raises:
        CheckpointError: if the comparison in the folder is damaged.
    """
    earlier = read_earlier(folder)
    if earlier is None:
        return dict(methods)
    trials = trials_of(earlier)
    held = {**earlier.kept.methods, **earlier.methods}
    free = {
        label: described
        for label, described in held.items()
        if label not in methods and label != earlier.control
    }
    found: dict[str, Method] = {}
    for label, method in methods.items():
        fitting = () if label in held else free
        same = (known for known in fitting if _is(method, held[known], trials.get((known, 0))))
        known = next(same, label)
        free.pop(known, None)
        found[known] = method
    return found


def _is(method: Method, described: Mapping[str, Any], first: Trial | None) -> bool:
    """Whether a method is the one described: after a search, the one that it began with."""
    given = _plain(to_dict(method))
    if first is None:
        return given == described
    options = _plain(searched_options(method))
    return options == first.options and _without(given, options) == _without(described, options)


def _without(described: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A description but for some options."""
    left = _plain(described)
    for path in paths:
        *owners, last = path.split(".")
        part = left
        for owner in owners:
            part = part.get(owner, {})
        part.pop(last, None)
    return left


def _plain(values: Any) -> Any:
    """The same as it comes back from a file, in objects of its own."""
    return json.loads(json.dumps(values))
