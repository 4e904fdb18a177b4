"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structured.errors import StructuredError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a kill or a full disk leaves what was there before.

    The bytes go to a file beside it, reach the disk, and only then take its name. The name of that
    file is always the same, so a killed run leaves at most one behind, which the next one replaces.

    Raises:
        OSError: if the bytes cannot be written; the file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON, whole or not at all.

    Raises:
        StructuredError: if the file cannot be written.
    """
    try:
        write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise StructuredError(
            f"{path}: could not be written ({error.strerror or error})"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
