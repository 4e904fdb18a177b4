"""`structured methods`: which methods there are, and the options of one."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structured.commands import options
from structured.commands.failures import UsageError
from structured.commands.output import print_json, print_rich
from structured.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from structured.methods import Method

# A section of a Google docstring: its title, and all lines that are indented below it.
_SECTION = re.compile(
    r"^(Args|Attributes|Raises|Examples?|References?):\n((?:[ ]{4}.*(?:\n|\Z)|\n)+)", re.M
)
# An argument: its name, and a text that may go on in deeper lines.
_ARGUMENT = re.compile(r"^(\w+): (.*(?:\n[ ]{4}.*)*)", re.M)
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


@dataclass(frozen=True)
class Documented:
    """A docstring in its parts.

    Args:
        summary: Its first paragraph.
        text: The paragraphs after it, but for the sections.
        arguments: Name -> what it is.
        reference: Where it comes from, or nothing.
    """

    summary: str
    text: str
    arguments: dict[str, str]
    reference: str


@dataclass(frozen=True)
class Option:
    """An option of a method, as a user writes it.

    Args:
        name: Such as "solver.max_steps".
        default: As text.
        help: What it is.
    """

    name: str
    default: str
    help: str


def methods(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD]", help="Show this one; without it, list all.", show_default=False
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods, or show what one does, its options and their defaults.

    What --json prints for one method is, saved to a file, a method for --method.
    """
    from structured.methods import known, to_dict

    found = {name: cls() for name, cls in known().items()}
    if key is None:
        rows = [
            {"method": name, "name": method.name, "summary": document(method).summary}
            for name, method in found.items()
        ]
        if as_json:
            print_json(rows)
        else:
            print_rich(_list(rows))
        return
    if key not in found:
        close = difflib.get_close_matches(key, found, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no method {key!r}; known: {', '.join(found)}{hint}")
    method = found[key]
    about, rates = document(method), own_options(key)
    if as_json:
        print_json(
            {
                "method": to_dict(method),
                "name": method.name,
                "summary": about.summary,
                "text": about.text,
                "options": [vars(option) for option in options_of(method)],
                "own_options": rates,
                "reference": about.reference,
            }
        )
        return
    sets = {text: [data for data in rates if rates[data] == text] for text in rates.values()}
    lines = [
        about.text,
        *(f"On {', '.join(names)} by name: {text}." for text, names in sets.items()),
    ]
    if about.reference:
        lines.append(f"Reference: {about.reference}")
    print_rich(*_page(f"{key} ({method.name}): {about.summary}", lines, method))


def document(described: object) -> Documented:
    """Take the docstring of an object's class apart.

    Arguments are also those of the classes it inherits from, unless it says more of one itself.

    Example:
        >>> class Door:
        ...     '''A way in.
        ...
        ...     It opens.
        ...
        ...     Args:
        ...         width: in metres,
        ...             0.8 by default.
        ...     '''
        >>> document(Door())
        Documented(summary='A way in.', text='It opens.',
            arguments={'width': 'in metres, 0.8 by default.'}, reference='')
    """
    whole = inspect.getdoc(type(described)) or ""
    sections = _sections(whole)
    summary, _, text = _SECTION.sub("", whole).strip().partition("\n\n")
    reference = sections.get("Reference", sections.get("References", ""))
    return Documented(
        summary=_flowing(summary),
        text=_flowing(text),
        arguments=_arguments(type(described)),
        reference=_flowing(reference),
    )


def _sections(text: str) -> dict[str, str]:
    return {title: textwrap.dedent(body) for title, body in _SECTION.findall(text)}


def _arguments(cls: type) -> dict[str, str]:
    """Name -> what it is, of a class over those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        listed = _sections(inspect.cleandoc(owner.__doc__ or "")).get("Args", "")
        found |= {name: _flowing(body) for name, body in _ARGUMENT.findall(listed)}
    return found


def options_of(described: Any, before: str = "") -> Iterator[Option]:
    """Yield the options of a method or of a part of it, those of its parts after each.

    They come in the order of its signature.

    Args:
        described: A dataclass.
        before: What the names begin with.

    Example:
        >>> from structured.methods import Implicit
        >>> [option.name for option in options_of(Implicit())][:3]
        ['primary', 'primary.samples', 'gradient']
    """
    explained = document(described).arguments
    # Options by name alone are at the end of a signature, wherever they are inherited from.
    for field in sorted(fields(described), key=lambda field: field.kw_only is True):
        value, name = getattr(described, field.name), f"{before}{field.name}"
        yield Option(name, _default(value), explained.get(field.name, ""))
        if is_dataclass(value):
            yield from options_of(value, f"{name}.")


def own_options(key: str) -> dict[str, str]:
    """Return data set -> the options that a method has there unless it is told otherwise."""
    own = {data: preset.get("methods", {}) for data, preset in PRESETS.items()}
    return {data: texts[key] for data, texts in own.items() if key in texts}


def _default(value: Any) -> str:
    if is_dataclass(value):
        return type(value).__name__
    if value is None or isinstance(value, bool | str):
        return str(value)
    return getattr(value, "__name__", None) or json.dumps(value)


def _flowing(text: str) -> str:
    """Plain text with a line for each paragraph and each entry of a list."""
    plain = _ROLE.sub(r"`\1`", text).replace("``", "`")
    paragraphs = re.split(r"\n\s*\n", plain)
    return "\n\n".join(re.sub(r"\n(?! *- )\s*", " ", paragraph) for paragraph in paragraphs).strip()


def _list(rows: list[dict[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Methods; `structured methods METHOD` shows one", title_justify="left")
    for column, free in (("method", False), ("in tables", False), ("what it does", True)):
        table.add_column(column, no_wrap=not free)
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def _page(title: str, lines: list[str], method: Method) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    yield Text(title, style="bold")
    for line in lines:
        if line:
            yield Text(f"\n{line}")
    table = Table("option", "default", "what it is", title="Options", title_justify="left")
    for option in options_of(method):
        table.add_row(*(Text(value) for value in vars(option).values()))
    yield Text("")
    yield table
