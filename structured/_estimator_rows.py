"""The rows that an estimator is fitted on, checked: to train on, and to validate on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from structured._indicators import check_indicators, check_no_sets
from structured.data import MultiLabelData
from structured.errors import DataError

Indicators: TypeAlias = tuple[bool, str]
"""Whether the labels were sparse, and their dtype: what predictions are given in."""


def training_rows(estimator: BaseEstimator, X: Any, y: Any) -> tuple[MultiLabelData, Indicators]:
    """Return the rows of `fit`, and how their labels came; the estimator notes X's columns.

    Args:
        estimator: that is fitted.
        X: features, sparse or dense, ``[n, D]``.
        y: 0 or 1, sparse or dense, ``[n, L]``.

    Raises:
        ValueError: They are no features or no indicators, or fewer than two rows.
    """
    X, y = _checked(estimator, X, y, reset=True, ensure_min_samples=2)
    return MultiLabelData(X, y, name="X"), (bool(sparse.issparse(y)), y.dtype.str)


def validation_rows(
    estimator: BaseEstimator, validation: Any, n_labels: int, names: NDArray[Any] | None
) -> MultiLabelData:
    """Return the rows of `fit`'s ``validation``, which must have the columns of X and y.

    Args:
        estimator: that has noted X's columns.
        validation: a pair, features ``[m, D]`` and labels ``[m, L]``.
        n_labels: of y, L.
        names: of y's columns, as `column_names` returns them; compared if both have some.

    Raises:
        DataError: It is no such pair, or has other columns.
    """
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise DataError(
            f"validation: found a {type(validation).__name__}, wanted a pair, the features and the "
            "labels of rows to validate on: (X_validation, y_validation)"
        )
    X, y = validation
    found = column_names(y)
    try:
        X, y = _checked(estimator, X, y, reset=False)
        rows = MultiLabelData(X, y, name="validation")
    except ValueError as error:
        raise DataError(f"validation: {error}") from error
    if rows.n_labels != n_labels:
        raise DataError(f"validation: found {rows.n_labels} labels, wanted those of y, {n_labels}")
    if found is not None and names is not None and list(found) != list(names):
        place = next(k for k in range(n_labels) if found[k] != names[k])
        raise DataError(
            f"validation: found the label {found[place]!r} in column {place}, where y has "
            f"{names[place]!r}; wanted y's columns in y's order"
        )
    return rows


def column_names(table: Any) -> NDArray[Any] | None:
    """Return the names of a data frame's columns as ``feature_names_in_`` has those of X.

    Args:
        table: a data frame, or a table without names.

    Returns:
        The names, ``[L]``; None unless all columns have texts for names.

    Example:
        >>> column_names(np.eye(2)) is None
        True
    """
    columns = getattr(table, "columns", None)
    names = [] if columns is None else list(columns)
    if not names or not all(isinstance(name, str) for name in names):
        return None
    return np.array([str(name) for name in names], dtype=object)


def _checked(estimator: BaseEstimator, X: Any, y: Any, **options: Any) -> Any:
    check_no_sets(y)
    X, y = validate_data(
        estimator, X, y, accept_sparse="csr", dtype=np.float32, multi_output=True, **options
    )
    check_indicators(y)
    return X, y
