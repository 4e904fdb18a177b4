"""Splitting rows so that every part has its share of every label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from structured.data.multilabel import MultiLabelData, Split
from structured.errors import DataError

THREE_PARTS = ("train", "validation", "test")


def iterative_stratification(
    Y: sparse.sparray | sparse.spmatrix | ArrayLike, sizes: Sequence[int], seed: int = 0
) -> NDArray[np.int8]:
    """Assign rows to parts of given sizes, each label as evenly as its rarity allows.

    Labels are served from the rarest (fewest rows not yet assigned; the first of equals) on. Its
    rows, in random order, each go to the part that still wants most rows of that label, then to
    the part that still wants most rows, then to the first. Rows without labels fill what is left.
    Unlike the paper's, a part that is full takes no more, so the sizes are exact.

    Args:
        Y: Shape [n, L], sparse or dense; what is not 0 is a label.
        sizes: The number of rows of each part, adding up to n.
        seed: Of the order of the rows of a label.

    Returns:
        Shape [n], int8: the part of every row, an index into `sizes`.

    Raises:
        DataError: The sizes are not positive or do not add up to n.

    References:
        Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data",
        algorithm 1.

    Example:
        >>> Y = [[1, 0], [1, 0], [0, 1], [0, 1], [1, 1], [1, 1]]
        >>> parts = iterative_stratification(Y, [3, 3], seed=0)
        >>> [np.array(Y)[parts == part].sum(axis=0).tolist() for part in (0, 1)]
        [[2, 2], [2, 2]]
    """
    rows_of, labels_of = _both_ways(Y)
    n = len(labels_of)
    if sum(sizes) != n or min(sizes, default=0) < 1 or len(sizes) > 127:
        raise DataError(f"sizes {list(sizes)} must be positive, at most 127, and add up to {n}")
    rng = np.random.default_rng(seed)
    wanted = np.array(sizes, dtype=np.float64)
    remaining = np.array([rows.size for rows in rows_of], dtype=np.int64)
    wanted_of_label = np.outer(wanted / n, remaining)
    parts = np.full(n, -1, dtype=np.int8)
    while remaining.any():
        label = int(np.argmin(np.where(remaining > 0, remaining, n + 1)))
        open_rows = rows_of[label][parts[rows_of[label]] < 0]
        for row in rng.permutation(open_rows):
            demand = np.where(wanted > 0, wanted_of_label[:, label], -np.inf)
            best = np.flatnonzero(demand == demand.max())
            part = int(best[np.argmax(wanted[best])])
            parts[row] = part
            wanted[part] -= 1
            wanted_of_label[part, labels_of[row]] -= 1
            remaining[labels_of[row]] -= 1
    for row in np.flatnonzero(parts < 0):
        part = int(np.argmax(wanted))
        parts[row] = part
        wanted[part] -= 1
    return parts


def stratified(
    data: MultiLabelData,
    sizes: Sequence[int],
    names: Sequence[str] = THREE_PARTS,
    *,
    rows: ArrayLike | None = None,
    seed: int = 0,
) -> Split:
    """Return a split of a data set by `iterative_stratification`.

    Args:
        data: The data set.
        sizes: The rows of each part.
        names: The name of each part.
        rows: The rows to share out, numbers or a mask, by default all; the others are in no part.
        seed: Of the stratification.

    Raises:
        DataError: The sizes do not add up to the number of rows.

    Example:
        >>> data = MultiLabelData(X=np.eye(4), Y=[[1, 0], [1, 0], [0, 1], [0, 1]])
        >>> stratified(data, [2, 2], ("a", "b")).sizes()
        {'a': 2, 'b': 2}
    """
    chosen = np.arange(data.n_rows)[slice(None) if rows is None else np.asarray(rows)]
    parts = np.full(data.n_rows, -1, dtype=np.int8)
    parts[chosen] = iterative_stratification(data.Y[chosen], sizes, seed)
    return Split(parts, names)


def shares(n: int, fractions: Sequence[float]) -> list[int]:
    """Return whole sizes that add up to n, in the given proportions, none empty.

    Every part gets its share rounded down, and what is left goes to the largest remainders.

    Args:
        n: The number of rows.
        fractions: Positive numbers; only their proportions count.

    Raises:
        DataError: A fraction is not positive, or there are fewer rows than parts.

    Example:
        >>> shares(11, [0.6, 0.2, 0.2])
        [7, 2, 2]
    """
    if not fractions or min(fractions) <= 0:
        raise DataError(f"fractions must be positive; found {list(fractions)}")
    if n < len(fractions):
        raise DataError(f"{n} rows cannot fill {len(fractions)} parts")
    exact = np.array(fractions, dtype=np.float64) * (n / sum(fractions))
    sizes = np.maximum(np.floor(exact), 1).astype(np.int64)
    while sizes.sum() > n:  # lifting empty parts to one row took too many
        sizes[np.argmax(sizes)] -= 1
    for part in np.argsort(sizes - exact, kind="stable")[: n - sizes.sum()]:
        sizes[part] += 1
    return sizes.tolist()


def carve(
    train: MultiLabelData, fraction: float, seed: int = 0
) -> tuple[MultiLabelData, MultiLabelData]:
    """Take a validation part out of a training part, for a set that comes without one.

    Args:
        train: The rows to share out.
        fraction: The share of the validation part, between 0 and 1.
        seed: Of the stratification.

    Returns:
        What is left for training, and the validation part. Both say in `title` how they were made.

    Raises:
        DataError: The fraction is not between 0 and 1, or there are fewer than two rows.

    Example:
        >>> data = MultiLabelData(X=np.eye(4), Y=[[1, 0], [1, 0], [0, 1], [0, 1]], name="toy")
        >>> rest, validation = carve(data, 0.5)
        >>> print(validation.title)
        toy (all rows, validation 0.5, seed 0/validation)
    """
    _check_fraction(fraction)
    sizes = shares(train.n_rows, [1 - fraction, fraction])
    split = stratified(train, sizes, ("train", "validation"), seed=seed)
    made = f"{train.meta.get('split', 'all rows')}, validation {fraction:g}, seed {seed}"
    rest, validation = (
        train.subset(split.rows(part), split=made, part=part) for part in split.names
    )
    return rest, validation


def same_columns(first: MultiLabelData, second: MultiLabelData) -> bool:
    """Return whether two sets agree in labels and features, by name where both name them.

    Example:
        >>> data = MultiLabelData(X=np.eye(2), Y=np.eye(2), feature_names=("a", "b"))
        >>> turned = MultiLabelData(X=np.eye(2), Y=np.eye(2), feature_names=("b", "a"))
        >>> same_columns(data, data), same_columns(data, turned)
        (True, False)
    """
    names = {part.feature_names for part in (first, second) if part.feature_names}
    same = (first.n_features, first.label_names) == (second.n_features, second.label_names)
    return same and len(names) < 2


def joined(first: MultiLabelData, second: MultiLabelData) -> MultiLabelData:
    """Return the rows of two parts of one set, the first's first; without splits.

    The features are sparse if those of either part are.

    Args:
        first: one part.
        second: another, with the same features and labels.

    Raises:
        DataError: They differ in features or labels.

    Example:
        >>> data = MultiLabelData(X=np.eye(4), Y=[[1, 0], [1, 0], [0, 1], [0, 1]], name="toy")
        >>> print(joined(*carve(data, 0.5)).title)
        toy (all rows, validation 0.5, seed 0/train + validation)
    """
    if not same_columns(first, second):
        raise DataError(
            f"{first.title} and {second.title} differ in features or labels; wanted parts of one "
            "set"
        )
    X: Any = [first.X, second.X]
    if any(map(sparse.issparse, X)):
        X = sparse.vstack([sparse.csr_array(part) for part in X])
    else:
        X = np.concatenate(X)
    parts = [str(part.meta["part"]) for part in (first, second) if "part" in part.meta]
    meta = {**first.meta, "part": " + ".join(parts)} if parts else dict(first.meta)
    return replace(
        first,
        X=X,
        Y=sparse.vstack([first.Y, second.Y]),
        splits={},
        meta=meta,
    )


def train_validation_test(
    data: MultiLabelData, split: str, *, fraction: float = 0.2, seed: int = 0
) -> tuple[MultiLabelData, MultiLabelData, MultiLabelData]:
    """Return the three parts of a split; if it has no validation part, carve one from training.

    Args:
        data: The data set.
        split: The name of one of its splits, with the parts train and test, and maybe validation.
        fraction: The share of training rows to carve, if there is no validation part.
        seed: Of the carving.

    Raises:
        DataError: There is no such split, it has other parts, or the fraction, needed or not, is
            not between 0 and 1.

    Example:
        >>> split = Split([0, 0, 0, 0, 1], ("train", "test"))
        >>> data = MultiLabelData(X=np.eye(5), Y=np.ones((5, 1)), splits={"official": split})
        >>> for part in train_validation_test(data, "official", fraction=0.25):
        ...     print(part.title, part.n_rows)
        data (official, validation 0.25, seed 0/train) 3
        data (official, validation 0.25, seed 0/validation) 1
        data (official/test) 1
    """
    _check_fraction(fraction)
    parts = data.split(split)
    if set(parts) == {"train", "test"}:
        return (*carve(parts["train"], fraction, seed), parts["test"])
    if set(parts) == set(THREE_PARTS):
        return parts["train"], parts["validation"], parts["test"]
    raise DataError(
        f"split {split!r} of {data.name} has the parts {list(parts)}; wanted train and test, with "
        "or without validation"
    )


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(f"fraction must be between 0 and 1; found {fraction}")


def _both_ways(Y: Any) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The rows of every label and the labels of every row, ascending."""
    by_row = sparse.csr_array(Y, copy=True)
    by_row.eliminate_zeros()
    by_row.sort_indices()
    by_label = by_row.tocsc()
    return (
        np.split(by_label.indices, by_label.indptr[1:-1]),
        np.split(by_row.indices, by_row.indptr[1:-1]),
    )
