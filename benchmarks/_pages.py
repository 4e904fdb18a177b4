"""Tables in the pages of the documentation, between their marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from structured._atomic import write_atomically


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        SystemExit: the page has no such marks. Nothing is written then.
    """
    text = page.read_text()
    for name, table in tables.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise SystemExit(f"{page}: has no marks for {name}")
        text = marks.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", text)
    write_atomically(page, text.encode())
