"""The command line: ``structured train | evaluate | predict | compare | methods | data``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave the process with its exit code.

    Args:
        arguments: What follows `structured` on the command line; by default that of the process.

    Raises:
        SystemExit: Always: 0 if all went well, 2 for a command or data that cannot be used, 1 for
            what failed underway, 130 if interrupted.
    """
    try:
        from structured.commands.app import app
    except ModuleNotFoundError as error:  # installed without the extra that brings typer
        sys.exit(
            f"structured: the package {error.name} is not installed; "
            "`pip install 'bilevel-structured[structured]'`"
        )
    app(arguments, prog_name="structured")
    raise SystemExit(0)
