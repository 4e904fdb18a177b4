"""ARFF tables, sparse and dense, as Weka and Mulan write them.

The format: https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/. SciPy's reader
refuses sparse rows. Every complaint names file and line: rows are read by a fast path that takes
plain numbers only, and what it cannot take is read again, cell by cell, to find out why.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from structured.data.arff_header import (
    NUMBER,
    Attribute,
    read_header,
    short,
    split_cells,
    unescape,
    unquote,
)
from structured.data.textfile import read_lines
from structured.errors import DataError


@dataclass(frozen=True, eq=False)
class ArffTable:
    """An ARFF file as numbers.

    Args:
        file: Where it was read.
        relation: The name after @relation.
        attributes: The d columns.
        values: Shape [n, d], float64; a CSR array if the file's rows are sparse, else dense.
        lines: Shape [n], the line of each row.
    """

    file: str
    relation: str
    attributes: tuple[Attribute, ...]
    values: sparse.csr_array | NDArray[np.float64]
    lines: NDArray[np.int64]


def read_arff(path: str | os.PathLike[str], *, without: Collection[str] = ()) -> ArffTable:
    r"""Read an ARFF file with numeric and nominal attributes, sparse or dense, plain or gzip.

    Nominal attributes must have numbers as categories, or two categories (which become 0 and 1).

    Args:
        path: The file.
        without: The names of attributes to leave out, where there are such; whatever their cells
            hold, `?` for one, is passed over.

    Returns:
        The table; `values` is sparse if the rows are written `{index value, ...}`.

    Raises:
        DataError: With file and line: a cut header, row or gzip stream, a cell that is no number
            or no declared category, a missing value `?`, a wrong number of cells, an index that is
            out of range or comes twice, a text or date attribute, two attributes of one name.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "toy.arff")
        ...     _ = path.write_text(
        ...         "@relation toy\n@attribute size numeric\n@attribute red {0,1}\n"
        ...         "@data\n{0 2.5}\n{1 1}\n"
        ...     )
        ...     table = read_arff(path)
        >>> table.values.toarray()
        array([[2.5, 0. ],
               [0. , 1. ]])
    """
    file = os.fspath(path)
    lines = read_lines(path)
    relation, attributes, start = read_header(file, lines)
    rows = [
        (number, text)
        for number, raw in enumerate(lines[start:], start + 1)
        if (text := raw.strip()) and text[0] != "%"
    ]
    if not rows:
        raise DataError("no row after @data; the file is cut or empty", file, len(lines))
    # Names are escaped in some places and not in others.
    unread = {unescape(name) for name in without}
    unread = frozenset(each.name for each in attributes if unescape(each.name) in unread)
    reader = _Rows(file, attributes, unread)
    values = reader.sparse(rows) if rows[0][1][0] == "{" else reader.dense(rows)
    if unread:
        kept = [column for column, each in enumerate(attributes) if each.name not in unread]
        attributes, values = tuple(attributes[column] for column in kept), values[:, kept]
    numbers = np.array([number for number, _ in rows], dtype=np.int64)
    table = ArffTable(file, relation, attributes, values, numbers)
    _check_values(table)
    return table


@dataclass(frozen=True)
class _Rows:
    """Reads the rows of one file, each given with its line number."""

    file: str
    attributes: tuple[Attribute, ...]
    unread: frozenset[str]

    def dense(self, rows: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
        for number, text in rows:
            if text[0] == "{":
                self._fail(number, "a sparse row in a file whose first row is dense")
        if all(attribute.plain for attribute in self.attributes):
            with contextlib.suppress(ValueError):
                texts = [text for _, text in rows]
                values = np.loadtxt(texts, delimiter=",", comments=None, ndmin=2)
                if values.shape[1] == len(self.attributes):
                    return values
        return np.array([self._dense_row(number, text) for number, text in rows])

    def sparse(self, rows: Sequence[tuple[int, str]]) -> sparse.csr_array:
        self._check_omitted()
        width = len(self.attributes)
        plain = all(attribute.plain for attribute in self.attributes)
        bounds, indices, values = [0], array("i"), array("d")
        for number, text in rows:
            body = self._body(number, text)
            try:
                pairs = [pair.split() for pair in body.split(",")] if body else []
                columns = [int(index) for index, _ in pairs]
                cells = [float(value) for _, value in pairs]
                if not plain or "_" in body:
                    raise ValueError
            except ValueError:
                columns, cells = self._sparse_row(number, body)
            if columns and not 0 <= min(columns) <= max(columns) < width:
                outside = next(index for index in columns if not 0 <= index < width)
                self._fail(
                    number, f"index {outside}; with {width} attributes it is 0 to {width - 1}"
                )
            if len(set(columns)) != len(columns):
                twice = next(index for index in columns if columns.count(index) > 1)
                self._fail(number, f"index {twice} comes twice")
            indices.extend(columns)
            values.extend(cells)
            bounds.append(len(indices))
        parts = (np.array(values), np.array(indices, dtype=np.int32), np.array(bounds, np.int32))
        return sparse.csr_array(parts, shape=(len(rows), width))

    def _check_omitted(self) -> None:
        for attribute in self.attributes:
            if attribute.name in self.unread:
                continue
            first, code = next(iter((attribute.codes or {"0": 0.0}).items()))
            if code != 0:
                raise DataError(
                    f"attribute {attribute.name!r}: where a sparse row omits it, ARFF means its "
                    f"first category, {first!r}, and not 0; put 0 first, or write dense rows",
                    self.file,
                    attribute.line,
                )

    def _body(self, number: int, text: str) -> str:
        """The text between the braces of a sparse row."""
        if text[0] != "{":
            self._fail(number, "a dense row in a file whose first row is sparse")
        end = text.rfind("}")
        if end < 0:
            self._fail(number, "the row has no closing '}'; the file is cut here")
        rest = text[end + 1 :].strip()
        body = text[1:end]
        if (rest and rest[0] != "%") or "{" in body:
            self._fail(number, "more than one pair of braces; instance weights are not supported")
        return body.strip()

    def _dense_row(self, number: int, text: str) -> list[float]:
        cells = self._split(number, text)
        if len(cells) != len(self.attributes):
            self._fail(
                number,
                f"{len(cells)} values for {len(self.attributes)} attributes; the row is cut, or a "
                "comma is missing or one too many",
            )
        pairs = zip(self.attributes, cells, strict=True)
        return [self._value(number, attribute, cell) for attribute, cell in pairs]

    def _sparse_row(self, number: int, body: str) -> tuple[list[int], list[float]]:
        columns: list[int] = []
        values: list[float] = []
        for cell in self._split(number, body):
            index, _, value = cell.replace("\t", " ", 1).partition(" ")
            if not (index.isascii() and index.isdigit() and value.strip()):
                self._fail(number, f"wanted 'index value', found {short(cell)}")
            columns.append(int(index))
            known = columns[-1] < len(self.attributes)  # if not, `sparse` complains of the index
            values.append(
                self._value(number, self.attributes[columns[-1]], value.strip()) if known else 0.0
            )
        return columns, values

    def _split(self, number: int, text: str) -> list[str]:
        try:
            return split_cells(text) if text else []
        except ValueError as error:
            self._fail(number, f"{error}; the row is cut, or the quote needs a backslash")

    def _value(self, number: int, attribute: Attribute, cell: str) -> float:
        if attribute.name in self.unread:
            return 0.0
        if cell == "?":
            self._fail(number, f"attribute {attribute.name!r} is missing ('?'); fill it in first")
        text = unquote(cell)
        if attribute.codes is not None and text in attribute.codes:
            return attribute.codes[text]
        if attribute.plain and NUMBER.fullmatch(text):
            return float(text)
        wanted = "a number" if attribute.codes is None else f"one of {list(attribute.codes)}"
        self._fail(number, f"attribute {attribute.name!r}: wanted {wanted}, found {short(cell)}")

    def _fail(self, number: int, message: str) -> NoReturn:
        raise DataError(message, self.file, number)


def _check_values(table: ArffTable) -> None:
    """Every value is finite in float32, and every value of a nominal attribute a declared one."""
    values, attributes = table.values, table.attributes
    if isinstance(values, np.ndarray):
        flat, columns = values.ravel(), np.tile(np.arange(len(attributes)), len(values))
    else:
        flat, columns = values.data, values.indices
    with np.errstate(over="ignore"):  # what overflows is what is looked for
        good = np.isfinite(flat.astype(np.float32))
    domains = [tuple((attribute.codes or {}).values()) for attribute in attributes]
    for domain in set(domains) - {()}:
        members = np.array([other == domain for other in domains])
        good &= ~members[columns] | np.isin(flat, domain)
    if good.all():
        return
    bad = int(np.argmin(good))
    attribute = attributes[columns[bad]]
    if isinstance(values, np.ndarray):
        row = bad // len(attributes)
    else:
        row = int(np.searchsorted(values.indptr, bad, side="right")) - 1
    wanted = (
        f"one of {list(attribute.codes)}"
        if attribute.codes
        else "a number that is finite in float32"
    )
    raise DataError(
        f"attribute {attribute.name!r}: wanted {wanted}, found {flat[bad]:g}",
        table.file,
        int(table.lines[row]),
    )
