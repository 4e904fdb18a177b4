"""The rows that an estimator is fitted on, checked: to train on, and to validate on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data

from structured._indicators import check_indicators, check_no_sets
from structured.data import MultiLabelData
from structured.errors import DataError

Indicators: TypeAlias = tuple[bool, str]
"""Whether the labels were sparse, and their dtype: what predictions are given in."""

Center: TypeAlias = "NDArray[np.float64] | None"
"""What is subtracted from features before they are rounded to single precision, ``[D]``."""

_FAR = 1000.0  # deviations: a mean so far from 0 leaves an error of 6e-5 of them in float32


def training_rows(
    estimator: BaseEstimator, X: Any, y: Any, standardize: bool
) -> tuple[MultiLabelData, Indicators, Center]:
    """Return the rows of `fit`, and how they came; the estimator notes X's columns.

    Args:
        estimator: that is fitted.
        X: features, sparse or dense, ``[n, D]``.
        y: 0 or 1, sparse or dense, ``[n, L]``.
        standardize: take off the means that are so large that single precision would not tell the
            rows apart; those of sparse features stay.

    Returns:
        The rows, how the labels came, and what was taken off.

    Raises:
        ValueError: They are no features or no indicators, or fewer than two rows.
    """
    dtype = _DOUBLE if standardize else np.float32
    X, y = _checked(estimator, X, y, dtype=dtype, reset=True, ensure_min_samples=2)
    center = _center(X) if standardize and not sparse.issparse(X) else None
    rows = MultiLabelData(_single(X, center), y, name="X")
    return rows, (bool(sparse.issparse(y)), y.dtype.str), center


def prediction_rows(estimator: BaseEstimator, X: Any, center: Center) -> Any:
    """Return features to predict from in single precision, sparse or dense, ``[n, D]``.

    Args:
        estimator: that has noted the columns of `fit`.
        X: features, sparse or dense, ``[n, D]``.
        center: as `training_rows` returned it.

    Raises:
        ValueError: They are no features, or other columns.
    """
    dtype = np.float32 if center is None else _DOUBLE
    rows = validate_data(estimator, X, reset=False, accept_sparse="csr", dtype=dtype)
    return _single(rows, center)


def validation_rows(
    estimator: BaseEstimator,
    validation: Any,
    n_labels: int,
    names: NDArray[Any] | None,
    center: Center,
) -> MultiLabelData:
    """Return the rows of `fit`'s ``validation``, which must have the columns of X and y.

    Args:
        estimator: that has noted X's columns.
        validation: a pair, features ``[m, D]`` and labels ``[m, L]``.
        n_labels: of y, L.
        names: of y's columns, as `column_names` returns them; compared if both have some.
        center: as `training_rows` returned it.

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
        dtype = np.float32 if center is None else _DOUBLE
        X, y = _checked(estimator, X, y, dtype=dtype, reset=False)
        rows = MultiLabelData(_single(X, center), y, name="validation")
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


def values_of_labels(count: int) -> NDArray[np.int64]:
    """Return the values that each label can take, as an estimator's ``classes_``, ``[L, 2]``.

    Example:
        >>> values_of_labels(3).tolist()
        [[0, 1], [0, 1], [0, 1]]
    """
    return np.tile(np.array([0, 1], dtype=np.int64), (count, 1))


def _checked(estimator: BaseEstimator, X: Any, y: Any, **options: Any) -> Any:
    check_no_sets(y)
    X, y = validate_data(estimator, X, y, accept_sparse="csr", multi_output=True, **options)
    check_indicators(y)
    return X, y


# What is in single precision has lost its digits already.
_DOUBLE = (np.float64, np.float32)


def _center(X: NDArray[Any]) -> Center:
    with np.errstate(over="ignore", invalid="ignore"):  # such features are refused by `_single`
        mean, deviation = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    # A constant has the rounding of its mean for a deviation.
    varies = deviation > X.shape[0] * np.finfo(np.float64).eps * abs(mean)
    far = varies & (abs(mean) > _FAR * deviation)
    return np.where(far, mean, 0.0) if far.any() else None


def _single(X: Any, center: Center) -> Any:
    if center is not None:
        X = (X.toarray() if sparse.issparse(X) else X) - center
    # scikit-learn's own annotations are narrower than what it takes.
    options: Any = {"accept_sparse": "csr", "dtype": np.float32}
    return check_array(X, input_name="X", **options)
