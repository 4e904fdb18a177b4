"""What the pages show of the command line is what it prints, but for the figures.

In a page of `PAGES`, commands in blocks of ``bash`` are run in order in one folder; blocks of text
with a title are files in it, and a block of text right after commands is what they print, where
``...`` at the end of a line stands for anything. Blocks of ``sh`` are shown and not run.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from structured.commands.app import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["structured/cli.md"]

_BLOCK = re.compile(r'^```(bash|text)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_STATUS = "; echo $?"


def commands_of(block: str) -> list[str]:
    """The commands of a block, one a line but where a backslash ends the line."""
    return block.replace("\\\n", " ").splitlines()


def printed_by(line: str) -> str:
    """What a command prints, on both streams, and its exit code where the line asks for it."""
    name, *words = shlex.split(line.removesuffix(_STATUS), comments=True)
    assert name == "structured", line
    result = CliRunner().invoke(app, words, env={"NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if line.endswith(_STATUS):
        return f"{result.output}{result.exit_code}\n"
    assert result.exit_code == 0, result.output
    return result.output


def words_of(text: str) -> str:
    """A text without its figures, which depend on the machine, and without widths of columns."""
    return re.sub(r"[ ─━]+", " ", re.sub(r"\d+(\.\d+)?", "0", text)).replace(" \n", "\n").strip()


def pattern_of(text: str) -> re.Pattern[str]:
    parts = re.split(r"\.\.\.$", words_of(text), flags=re.MULTILINE)
    return re.compile(r"[\s\S]*?".join(re.escape(part.strip()) for part in parts))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    printed, end = "", -1
    for block in _BLOCK.finditer(text):
        kind, title, body = block.groups()
        if title:
            Path(title).write_text(body, encoding="utf-8")
        elif kind == "bash":
            printed = "".join(printed_by(line) for line in commands_of(body))
            end = block.end()
        elif text[end : block.start()] == "\n\n":
            place = f"{page}:{text.count(chr(10), 0, block.start()) + 1}"
            assert pattern_of(body).fullmatch(words_of(printed)), f"{place} prints\n{printed}"
