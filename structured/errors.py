"""What `structured` raises: one family, so that a caller can catch all of it or one kind of it.

A message is one line (a few clauses at most) that says what was found, what was wanted and the
likely fix, so that a command line can print it as it is, without a traceback.
"""

from __future__ import annotations

import os


class StructuredError(Exception):
    """The base of every error that `structured` raises on purpose."""


class DataError(StructuredError, ValueError):
    """Data that cannot be used as they are: a bad cell, a cut file, labels outside {0, 1}.

    Args:
        message: What was found, what was wanted, the likely fix.
        file: The file it was found in, if it came from one.
        line: The line in that file, counted from 1, for text files.

    Attributes:
        reason: The message without file and line.
        file: The file as text, or None.
        line: The line, or None.

    Example:
        >>> print(DataError("wanted a number, found 'x'", "genes.arff", 7))
        genes.arff:7: wanted a number, found 'x'
    """

    def __init__(
        self,
        message: str,
        file: str | os.PathLike[str] | None = None,
        line: int | None = None,
    ) -> None:
        self.reason = message
        self.file = None if file is None else os.fspath(file)
        self.line = line
        place = [str(part) for part in (self.file, line) if part is not None]
        super().__init__(": ".join([":".join(place), message]) if place else message)


class DownloadError(StructuredError, OSError):
    """A public file could not be fetched whole: no network, a cut transfer, a wrong hash."""


class CheckpointError(StructuredError, RuntimeError):
    """A checkpoint that cannot be used: cut short, of another version, or of another model."""


class TrainingError(StructuredError, RuntimeError):
    """Training cannot go on: a figure or a parameter is no longer a finite number."""
