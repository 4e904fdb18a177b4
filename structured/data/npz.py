"""The compact `.npz` form of a data set: CSR parts, names, splits and notes, no pickle.

Keys: `X_data X_indices X_indptr X_shape` and the same for `Y`; `label_names`, `feature_names` (may
be empty); `meta_json`; and every other vector of n integers or booleans is a split. The names of
its parts stand under `<split>_names`, or, for `split3_surrogate`, under `split3_names`; without
them the values name the parts. The part "valid" is read as "validation".

In place of the four parts a matrix may be one dense array, `X`, and `Y` or `y`, as `numpy.savez`
writes them; then `label_names` may be left out. Such files are read and never written.
"""

from __future__ import annotations

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from structured._atomic import check_folder
from structured.data.multilabel import MultiLabelData, Split
from structured.errors import DataError

_PARTS = ("data", "indices", "indptr", "shape")
_OWN_KEYS = {f"{matrix}_{part}" for matrix in "XY" for part in _PARTS} | {
    "label_names",
    "feature_names",
    "meta_json",
}
_DENSE = {"X": ("X",), "Y": ("Y", "y")}
_UNLABELLED = {"X", *(f"X_{part}" for part in _PARTS), "feature_names"}
_KNOWN = _OWN_KEYS | {"X", "Y", "y"}
_RESERVED = _KNOWN | {"file", "allow_pickle"}  # numpy.savez takes these two for itself


def read_npz(path: str | os.PathLike[str], *, labelled: bool = True) -> MultiLabelData:
    """Read a data set in the compact form, or of dense arrays `X [n, d]` and `Y [n, L]` (or `y`).

    X and Y are sparse but for an X that was written dense.

    Args:
        path: The file.
        labelled: False reads X and the names of features alone, whatever else there is: then Y is
            one label that no row has.

    Raises:
        DataError: With the file and the array: a cut or damaged file, a pickled object, a missing
            array, shapes or indices that do not fit, NaN, a label outside {0, 1}, an empty part.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.npz")
        ...     np.savez(path, X=np.array([[0.0, 1.5], [1.0, 0.0]]), y=np.array([[1, 0], [1, 1]]))
        ...     print(read_npz(path))
        mine: 2 rows, 2 features, 2 labels, cardinality 1.500
    """
    file = os.fspath(path)
    arrays = _load(file)
    meta = _meta(arrays.get("meta_json"), file)
    try:
        if not labelled:
            arrays = {key: array for key, array in arrays.items() if key in _UNLABELLED}
        X = _matrix(arrays, "X")
        (rows, _) = cast(tuple[int, int], X.shape)  # unknown to the types of sparse arrays
        Y = _matrix(arrays, "Y") if labelled else sparse.csr_array((rows, 1), dtype=np.int8)
        if "label_names" not in arrays and "Y_data" in arrays:
            raise _missing("label_names")
        return MultiLabelData(
            X=X,
            Y=Y,
            label_names=_names(arrays, "label_names"),
            feature_names=_names(arrays, "feature_names"),
            splits=_splits(arrays, rows),
            name=str(meta.get("name", Path(file).stem)),
            meta=meta,
        )
    except DataError as error:
        raise DataError(error.reason, file) from error


def write_npz(data: MultiLabelData, path: str | os.PathLike[str]) -> None:
    """Write a data set in the compact form, whole or not at all.

    The file is written beside its place and then renamed: a reader never sees half of it, and a
    full disk leaves an older file as it was. A dense X comes back as CSR.

    Args:
        data: What to write; `meta` must be JSON values, and no split may have the name of another
            array of the form.
        path: The file; its folder must exist.

    Raises:
        DataError: A split or `meta` cannot be written in the form.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> data = MultiLabelData(X=[[0.0, 1.5]], Y=[[1, 0, 1]], name="toy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "toy.npz")
        ...     write_npz(data, path)
        ...     print(read_npz(path))
        toy: 1 rows, 2 features, 3 labels, cardinality 2.000
    """
    arrays: dict[str, NDArray[Any]] = {}
    for key, matrix in (("X", sparse.csr_array(data.X)), ("Y", data.Y)):
        parts = (matrix.data, matrix.indices, matrix.indptr, np.array(matrix.shape, dtype=np.int64))
        arrays |= {f"{key}_{part}": value for part, value in zip(_PARTS, parts, strict=True)}
    arrays["label_names"] = np.array(data.label_names, dtype=np.str_)
    arrays["feature_names"] = np.array(data.feature_names, dtype=np.str_)
    try:
        arrays["meta_json"] = np.array(json.dumps({**data.meta, "name": data.name}))
    except TypeError as error:
        raise DataError(f"meta is not made of JSON values: {error}") from error
    for key, split in data.splits.items():
        if key in _RESERVED or key.endswith("_names"):
            raise DataError(f"a split cannot be called {key!r} in a file; rename it")
        arrays[key] = split.parts
        arrays[f"{key}_names"] = np.array(split.names, dtype=np.str_)
    _save(Path(path), arrays)


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    check_folder(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)  # the name that the caller knows
        raise


def _load(file: str) -> dict[str, NDArray[Any]]:
    with open(file, "rb") as stream:
        try:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            return {key: archive[key] for key in archive.files}
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"not a whole .npz data set ({error}); it is cut, damaged or holds pickled objects",
                file,
            ) from error


def _meta(value: NDArray[Any] | None, file: str) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        meta = json.loads(str(value))
    except ValueError as error:
        raise DataError(f"meta_json is not JSON: {error}", file) from error
    if not isinstance(meta, dict):
        raise DataError(f"meta_json is a {type(meta).__name__}; wanted an object", file)
    return meta


def _matrix(arrays: Mapping[str, NDArray[Any]], key: str) -> sparse.csr_array | NDArray[Any]:
    """The dense array, or the sparse one that four arrays make."""
    dense = [name for name in _DENSE[key] if name in arrays]
    parts = [f"{key}_{part}" for part in _PARTS]
    if not dense:
        absent = [part for part in parts if part not in arrays]
        if absent:
            raise _missing(absent[0], "" if len(absent) < len(parts) else key)
        return _sparse(arrays, key)
    twice = [*dense, *(part for part in parts if part in arrays)]
    if len(twice) > 1:
        raise DataError(f"{twice[0]!r} and {twice[1]!r} are both there; wanted one of them")
    array = arrays[dense[0]]
    if array.ndim != 2:
        columns = "d features" if key == "X" else "L labels, each 0 or 1"
        raise DataError(
            f"{dense[0]} has shape {list(array.shape)}; wanted a matrix with a row for each "
            f"example and {columns}"
        )
    return array


def _missing(name: str, dense: str = "") -> DataError:
    either = f" (or {dense!r}, dense)" if dense else ""
    return DataError(
        f"no array {name!r}{either}; this is not a data set, or half of one; "
        "structured.data.write_npz makes one of arrays, `structured data convert` of files"
    )


def _sparse(arrays: Mapping[str, NDArray[Any]], key: str) -> sparse.csr_array:
    data, indices, bounds, shape = (arrays[f"{key}_{part}"] for part in _PARTS)
    for part, array in (("indices", indices), ("indptr", bounds), ("shape", shape)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"{key}_{part} has dtype {array.dtype}, shape {list(array.shape)}; "
                "wanted a vector of integers"
            )
    if shape.size != 2 or shape.min() < 1 or shape.max() >= 2**31:
        raise DataError(f"{key}_shape is {shape.tolist()}; wanted [rows, columns]")
    rows, columns = int(shape[0]), int(shape[1])
    if data.shape != indices.shape or data.ndim != 1:
        raise DataError(
            f"{key}_data has shape {list(data.shape)}, {key}_indices "
            f"{list(indices.shape)}; they must agree"
        )
    steps = np.diff(bounds.astype(np.int64))
    if bounds.size != rows + 1 or bounds[0] != 0 or bounds[-1] != data.size or (steps < 0).any():
        raise DataError(
            f"{key}_indptr does not cut {data.size} values into {rows} rows: it must "
            "have one entry more than rows, start at 0, never fall and end there"
        )
    outside = np.flatnonzero((indices < 0) | (indices >= columns))
    if outside.size:
        row = int(np.searchsorted(bounds, outside[0], side="right")) - 1
        raise DataError(
            f"{key}_indices has {indices[outside[0]]} in row {row}; with {columns} "
            f"columns it is 0 to {columns - 1}"
        )
    parts = (data, indices.astype(np.int32), bounds.astype(np.int32))
    return sparse.csr_array(parts, shape=(rows, columns))


def _names(arrays: Mapping[str, NDArray[Any]], key: str) -> tuple[str, ...]:
    if key not in arrays:
        return ()
    names = arrays[key]
    if names.ndim != 1 or (names.size and names.dtype.kind != "U"):
        raise DataError(f"{key} has dtype {names.dtype}, shape {list(names.shape)}; wanted texts")
    return tuple(names.tolist())


def _splits(arrays: Mapping[str, NDArray[Any]], rows: int) -> dict[str, Split]:
    splits = {}
    for key, parts in arrays.items():
        if key in _KNOWN or key.endswith("_names"):
            continue
        if parts.shape != (rows,) or parts.dtype.kind not in "iub":
            raise DataError(
                f"{key} has dtype {parts.dtype}, shape {list(parts.shape)}; a split is "
                f"a vector of {rows} integers"
            )
        stem = next((s for s in (key, key.split("_")[0]) if f"{s}_names" in arrays), None)
        if stem is None:
            values, parts = np.unique(parts, return_inverse=True)
            names = tuple(str(value).lower() for value in values.tolist())
        else:
            names = tuple(
                "validation" if name == "valid" else name
                for name in _names(arrays, f"{stem}_names")
            )
        try:
            splits[key] = Split(parts, names)
        except DataError as error:
            raise DataError(f"{key}: {error.reason}") from error
    return splits
