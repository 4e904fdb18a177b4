"""The folder of one run: what is in it, who may write to it, and going on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from structured._atomic import write_json
from structured._lock import alone_in
from structured._state import State
from structured.checkpoint import check_same, load_state, save_state
from structured.errors import CheckpointError, StructuredError

DESCRIPTION = "run.json"
"""What was run: method, model, settings, data. Written first."""
CHECKPOINT = "checkpoint.safetensors"
"""Everything needed to go on."""
LOG = "log.csv"
"""A row per epoch."""
TIMING = "timing.csv"
"""The seconds of each epoch; apart from the log, which a run repeated gives again exactly."""
STEPS = "steps.csv"
"""A row per step, if asked for."""
EVENTS = "tensorboard"
"""TensorBoard's event files, if asked for."""
MODEL = "model.safetensors"
"""The best models, written at the end."""
SELECTION = "selection.safetensors"
"""After a refit, the models that chose the epoch and fit the decoders."""
REFIT = "refit"
"""The folder of the refit: a run of its own."""
RESULT = "result.json"
"""How the run went, written at the end."""
LOCK = ".lock"
"""An empty file, locked by the process that trains."""

_FILES = (DESCRIPTION, CHECKPOINT, LOG, TIMING, STEPS, EVENTS, MODEL, SELECTION, REFIT, RESULT)
_KIND = "run"

# What may change when a run goes on: none changes any number of the epochs they share.
_FREE = ("epochs", "checkpoint_seconds", "refit")


class RunFolder:
    """A folder that belongs to one run.

    Args:
        path: the folder; made when the run starts.
        description: what is run, by the parts "method", "model", "training" and "data": nested
            plain values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunFolder(folder, {"method": {"lr": 0.1}}).start()
        ...     RunFolder(folder, {"method": {"lr": 0.1}}).start()
        Traceback (most recent call last):
        structured.errors.CheckpointError: ...: holds a run already (run.json); ...
    """

    def __init__(self, path: str | os.PathLike[str], description: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._description = json.loads(json.dumps(description))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def alone(self) -> AbstractContextManager[None]:
        """Keep all others out of the folder for the length of a block; it is made if missing.

        Raises:
            CheckpointError: if another process is using it.
            StructuredError: if it cannot be written to.
        """
        return alone_in(self.path, LOCK)

    def start(self) -> None:
        """Claim the folder for a new run.

        Raises:
            CheckpointError: if it holds a run already; nothing is changed.
            StructuredError: if it cannot be written to.
        """
        held = [name for name in _FILES if (self.path / name).exists()]
        if held:
            raise CheckpointError(
                f"{self.path}: holds a run already ({', '.join(held)}); resume it (resume=True) or "
                "choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StructuredError(
                f"{self.path}: cannot be made ({error.strerror or error})"
            ) from error
        write_json(self.path / DESCRIPTION, self._description)

    def resume(self) -> State | None:
        """Return the last checkpoint's state; None if the run was killed before the first one.

        A folder that is empty or missing is claimed for a new run.

        Raises:
            CheckpointError: if the run in it is another one than described, or a file is damaged.
        """
        if not (self.path / DESCRIPTION).exists():
            self.start()
            return None
        self.check()
        checkpoint = self.path / CHECKPOINT
        if not checkpoint.exists():
            return None
        state = load_state(checkpoint, kind=_KIND)
        self._check(checkpoint, state["description"])
        return state["state"]

    def check(self) -> None:
        """Check that the folder holds the run described, finished or not.

        Raises:
            CheckpointError: if it holds another run or none, or its description is damaged.
        """
        self._check(self.path / DESCRIPTION, _read_json(self.path / DESCRIPTION))

    def save(self, state: State) -> None:
        """Replace the checkpoint, whole or not at all.

        Raises:
            CheckpointError: if it cannot be written; the one before is then unchanged.
        """
        whole = {"description": self._description, "state": state}
        save_state(self.path / CHECKPOINT, whole, kind=_KIND)

    def _check(self, file: Path, found: Mapping[str, Any]) -> None:
        for part, what in (
            ("method", "method"),
            ("model", "model"),
            ("data", "data set"),
            ("training", "training configuration"),
        ):
            check_same(
                file, _fixed(found.get(part, {})), _fixed(self._description.get(part, {})), what
            )


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the run in a folder is, by the parts "method", "model", "training" and "data".

    Raises:
        CheckpointError: if the folder holds no run, or its description is damaged.
    """
    return _read_json(Path(folder) / DESCRIPTION)


def _fixed(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in _FREE}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is cut short or damaged ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: is damaged (found a {type(values).__name__})")
    return values
