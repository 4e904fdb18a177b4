r"""MkDocs hook: turn every formula into MathML while the site is built.

``pymdownx.arithmatex`` (generic mode) leaves ``\(...\)`` and ``\[...\]`` in the page for a script
to draw in the browser. Browsers draw MathML themselves: the site needs no script and no network.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a rendered page (MkDocs calls this by name)."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)
