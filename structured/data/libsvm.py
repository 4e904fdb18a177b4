"""LIBSVM's multi-label text: `l1,l2 index:value index:value ...`, one row a line.

The format: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multilabel.html. scikit-learn's
`load_svmlight_file` reads it too, but its errors do not say where.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from scipy import sparse

from structured.data.arff_header import NUMBER, short
from structured.data.multilabel import MultiLabelData
from structured.data.textfile import read_lines
from structured.errors import DataError

# An index fits 32 bits. A label costs memory: a larger number is a mistake, and not a label.
_END = {"label": 1 << 24, "index": (1 << 31) - 1}


def read_libsvm(
    path: str | os.PathLike[str],
    *,
    n_features: int | None = None,
    n_labels: int | None = None,
    features_from: int | None = None,
    labels_from: int | None = None,
    labelled: bool = True,
    name: str | None = None,
) -> MultiLabelData:
    r"""Read a LIBSVM multi-label file, plain or gzip.

    A row without labels starts with its first `index:value` (or with a blank); without values, too,
    it is a line of one blank. An empty line could be such a row or nothing at all: it is refused,
    but at the end of the file. What follows `#` is a comment, which may be a whole line, and `qid:`
    is ignored. A file does not say how wide its table is nor whether it counts from 0 or 1: give
    all four numbers to read two files of one data set alike.

    Args:
        path: The file.
        n_features: The number of features; by default the largest index decides.
        n_labels: The number of labels; by default the largest label decides.
        features_from: 0 or 1, the index of the first feature; by default 0 if index 0 occurs,
            else 1.
        labels_from: 0 or 1, the number of the first label; by default 0 if label 0 occurs, else 1.
        labelled: False passes over whatever stands in the place of labels: no row has any.
        name: The name of the data set; by default that of the file.

    Returns:
        The data; X is sparse, the labels are named by their number in the file. `meta` has
        `features_from` and `labels_from` as they were given or found.

    Raises:
        DataError: With file and line: a label or an index that is no number, is out of range or
            comes twice, a value that is not finite in float32, an empty line between others, no row
            at all.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "toy.txt")
        ...     _ = path.write_text("1,3 1:0.5 4:2\n 2:1\n2 1:1\n")
        ...     data = read_libsvm(path)
        >>> data.Y.toarray().tolist()
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    """
    for argument, base in (("features_from", features_from), ("labels_from", labels_from)):
        if base not in (None, 0, 1):
            raise ValueError(f"{argument} is 0, 1 or None; found {base!r}")
    file = os.fspath(path)
    features, labels, values, lines = _Ragged(), _Ragged(), array("d"), []
    texts = read_lines(path)
    while texts and not texts[-1]:
        texts.pop()
    for number, raw in enumerate(texts, 1):
        if not raw:
            raise DataError(
                "the line is empty; remove it, or write one blank if it is a row without labels "
                "and values",
                file,
                number,
            )
        if raw.lstrip().startswith("#"):
            continue
        text = raw.partition("#")[0].rstrip()
        row_labels, row_features, row_values = _read_row(file, number, text, labelled)
        labels.append(row_labels)
        features.append(row_features)
        values.extend(row_values)
        lines.append(number)
    if not lines:
        raise DataError("no row in the file", file, 1)
    first_feature, width = features.frame(file, lines, "index", features_from, n_features)
    first_label, n_classes = labels.frame(file, lines, "label", labels_from, n_labels)
    data = np.array(values)
    with np.errstate(over="ignore"):  # what overflows is what is looked for
        bad = np.flatnonzero(~np.isfinite(data.astype(np.float32)))
    if bad.size:
        line = lines[features.row(int(bad[0]))]
        raise DataError(f"value {data[bad[0]]} is not finite in float32", file, line)
    return MultiLabelData(
        X=features.matrix(data, first_feature, width),
        Y=labels.matrix(np.ones(len(labels.flat), dtype=np.int8), first_label, n_classes),
        label_names=[str(first_label + label) for label in range(n_classes)],
        name=name or os.path.basename(file),
        meta={"features_from": first_feature, "labels_from": first_label},
    )


class _Ragged:
    """The columns of each row, one list after the other."""

    def __init__(self) -> None:
        self.flat, self.bounds = array("i"), [0]

    def append(self, row: Sequence[int]) -> None:
        self.flat.extend(row)
        self.bounds.append(len(self.flat))

    def row(self, position: int) -> int:
        return int(np.searchsorted(self.bounds, position, side="right")) - 1

    def frame(
        self, file: str, lines: Sequence[int], what: str, base: int | None, width: int | None
    ) -> tuple[int, int]:
        """The first number that can occur, and how many can; DataError if one is outside."""
        found = np.array(self.flat, dtype=np.int64)
        if base is None:
            base = 0 if found.size and found.min() == 0 else 1
        if width is None:
            width = max(int(found.max()) - base + 1 if found.size else 1, 1)
        outside = np.flatnonzero((found < base) | (found >= base + width))
        if outside.size:
            raise DataError(
                f"{what} {found[outside[0]]}; counted from {base} it is {base} to "
                f"{base + width - 1}",
                file,
                lines[self.row(int(outside[0]))],
            )
        return base, width

    def matrix(self, values: np.ndarray, base: int, width: int) -> sparse.csr_array:
        columns = (np.array(self.flat, dtype=np.int64) - base).astype(np.int32)
        bounds = np.array(self.bounds, dtype=np.int32)
        return sparse.csr_array((values, columns, bounds), shape=(len(bounds) - 1, width))


def _read_row(
    file: str, number: int, text: str, labelled: bool
) -> tuple[list[int], list[int], list[float]]:
    cells = text.split()
    labels: list[str] = []
    if cells and ":" not in cells[0] and not text[0].isspace():
        first, cells = cells[0], cells[1:]
        if labelled:
            labels = first.split(",")
        else:
            text = text[len(first) :]
    cells = [cell for cell in cells if not cell.startswith("qid:")]
    try:
        if "_" in text:
            raise ValueError  # int() takes 1_000, which the format does not
        pairs = [cell.split(":") for cell in cells]
        row_labels = [int(label) for label in labels]
        columns = [int(index) for index, _ in pairs]
        values = [float(value) for _, value in pairs]
    except ValueError:
        _explain(file, number, labels, cells)
    for what, row in (("label", row_labels), ("index", columns)):
        if len(set(row)) != len(row):
            twice = next(value for value in row if row.count(value) > 1)
            raise DataError(f"{what} {twice} comes twice", file, number)
        outside = next((value for value in row if not 0 <= value < _END[what]), None)
        if outside is not None:
            raise DataError(f"{what} {outside}; wanted 0 to {_END[what] - 1}", file, number)
    return row_labels, columns, values


def _explain(file: str, number: int, labels: Sequence[str], cells: Sequence[str]) -> NoReturn:
    """Find the cell that the fast path could not read."""
    for label in labels:
        if not (label.isascii() and label.isdigit()):
            raise DataError(f"wanted a label number, found {short(label)}", file, number)
    for cell in cells:
        index, _, value = cell.partition(":")
        if not (index.isascii() and index.isdigit() and NUMBER.fullmatch(value)):
            raise DataError(f"wanted 'index:value', found {short(cell)}", file, number)
    raise DataError("the row cannot be read", file, number)
