"""Mulan's pair of files: ARFF tables and the XML list of which attributes are labels.

The format: Tsoumakas et al. 2011, "Mulan: a Java library for multi-label learning",
http://mulan.sourceforge.net/format.html. Labels may be nested; the hierarchy is flattened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from structured.data.arff import ArffTable, read_arff
from structured.data.arff_header import unescape
from structured.data.multilabel import MultiLabelData, Split
from structured.errors import DataError

_WITHOUT_AND_WITH = (("false", "true"), ("no", "yes"))
"""Texts that say, in any case, that a row does not have a label, and that it has it."""


@dataclass(frozen=True)
class LabelEntry:
    """A label of the XML list.

    Args:
        name: Its name, the name of an ARFF attribute.
        line: Its line in the XML file.
    """

    name: str
    line: int


def read_mulan_labels(path: str | os.PathLike[str]) -> tuple[LabelEntry, ...]:
    r"""Read the labels of a Mulan XML file, parents before their children.

    A document type or an entity declaration is refused before anything is expanded, and nothing
    outside the file is ever opened.

    Args:
        path: The XML file.

    Raises:
        DataError: With file and line: XML that is cut or malformed, a DOCTYPE, another element
            than `labels` and `label`, a label without a name or listed twice, no label at all.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "toy.xml")
        ...     _ = path.write_text(
        ...         "<labels><label name='sea'>\n<label name='beach'/></label></labels>"
        ...     )
        ...     read_mulan_labels(path)
        (LabelEntry(name='sea', line=1), LabelEntry(name='beach', line=2))
    """
    file = os.fspath(path)
    raw = Path(path).read_bytes()
    parser = expat.ParserCreate()
    labels: dict[str, LabelEntry] = {}
    depth = 0

    def fail(message: str) -> NoReturn:
        raise DataError(message, file, parser.CurrentLineNumber)

    def refuse_doctype(*_: object) -> NoReturn:
        fail("a DOCTYPE is refused: entities are not expanded; delete it from the file")

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        wanted = "label" if depth else "labels"
        depth += 1
        if element != wanted:
            fail(f"wanted the element <{wanted}>, found <{element}>")
        if element == "label":
            name = attributes.get("name")
            if not name:
                fail("a <label> without a name")
            if name in labels:
                fail(f"label {name!r} is already listed in line {labels[name].line}")
            labels[name] = LabelEntry(name, parser.CurrentLineNumber)

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise DataError(
            f"not whole, well-formed XML ({reason}); fetch the file again", file, error.lineno
        ) from error
    if not labels:
        raise DataError("the list has no label", file, parser.CurrentLineNumber)
    return tuple(labels.values())


def read_mulan(
    arff: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    xml: str | os.PathLike[str],
    *,
    name: str | None = None,
    scattered_labels: bool = False,
) -> MultiLabelData:
    """Read a Mulan data set from one ARFF file, or from one for each part of a split.

    Args:
        arff: The ARFF file; or the name of a part -> its file, such as {"train": ..., "test": ...}.
            Rows are stacked in that order, and the split is called "split".
        xml: The list of labels. It sets their order and spelling.
        name: The name of the data set; by default that of the XML file.
        scattered_labels: Accept labels that are not one block at the start or the end of the
            attributes. They nearly always are, and a gap means a label missing from the XML.

    A label has the categories 0 and 1, or false and true, or no and yes, in any order and case.

    Returns:
        The data; X is sparse if the ARFF rows are.

    Raises:
        DataError: With file and line: what `read_arff` and `read_mulan_labels` refuse, a label of
            the XML that no attribute declares, an attribute inside the block of labels that the
            XML does not list, a label that is neither 0 nor 1 or has categories of unknown meaning,
            files with different attributes.
        OSError: A file cannot be opened.
    """
    files = dict(arff) if isinstance(arff, Mapping) else {"all": arff}
    tables = [read_arff(path) for path in files.values()]
    for other in tables[1:]:
        _check_same_attributes(tables[0], other)
    labels = read_mulan_labels(xml)
    columns = _label_columns(tables[0], labels, os.fspath(xml))
    if not scattered_labels:
        _check_one_block(tables[0], columns, os.fspath(xml))
    tables = [_with_meant_labels(table, columns) for table in tables]
    for table in tables:
        _check_label_values(table, columns)
    width = len(tables[0].attributes)
    others = np.setdiff1d(np.arange(width), columns)
    if isinstance(arff, Mapping):
        sizes = [len(table.lines) for table in tables]
        splits = {"split": Split(np.repeat(np.arange(len(sizes)), sizes), tuple(files))}
    else:
        splits = {}
    values = _stack(tables)
    return MultiLabelData(
        X=values[:, others],
        Y=values[:, columns],
        label_names=[label.name for label in labels],
        feature_names=[tables[0].attributes[column].name for column in others],
        splits=splits,
        name=name or Path(xml).stem,
        meta={"relation": tables[0].relation},
    )


def _stack(tables: Sequence[ArffTable]) -> Any:
    values = [table.values for table in tables]
    dense = [value for value in values if isinstance(value, np.ndarray)]
    if len(dense) == len(values):
        return np.concatenate(dense)
    return sparse.vstack([sparse.csr_array(value) for value in values], format="csr")


def _check_same_attributes(first: ArffTable, other: ArffTable) -> None:
    if len(first.attributes) != len(other.attributes):
        raise DataError(
            f"{len(other.attributes)} attributes; {first.file} has {len(first.attributes)}",
            other.file,
            other.attributes[-1].line,
        )
    for wanted, found in zip(first.attributes, other.attributes, strict=True):
        if (wanted.name, wanted.codes) != (found.name, found.codes):
            raise DataError(
                f"attribute {found.name!r} differs from {wanted.name!r} in {first.file}, line "
                f"{wanted.line}; the parts of a data set have the same attributes",
                other.file,
                found.line,
            )


def _label_columns(table: ArffTable, labels: Sequence[LabelEntry], xml: str) -> NDArray[np.intp]:
    r"""The column of every label: by its exact name, or else by its name with escapes resolved.

    Files in circulation escape quotes on one side only: delicious lists the label "TAG_m\'usica".
    """
    names = [attribute.name for attribute in table.attributes]
    by_name = {unescape(name): column for column, name in enumerate(names)}
    by_name.update({name: column for column, name in enumerate(names)})
    columns: dict[int, str] = {}
    for label in labels:
        column = by_name.get(label.name, by_name.get(unescape(label.name)))
        if column is None:
            raise DataError(
                f"label {label.name!r} is no attribute of {table.file}; the files do not belong "
                "together, or the name is spelled in another way",
                xml,
                label.line,
            )
        if column in columns:
            raise DataError(
                f"labels {columns[column]!r} and {label.name!r} are one attribute of {table.file}",
                xml,
                label.line,
            )
        columns[column] = label.name
    return np.array(list(columns), dtype=np.intp)


def _check_one_block(table: ArffTable, columns: NDArray[np.intp], xml: str) -> None:
    """The labels are the first attributes or the last ones, without a gap."""
    width, ordered = len(table.attributes), np.sort(columns)
    leading = np.arange(len(ordered))
    trailing = leading + width - len(ordered)
    if np.array_equal(ordered, leading) or np.array_equal(ordered, trailing):
        return
    inside = np.setdiff1d(np.arange(ordered[0], ordered[-1] + 1), ordered)
    stranger = int(inside[0]) if inside.size else int(ordered[-1]) + 1
    attribute = table.attributes[stranger]
    raise DataError(
        f"attribute {attribute.name!r} stands among or behind the labels, and {xml} does not list "
        "it; add it there, or read with scattered_labels=True if it is a feature",
        table.file,
        attribute.line,
    )


def _with_meant_labels(table: ArffTable, columns: NDArray[np.intp]) -> ArffTable:
    """Labels of two texts as what these mean; `read_arff` has numbered them as declared."""
    turned = []
    for column in columns:
        attribute = table.attributes[column]
        if attribute.plain:
            continue
        first, second = tuple(attribute.codes or {})
        pair = first.lower(), second.lower()
        if pair in _WITHOUT_AND_WITH:
            continue
        if pair[::-1] not in _WITHOUT_AND_WITH:
            raise DataError(
                f"label {attribute.name!r} is {first!r} or {second!r}, and nothing says which of "
                "them a row has that has the label; declare it {0,1}, {false,true} or {no,yes}",
                table.file,
                attribute.line,
            )
        if not isinstance(table.values, np.ndarray):
            raise DataError(
                f"label {attribute.name!r}: where a sparse row omits it, ARFF means its first "
                f"category, {first!r}, and so most rows would have it; put {second!r} first, or "
                "write dense rows",
                table.file,
                attribute.line,
            )
        turned.append(column)
    if not turned or not isinstance(table.values, np.ndarray):
        return table
    values = table.values.copy()
    values[:, turned] = 1 - values[:, turned]
    return replace(table, values=values)


def _check_label_values(table: ArffTable, columns: NDArray[np.intp]) -> None:
    labels = sparse.coo_array(table.values[:, columns])
    bad = np.flatnonzero((labels.data != 0) & (labels.data != 1))
    if bad.size:
        row, label = labels.row[bad[0]], labels.col[bad[0]]
        raise DataError(
            f"label {table.attributes[columns[label]].name!r} is {labels.data[bad[0]]:g}; "
            "wanted 0 or 1",
            table.file,
            int(table.lines[row]),
        )
