"""Running commands, in this process and in real ones."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from structured.commands.app import app

REPOSITORY = Path(__file__).parents[3]
LABELS = ("sea", "a beach", "wide, sky")
TINY = ("--hidden", "8", "--energy-hidden", "4", "--dropout", "0", "--device", "cpu")
IMPLICIT = "implicit: pretrain_epochs=1, pretrain_lr=0.03, inner_lr=0.03, outer_every=1"


def invoke(*arguments: object) -> Result:
    """Run a command in this process."""
    # Warnings are errors here; a training on random rows has every right to warn.
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> Result:
    """Run a command that must succeed; defects come through with their traceback."""
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result


def refused(code: int, *arguments: object) -> str:
    """Run a command that must end with an exit code and one line; return the line."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("structured: ")]
    assert "Traceback" not in result.output
    return line


def process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as `python -m structured`."""
    return subprocess.run(
        [sys.executable, "-m", "structured", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))
