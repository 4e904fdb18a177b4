"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structured.errors import StructuredError


def check_folder(path: Path) -> None:
    """Check that a file can be written where it is to be, as far as its folder goes.

    Raises:
        FileNotFoundError: if the folder is not there; it is what the error names.

    Example:
        >>> check_folder(Path("nowhere/at/all.txt"))
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] there is no such folder; make it first: 'nowhere/at'
    """
    if not path.parent.is_dir():
        reason = "there is no such folder; make it first"
        raise FileNotFoundError(errno.ENOENT, reason, os.fspath(path.parent))


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a kill or a full disk leaves what was there before.

    The bytes go to a file beside it, reach the disk, and only then take its name. The name of that
    file is always the same, so a killed run leaves at most one behind, which the next one replaces.

    Raises:
        OSError: if the bytes cannot be written; the file is then as it was. It names the file, or
            the folder if that is missing, and never the one beside it.
    """
    check_folder(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None
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
