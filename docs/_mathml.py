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
# Bars of norms and absolute values: as tall as a letter, and close to what they hold.
_BAR = re.compile(r"<mo>(&#x02016;|&#x0007C;)</mo>")


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a rendered page (MkDocs calls this by name)."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    formula = convert(html.unescape(match["latex"]).strip(), display=display)
    return _BAR.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', formula)
