"""A lock that one process holds on a file, and that the system takes back when the process ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structured.errors import CheckpointError, StructuredError

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        # Of the open file, not of the process: it also keeps out a second run of this process.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def alone_in(folder: Path, name: str) -> Iterator[None]:
    """Be the only one in a folder for the length of the block, by a lock on an empty file in it.

    The file stays when the block ends: if it were removed, two others could each lock a file of
    that name. Where the file system has no locks there is none, and nobody is kept out.

    Args:
        folder: made if it is missing.
        name: of the file.

    Raises:
        CheckpointError: if another process, or another block of this one, is in the folder.
        StructuredError: if the file cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StructuredError(
            f"{folder}: cannot be written to ({error.strerror or error})"
        ) from error
    try:
        try:
            _take(descriptor)
        except OSError as error:
            if error.errno in _HELD:
                raise CheckpointError(
                    f"{folder}: another process is using this folder; let it end, or choose "
                    "another folder"
                ) from error
        yield
    finally:
        os.close(descriptor)  # which gives the lock back, as the end of the process does
