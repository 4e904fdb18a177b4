"""A short proof that two data sets hold the same rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from structured.data.multilabel import MultiLabelData


def data_fingerprint(data: MultiLabelData) -> str:
    """Return the SHA-256 of a data set's rows, in order, and of its label names.

    Names of the set, its splits and its features do not count. A dense and a sparse table of the
    same numbers are different: sums over them may differ in the last bit.

    Example:
        >>> one = MultiLabelData(X=[[1.0]], Y=[[1]], name="one")
        >>> other = MultiLabelData(X=[[1.0]], Y=[[1]], name="other")
        >>> data_fingerprint(one) == data_fingerprint(other)
        True
    """
    digest = hashlib.sha256("\n".join(data.label_names).encode())
    tables: tuple[Any, ...] = (data.X, data.Y)
    for table in tables:
        arrays = (
            [table] if isinstance(table, np.ndarray) else [table.data, table.indices, table.indptr]
        )
        digest.update(f"\n{tuple(table.shape)}".encode())
        for array in arrays:
            # Little-endian everywhere, so that a run can move between machines.
            values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"\n{values.dtype.str} {values.size}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()
