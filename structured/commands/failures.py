"""Errors that a user can mend are one line on the standard error stream, and an exit code.

2: the command, the configuration or the data cannot be used as they are. 1: something failed
underway (a download, a checkpoint, a full disk, a training that diverged). 130: interrupted. What
is not foreseen here is a defect of the program and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from structured.errors import DataError, StructuredError

BAD_USAGE, FAILURE, INTERRUPTED = 2, 1, 130

# The base of click's own errors. Where it lives depends on the version of typer, which some bring
# click along with and some do not.
_CLICK_ERROR: type[BaseException] = typer.BadParameter.__mro__[2]


class UsageError(StructuredError):
    """What a user asked for cannot be done as it was asked."""


class OneLineGroup(TyperGroup):
    """A group of commands whose users see one line instead of a usage text or a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command; exit with its code, or in non-standalone mode return it."""
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            found = explain(error)
            if found is None:
                raise
            message, code = found
            if message:
                print(f"structured: {message}", file=sys.stderr)
        if standalone_mode:
            sys.exit(code or 0)
        return code


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line to show for an error and the exit code, None if it is a defect.

    Example:
        >>> explain(DataError("no row in the file", "genes.arff", 1))
        ('genes.arff:1: no row in the file', 2)
        >>> explain(KeyError("x")) is None
        True
    """
    if isinstance(error, _CLICK_ERROR):
        text, code = _usage(error), BAD_USAGE
    elif isinstance(error, StructuredError):
        bad = isinstance(error, DataError | UsageError)
        text, code = str(error), BAD_USAGE if bad else FAILURE
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
        text = f"{error.filename}: {reason}" if error.filename else reason
        code = BAD_USAGE if isinstance(error, FileNotFoundError | IsADirectoryError) else FAILURE
    elif isinstance(error, ModuleNotFoundError):
        text, code = f"{error}; `pip install 'bilevel-structured[structured]'`", FAILURE
    elif _is_bilevel_error(error):
        text, code = str(error), FAILURE
    else:
        return None
    return " ".join(text.split()), code


def _usage(error: Any) -> str:
    """The message of one of click's errors; none where the help text was shown instead."""
    # The prefix is that of the library which checks types for some versions of typer.
    text = str(error.format_message()).rstrip(".").replace("Value error, ", "", 1)
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f"{text}; see `{path} --help`" if text and path else text


@contextmanager
def bad_usage() -> Iterator[None]:
    """Within the block a ValueError is a mistake in what the user asked for."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _is_bilevel_error(error: BaseException) -> bool:
    """Whether `bilevel` raised it; if it was never imported, it did not."""
    errors = sys.modules.get("bilevel.errors")
    return errors is not None and isinstance(error, errors.BilevelError)
