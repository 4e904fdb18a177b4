"""The header of an ARFF file: the relation and its attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from structured.errors import DataError

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_CELL = re.compile(rf"((?:{_QUOTED}|[^,'\"])*)(,|$)")
_DECLARATION = re.compile(rf"@attribute\s+({_QUOTED}|[^\s'\"{{]\S*)\s+(\S.*)", re.IGNORECASE)
_NUMERIC_TYPE = re.compile(r"(numeric|real|integer)\s*(%.*)?", re.IGNORECASE)
_NOMINAL_TYPE = re.compile(rf"\{{((?:{_QUOTED}|[^}}'\"])*)\}}\s*(%.*)?")
_ESCAPE = re.compile(r"""\\([\\'"%tnr])""")
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r"}


@dataclass(frozen=True)
class Attribute:
    """One declared column.

    Args:
        name: Its name, unquoted.
        codes: The number that stands for each category of a nominal attribute, in the declared
            order: the category itself where all are numbers, else 0 and 1 for two texts. None for
            a numeric attribute.
        plain: Whether a good cell reads as its own number: False for two texts.
        line: The line of the declaration.
    """

    name: str
    codes: Mapping[str, float] | None
    plain: bool
    line: int


def read_header(file: str, lines: Sequence[str]) -> tuple[str, tuple[Attribute, ...], int]:
    """Return the relation, the attributes, and the number of lines up to @data.

    Args:
        file: The name of the file, for errors.
        lines: All its lines.

    Raises:
        DataError: The header is cut or malformed, an attribute has a type that is no number, or
            two attributes have one name.
    """
    relation = ""
    attributes: dict[str, Attribute] = {}
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if not text or text[0] == "%":
            continue
        keyword = text.split(None, 1)[0].lower()
        if keyword == "@data":
            if not attributes:
                raise DataError("@data before any @attribute", file, number)
            return relation, tuple(attributes.values()), number
        if keyword == "@relation":
            relation = unquote(text[len("@relation") :])
        elif keyword == "@attribute":
            attribute = _read_attribute(file, number, text)
            if attribute.name in attributes:
                first = attributes[attribute.name].line
                raise DataError(
                    f"attribute {attribute.name!r} is already declared in line {first}",
                    file,
                    number,
                )
            attributes[attribute.name] = attribute
        else:
            raise DataError(
                f"wanted @relation, @attribute or @data, found {short(text)}", file, number
            )
    raise DataError(
        f"the file ends in its header, after {len(attributes)} attributes and before @data; "
        "it is cut, fetch it again",
        file,
        max(len(lines), 1),
    )


def _read_attribute(file: str, number: int, text: str) -> Attribute:
    match = _DECLARATION.fullmatch(text)
    if not match:
        raise DataError(
            f"wanted '@attribute name type', found {short(text)}; the line is cut, or a name with "
            "blanks is not quoted",
            file,
            number,
        )
    name, kind = unquote(match[1]), match[2].strip()
    if _NUMERIC_TYPE.fullmatch(kind):
        return Attribute(name, None, True, number)
    nominal = _NOMINAL_TYPE.fullmatch(kind)
    if not nominal:
        raise DataError(
            f"attribute {name!r} has type {short(kind)}; wanted numeric, real, integer or a closed "
            "list of categories such as {0,1}",
            file,
            number,
        )
    categories = [unquote(cell) for cell in split_cells(nominal[1])]
    if all(NUMBER.fullmatch(category) for category in categories):
        codes = {category: float(category) for category in categories}
        return Attribute(name, codes, True, number)
    if len(categories) == 2:
        return Attribute(name, {categories[0]: 0.0, categories[1]: 1.0}, False, number)
    raise DataError(
        f"attribute {name!r} has {len(categories)} categories that are not numbers; declare one "
        "{0,1} attribute for each",
        file,
        number,
    )


def split_cells(text: str) -> list[str]:
    """Return the text cut at the commas outside quotes; ValueError if a quote is not closed.

    Example:
        >>> split_cells("1, 'a, b', 2")
        ['1', "'a, b'", '2']
    """
    cells, position = [], 0
    while True:
        match = _CELL.match(text, position)
        if not match:
            raise ValueError("a quote is not closed")
        cells.append(match[1].strip())
        if not match[2]:
            return cells
        position = match.end()


def unquote(text: str) -> str:
    r"""Return the text without the quotes around it, if any, and its escapes resolved."""
    text = text.strip()
    if len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0]:
        return unescape(text[1:-1])
    return text


def unescape(text: str) -> str:
    r"""Resolve the escapes Weka writes inside quotes: `\\ \' \" \% \t \n \r`.

    Example:
        >>> unescape(r"Let\'s go")
        "Let's go"
    """
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)


def short(text: str) -> str:
    """Return the text quoted, its end dropped if it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
