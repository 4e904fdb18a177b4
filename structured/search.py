"""A random search on validation data: which methods to try, what each gave, which one is best."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from structured.methods import Method, to_dict, with_options
from structured.train_config import MONITORS


@dataclass(frozen=True)
class Trial:
    """One candidate of a method's search, trained.

    Args:
        label: of the method in the comparison.
        number: of the candidate, from 0, which is the method as given.
        options: the values of the options that the search varies, as plain values.
        value: what was watched on validation data, at the best epoch; None if training diverged.
        best_epoch: that epoch, counted from 1; None if training diverged.
        seconds: of the training.

    Example:
        >>> import dataclasses
        >>> trial = Trial("mine", 0, {"lr": 0.1}, value=0.8, best_epoch=7, seconds=2.5)
        >>> Trial.from_dict(dataclasses.asdict(trial)) == trial
        True
    """

    label: str
    number: int
    options: Mapping[str, Any]
    value: float | None
    best_epoch: int | None
    seconds: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Return what `dataclasses.asdict` was called on."""
        return cls(**values)


def candidates(method: Method, trials: int, seed: int) -> tuple[Method, ...]:
    """Return the methods that a search trains: the given one, and others drawn at random.

    Every option of `Method.search_space` is drawn uniformly and independently of the others, and
    what was drawn before is drawn anew, so that all differ. Options that the method does not have
    (of a part that was replaced by another) are not varied. The first candidates of a larger
    search are those of a smaller one.

    Args:
        method: whose options are varied.
        trials: how many methods; fewer come back where the space holds no more.
        seed: with the method, decides what is drawn.

    Raises:
        ValueError: if `trials` is not at least 1.

    Example:
        >>> from structured.methods import CrossEntropy
        >>> drawn = candidates(CrossEntropy(), 4, seed=0)
        >>> (
        ...     len(set(drawn)),
        ...     drawn[0] == CrossEntropy(),
        ...     candidates(CrossEntropy(), 2, 0) == drawn[:2],
        ... )
        (4, True, True)
    """
    if trials < 1:
        raise ValueError(f"trials: found {trials}, wanted at least 1")
    described = to_dict(method)
    space = {
        path: tuple(values)
        for path, values in method.search_space.items()
        if _has(described, path.split("."))
    }
    key = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    generator = np.random.default_rng([seed, key])
    size = math.prod(len(values) for values in space.values())
    found, texts, drawn = [method], {_text(method)}, set[int]()
    while len(found) < trials and len(drawn) < size:
        number = int(generator.integers(size))
        if number in drawn:
            continue
        drawn.add(number)
        try:
            candidate = with_options(method, _point(space, number))
        except ValueError:  # options that do not go together
            continue
        if _text(candidate) not in texts:
            texts.add(_text(candidate))
            found.append(candidate)
    return tuple(found)


def searched_options(method: Method) -> dict[str, Any]:
    """Return the values that a method has for the options of its search space, as plain values.

    Example:
        >>> from structured.methods import CrossEntropy
        >>> searched_options(CrossEntropy(lr=0.01))["lr"]
        0.01
    """
    described = to_dict(method)
    return {
        path: _at(described, path.split("."))
        for path in method.search_space
        if _has(described, path.split("."))
    }


def best_trial(trials: Sequence[Trial], monitor: str) -> Trial | None:
    """Return the trial that was best on validation, the first of equals; None if all diverged.

    Args:
        trials: of one method.
        monitor: what was watched, a name in `structured.train_config.MONITORS`.
    """
    sign = 1.0 if MONITORS[monitor] else -1.0
    ended = [(sign * trial.value, trial) for trial in trials if trial.value is not None]
    return max(ended, key=lambda pair: (pair[0], -pair[1].number), default=(0.0, None))[1]


def _point(space: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """The combination of that number, the last option varying slowest."""
    point = {}
    for path, values in space.items():
        number, index = divmod(number, len(values))
        point[path] = values[index]
    return point


def _has(described: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(described, Mapping) or name not in described:
            return False
        described = described[name]
    return True


def _at(described: Any, path: Sequence[str]) -> Any:
    for name in path:
        described = described[name]
    return described


def _text(method: Method) -> str:
    return json.dumps(to_dict(method), sort_keys=True)
