"""The multi-label data set: a table, its labels, and named ways to split its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from structured.errors import DataError

Features: TypeAlias = "sparse.csr_array | NDArray[np.float32]"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, eq=False)
class Split:
    """A named part for every row.

    Args:
        parts: Shape [n], integers; the part of each row as an index into `names`, or -1 for a
            row that belongs to none. Stored as a read-only int8 copy.
        names: The names of the parts, in order, such as ("train", "test").

    Raises:
        DataError: `parts` is not a vector of integers from -1 to len(names) - 1, a part is empty,
            or two parts have one name.

    Example:
        >>> split = Split([0, 0, 1, -1], ("train", "test"))
        >>> split.sizes()
        {'train': 2, 'test': 1}
        >>> split.rows("train")
        array([0, 1])
    """

    parts: NDArray[np.int8]
    names: tuple[str, ...]

    def __init__(self, parts: ArrayLike, names: Sequence[str]) -> None:
        found = np.asarray(parts)
        names = tuple(names)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
            raise DataError(
                f"the parts of a split are a vector of integers; found shape "
                f"{list(found.shape)}, dtype {found.dtype}"
            )
        if len(set(names)) != len(names) or not 1 <= len(names) <= 127:
            raise DataError(f"a split needs 1 to 127 different part names; found {list(names)}")
        outside = np.flatnonzero((found < -1) | (found >= len(names)))
        if outside.size:
            row = int(outside[0])
            raise DataError(
                f"row {row} is in part {found[row]}; with the parts {list(names)} it is -1 "
                f"(left out) or 0 to {len(names) - 1}"
            )
        counts = np.bincount(found[found >= 0], minlength=len(names))
        empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if empty:
            raise DataError(f"part {empty[0]!r} of the split is empty; every part needs a row")
        copy = found.astype(np.int8)
        copy.flags.writeable = False
        object.__setattr__(self, "parts", copy)
        object.__setattr__(self, "names", names)

    def rows(self, part: str) -> NDArray[np.intp]:
        """Return the rows of a part, ascending."""
        if part not in self.names:
            raise DataError(f"no part {part!r}; the parts are {list(self.names)}")
        return np.flatnonzero(self.parts == self.names.index(part))

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of every part."""
        return {name: int(self.rows(name).size) for name in self.names}


@dataclass(frozen=True, eq=False)
class MultiLabelData:
    """n rows of d features with L labels each, and named splits of the rows.

    Args:
        X: Shape [n, d], sparse or dense, finite. Stored as float32: CSR without explicit zeros if
            sparse, C-ordered if dense.
        Y: Shape [n, L], sparse or dense, every entry 0 or 1. Stored as a CSR array of int8 (sum or
            multiply it in a wider type).
        label_names: L different names without control characters; by default "0" to "L-1".
        feature_names: d such names, or none.
        splits: Name of the split -> `Split` of length n.
        name: The name of the data set, printed with every figure.
        meta: What else is known (JSON values): source, split and part of a subset, ...

    Raises:
        DataError: A shape does not fit, X is not finite in float32, Y is not 0/1, or a name stands
            twice or has a control character.

    Example:
        >>> data = MultiLabelData(
        ...     X=[[0.0, 1.0], [2.0, 0.0], [3.0, 1.0]],
        ...     Y=[[1, 0, 0], [1, 1, 0], [0, 0, 0]],
        ...     splits={"holdout": Split([0, 0, 1], ("train", "test"))},
        ...     name="toy",
        ... )
        >>> data.cardinality, round(data.density, 3)
        (1.0, 0.333)
        >>> print(data.split("holdout")["train"])
        toy (holdout/train): 2 rows, 2 features, 3 labels, cardinality 1.500
    """

    X: Features
    Y: sparse.csr_array
    label_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    name: str = "data"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        X: Any,
        Y: Any,
        label_names: Sequence[str] = (),
        feature_names: Sequence[str] = (),
        splits: Mapping[str, Split] | None = None,
        name: str = "data",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        features, labels = _features(X), _labels(Y)
        (rows, width), (label_rows, n_labels) = _shape(features), _shape(labels)
        if label_rows != rows:
            raise DataError(f"X has {rows} rows and Y has {label_rows}; they must agree")
        if not (rows and width and n_labels):
            raise DataError(
                f"X has shape {[rows, width]} and Y {[rows, n_labels]}; a data set needs at least "
                "one row, one feature and one label"
            )
        label_names = tuple(label_names) or tuple(map(str, range(n_labels)))
        feature_names = tuple(feature_names)
        _check_names("label_names", label_names, f"Y has {n_labels} labels", n_labels)
        if feature_names:
            _check_names("feature_names", feature_names, f"X has {width} features", width)
        splits = dict(splits or {})
        for key, split in splits.items():
            if split.parts.size != rows:
                raise DataError(f"split {key!r} is for {split.parts.size} rows; X has {rows}")
        for attribute, value in (
            ("X", features),
            ("Y", labels),
            ("label_names", label_names),
            ("feature_names", feature_names),
            ("splits", splits),
            ("name", name),
            ("meta", dict(meta or {})),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def n_rows(self) -> int:
        """The number of rows, n."""
        return _shape(self.X)[0]

    @property
    def n_features(self) -> int:
        """The number of features, d."""
        return _shape(self.X)[1]

    @property
    def n_labels(self) -> int:
        """The number of labels, L."""
        return _shape(self.Y)[1]

    @property
    def cardinality(self) -> float:
        """The mean number of labels of a row."""
        return self.Y.nnz / self.n_rows

    @property
    def density(self) -> float:
        """The share of ones in Y: cardinality / L."""
        return self.cardinality / self.n_labels

    @property
    def title(self) -> str:
        """The name with the split and the part it was cut from, to print beside a figure."""
        cut = [str(self.meta[key]) for key in ("split", "part") if key in self.meta]
        return f"{self.name} ({'/'.join(cut)})" if cut else self.name

    def __str__(self) -> str:
        return (
            f"{self.title}: {self.n_rows} rows, {self.n_features} features, {self.n_labels} "
            f"labels, cardinality {self.cardinality:.3f}"
        )

    def dense(self) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return X [n, d] and Y [n, L] as dense arrays; mind the size of d."""
        X = self.X if isinstance(self.X, np.ndarray) else self.X.toarray()
        return X, self.Y.toarray()

    def statistics(self) -> dict[str, float | int]:
        """Return the counts that describe a multi-label set.

        Returns:
            rows, features, labels; cardinality and density; unlabelled (rows without a label);
            label_sets (different rows of Y); nonzeros (share of X that is not 0).
        """
        bounds = self.Y.indptr
        sets = {self.Y.indices[a:b].tobytes() for a, b in pairwise(bounds)}
        filled = np.count_nonzero(self.X) if isinstance(self.X, np.ndarray) else self.X.nnz
        return {
            "rows": self.n_rows,
            "features": self.n_features,
            "labels": self.n_labels,
            "cardinality": self.cardinality,
            "density": self.density,
            "unlabelled": int(np.count_nonzero(np.diff(bounds) == 0)),
            "label_sets": len(sets),
            "nonzeros": float(filled) / (self.n_rows * self.n_features),
        }

    def subset(
        self, rows: ArrayLike, *, split: str | None = None, part: str | None = None
    ) -> MultiLabelData:
        """Return some rows as a data set of its own, without splits.

        Args:
            rows: Row numbers or a boolean mask [n]; at least one row.
            split: Recorded in `meta` and shown in `title`; by default as it was.
            part: Likewise.

        Raises:
            DataError: No row is chosen.
        """
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        if not chosen.size:
            raise DataError(f"an empty subset of {self.title}; choose at least one row")
        meta = dict(self.meta)
        if split is not None:
            meta["split"] = split
        if part is not None:
            meta["part"] = part
        return replace(self, X=self.X[chosen], Y=self.Y[chosen], splits={}, meta=meta)

    def split(self, name: str) -> dict[str, MultiLabelData]:
        """Return the parts of a split by name, such as {"train": ..., "test": ...}.

        Raises:
            DataError: There is no split of that name; the message lists those there are.
        """
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise DataError(f"{self.name} has no split {name!r}; its splits: {known}")
        split = self.splits[name]
        return {part: self.subset(split.rows(part), split=name, part=part) for part in split.names}

    def with_split(self, name: str, split: Split) -> MultiLabelData:
        """Return the same data with one more split, or another one of that name."""
        return replace(self, splits={**self.splits, name: split})


def _check_names(argument: str, names: Sequence[str], wanted: str, count: int) -> None:
    if len(names) != count:
        raise DataError(f"{argument} has {len(names)} names; {wanted}")
    if len(set(names)) != count:
        twice = [name for name, times in Counter(names).items() if times > 1]
        found = ", ".join(map(repr, twice[:5])) + (", ..." if len(twice) > 5 else "")
        raise DataError(
            f"{argument} has more than once: {found}; columns are found by their names, so give "
            "each its own"
        )
    for name in names:
        if _CONTROL.search(name):
            raise DataError(
                f"{argument} has {name!r}, a name with a tab, a line end or another control "
                "character; rename it, names are written into lines"
            )


def _features(X: Any) -> Features:
    """X as finite float32, CSR in canonical form or C-ordered."""
    X = _table(X, "X")
    with np.errstate(over="ignore"):  # what overflows float32 is reported below, by its place
        if sparse.issparse(X):
            matrix = _canonical(sparse.csr_array(X, dtype=np.float32))
            values = matrix.data
        else:
            matrix = values = np.ascontiguousarray(X, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values.ravel()))
    if bad.size:
        row, column = _place(matrix, int(bad[0]))
        raise DataError(f"X[{row}, {column}] is {values.ravel()[bad[0]]} in float32, not finite")
    return matrix


def _labels(Y: Any) -> sparse.csr_array:
    """Y as int8 CSR in canonical form, every stored entry 1."""
    matrix = _canonical(sparse.csr_array(_table(Y, "Y")))
    bad = np.flatnonzero(matrix.data != 1)
    if bad.size:
        row, column = _place(matrix, int(bad[0]))
        raise DataError(f"Y[{row}, {column}] is {matrix.data[bad[0]]}; labels are 0 or 1")
    parts = (matrix.data.astype(np.int8), matrix.indices, matrix.indptr)
    return sparse.csr_array(parts, shape=_shape(matrix))


def _table(value: Any, argument: str) -> Any:
    """The value as it is if sparse, else as an array; two-dimensional and of numbers."""
    table = value if sparse.issparse(value) else np.asarray(value)
    if not (np.issubdtype(table.dtype, np.number) or table.dtype == bool):
        raise DataError(f"{argument} has dtype {table.dtype}; wanted numbers")
    if table.ndim != 2:
        raise DataError(f"{argument} has shape {list(table.shape)}; wanted two dimensions")
    return table


def _shape(matrix: Any) -> tuple[int, int]:
    """Rows and columns, which SciPy's types do not promise."""
    rows, columns = matrix.shape
    return rows, columns


def _canonical(original: sparse.csr_array) -> sparse.csr_array:
    """Sorted int32 indices, no duplicates, no explicit zeros; never changes the caller's arrays."""
    matrix: Any = original.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    parts = (matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32))
    return sparse.csr_array(parts, shape=matrix.shape)


def _place(matrix: Any, flat: int) -> tuple[int, int]:
    """Row and column of an entry of the flattened values."""
    if sparse.issparse(matrix):
        row = int(np.searchsorted(matrix.indptr, flat, side="right")) - 1
        return row, int(matrix.indices[flat])
    row, column = np.unravel_index(flat, matrix.shape)
    return int(row), int(column)
