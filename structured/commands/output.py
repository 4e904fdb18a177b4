"""Results go to the standard output, everything else to the standard error stream."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 120
"""Columns of a table that goes to a file or a pipe, which have no width of their own."""


def print_json(value: Any) -> None:
    """Print plain values as indented JSON; not-a-number is refused, it is no JSON."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def print_table(table: Table) -> None:
    """Print a `rich` table: in colour on a terminal, plain elsewhere."""
    print_rich(table)


def print_rich(*parts: RenderableType) -> None:
    """Print tables and texts of `rich`, each below the one before; colours as in `print_table`."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else WIDTH)
    for part in parts:
        console.print(part)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr, flush=True)
