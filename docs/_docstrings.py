"""Griffe extension: the docstrings' Sphinx roles and ``Example:`` sections, for the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

# :class:`bilevel.CG` and :meth:`bilevel.ImplicitProblem.refine`, as links.
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for each object it has collected."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda role: _link(role[1], obj), obj.docstring.value)
        # The parser knows a doctest by the plural.
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _link(name: str, obj: griffe.Object) -> str:
    """A name as a cross-reference; a bare one is looked up in the class it stands in."""
    if name.startswith("bilevel."):
        return f"[`{name.removeprefix('bilevel.')}`][{name}]"
    owner = obj if obj.is_class else obj.parent
    if owner is not None and owner.is_class and name in owner.members:
        return f"[`{name}`][bilevel.{owner.name}.{name}]"
    return f"[`{name}`][bilevel.{name}]"
