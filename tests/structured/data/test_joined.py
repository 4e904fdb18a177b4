"""Joining two parts of one set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from structured.data import MultiLabelData, Split, carve, joined
from structured.errors import DataError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 3)).astype(np.float32), RNG.integers(0, 2, size=(7, 2))


def _part(rows: slice, container: Any = np.asarray, **options: Any) -> MultiLabelData:
    return MultiLabelData(container(X[rows]), Y[rows], **options)


@pytest.mark.parametrize("first", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("second", [np.asarray, sparse.csr_array])
def test_the_rows_of_the_second_part_follow_those_of_the_first(first: Any, second: Any) -> None:
    found = joined(_part(slice(0, 4), first), _part(slice(4, 7), second))
    assert sparse.issparse(found.X) == (sparse.csr_array in (first, second))
    np.testing.assert_array_equal(found.dense()[0], X)
    np.testing.assert_array_equal(found.dense()[1], Y)


def test_what_was_carved_out_and_joined_again_has_every_row_once() -> None:
    names = ("a", "b", "c")
    whole = MultiLabelData(np.arange(21.0).reshape(7, 3), Y, ("p", "q"), names, name="toy")
    found = joined(*carve(whole, 0.3))
    assert sorted(found.dense()[0][:, 0]) == sorted(whole.dense()[0][:, 0])
    assert (found.label_names, found.feature_names) == (("p", "q"), names)
    assert found.title == "toy (all rows, validation 0.3, seed 0/train + validation)"


def test_splits_are_left_behind_as_they_are_of_other_rows() -> None:
    split = Split([0, 1, 0, 1], ("train", "test"))
    part = _part(slice(0, 4), splits={"halves": split})
    assert joined(part, part).splits == {}


@pytest.mark.parametrize(
    "other",
    [
        MultiLabelData(X[:, :2], Y),
        MultiLabelData(X, Y[:, :1]),
        MultiLabelData(X, Y, label_names=("1", "0")),
        MultiLabelData(X, Y, feature_names=("a", "c", "b")),
    ],
    ids=["fewer features", "fewer labels", "labels named otherwise", "columns in another order"],
)
def test_parts_of_different_sets_are_refused(other: MultiLabelData) -> None:
    first = MultiLabelData(X, Y, feature_names=("a", "b", "c"))
    for pair in ((first, other), (other, first)):
        with pytest.raises(DataError, match="differ in features or labels; wanted parts of one"):
            joined(*pair)


def test_names_of_features_that_one_part_alone_has_are_no_difference() -> None:
    named = MultiLabelData(X, Y, feature_names=("a", "b", "c"))
    assert joined(named, MultiLabelData(X, Y)).feature_names == ("a", "b", "c")
    assert joined(MultiLabelData(X, Y), named).n_rows == 14
