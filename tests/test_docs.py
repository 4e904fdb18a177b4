"""What README.md and the documentation show is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    page
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
    if "```python" in page.read_text(encoding="utf-8")
]

# A python block, and the text block right after it where the page shows what is printed.
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_python_block_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in _BLOCK.finditer(text):
        # Blank lines ahead of the code make a traceback name the line of the page.
        source = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), names)
        assert printed.getvalue() == (block[2] or "")


def test_the_test_command_of_the_readme_is_one_line_that_ci_can_find() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    pattern = re.search(r"grep -E '(.+)' README.md", (REPOSITORY / ".ci/run").read_text())
    assert pattern is not None
    assert len(re.findall(pattern[1], readme, re.MULTILINE)) == 1
