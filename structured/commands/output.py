"""Results go to the standard output, everything else to the standard error stream."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.failures import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which have no width of their own."""


def print_json(value: Any) -> None:
    """Print plain values as indented JSON; not-a-number is refused, it is no JSON."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def print_table(table: Table, least: int = 0) -> None:
    """Print a `rich` table: in colour on a terminal, plain elsewhere.

    Args:
        table: What to print.
        least: Columns that it needs, so that no figure is cut: on a narrower terminal its lines
            break.
    """
    print_rich(table, least=least)


def print_rich(*parts: RenderableType, least: int = 0) -> None:
    """Print tables and texts of `rich`, each below the one before; as `print_table` does."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    console.width = max(console.width, least)
    for part in parts:
        console.print(part)


def check_output(path: Path, *, force: bool) -> None:
    """Check, before any work, that a file may be written.

    Args:
        path: Of the file.
        force: Whether one that is there may be replaced.

    Raises:
        FileNotFoundError: Its folder is not there.
        UsageError: It is there.
    """
    from structured._atomic import check_folder

    check_folder(path)
    if path.is_file() and not force:
        raise UsageError(
            f"{path} is there already; add --force to replace it, or name another file with "
            "--output"
        )


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr, flush=True)
