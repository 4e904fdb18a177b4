"""The data type: what it accepts, what it refuses, and how it is cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy import sparse

from structured.data import MultiLabelData, Split
from structured.errors import DataError

X = np.arange(12.0).reshape(4, 3)
Y = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])


def toy(**changes) -> MultiLabelData:
    arguments = {"X": X, "Y": Y, "name": "toy"} | changes
    return MultiLabelData(**arguments)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
def test_sparse_tables_of_any_form_become_canonical_csr(form):
    data = toy(X=form(X), Y=form(Y))
    assert isinstance(data.X, sparse.csr_array)
    assert data.X.dtype == np.float32
    assert data.X.indices.dtype == data.X.indptr.dtype == np.int32
    assert data.X.has_canonical_format
    np.testing.assert_array_equal(data.X.toarray(), X)
    np.testing.assert_array_equal(data.Y.toarray(), Y)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_labels_of_any_number_type_become_int8(dtype):
    data = toy(Y=Y.astype(dtype))
    assert data.Y.dtype == np.int8
    np.testing.assert_array_equal(data.Y.toarray(), Y)


def test_the_arrays_of_the_caller_stay_as_they_were():
    X_given = sparse.csr_array((np.array([0.0, 2.0]), np.array([2, 0]), np.array([0, 2])), (1, 3))
    Y_given = sparse.csr_array((np.array([0, 1]), np.array([1, 0]), np.array([0, 2])), (1, 2))
    before = copy.deepcopy((X_given.data, X_given.indices, Y_given.data, Y_given.indices))
    data = MultiLabelData(X=X_given, Y=Y_given)
    assert data.statistics()["nonzeros"] == 1 / 3
    assert data.Y.nnz == 1
    for now, then in zip(
        (X_given.data, X_given.indices, Y_given.data, Y_given.indices), before, strict=True
    ):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.where(X == 7, np.nan, X)}, r"X\[2, 1\] is nan"),
        ({"X": sparse.csr_array(np.where(X == 7, np.inf, X))}, r"X\[2, 1\] is inf"),
        ({"X": X * 1e39}, r"X\[0, 1\] is inf in float32"),
        ({"X": X[:3]}, "X has 3 rows and Y has 4"),
        ({"X": X[0]}, r"X has shape \[3\]; wanted two dimensions"),
        ({"X": np.array([["a"]])}, "X has dtype <U1; wanted numbers"),
        ({"X": X[:, :0]}, "at least one row, one feature and one label"),
        ({"X": X[:0], "Y": Y[:0]}, "at least one row"),
        ({"Y": Y * 2}, r"Y\[0, 0\] is 2; labels are 0 or 1"),
        ({"Y": -sparse.csr_array(Y)}, r"Y\[0, 0\] is -1"),
        ({"Y": np.where(Y, np.nan, 0)}, r"Y\[0, 0\] is nan"),
        ({"Y": Y[:, 0]}, "Y has shape"),
        ({"label_names": ["a"]}, "label_names has 1 names"),
        ({"feature_names": ["a"]}, "feature_names has 1 names; X has 3"),
        ({"splits": {"s": Split([0, 1], "ab")}}, "split 's' is for 2 rows; X has 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(changes, message):
    with pytest.raises(DataError, match=message):
        toy(**changes)


@pytest.mark.parametrize("argument", ["label_names", "feature_names"])
def test_names_that_are_not_different_are_refused_and_named(argument):
    names = ["len", "len", "w"][: 2 if argument == "label_names" else 3]
    with pytest.raises(DataError, match=f"{argument} has more than once: 'len'; columns are found"):
        toy(**{argument: names})
    many = {"X": np.ones((4, 4)), "feature_names": ["len", "w", "len", "w"]}
    with pytest.raises(DataError, match="feature_names has more than once: 'len', 'w'; columns"):
        toy(**many)


@pytest.mark.parametrize("end", ["\t", "\n", "\r", "\x0b", "\x85", "\u2028", "\0"])
@pytest.mark.parametrize("argument", ["label_names", "feature_names"])
def test_a_name_that_would_break_a_line_or_its_cells_is_refused(argument, end):
    names = ["sea", f"sk{end}y", "sand"][: 2 if argument == "label_names" else 3]
    with pytest.raises(DataError, match=f"{argument} has 'sk.*y', a name with a tab, a line end"):
        toy(**{argument: names})


def test_a_label_listed_twice_in_a_row_is_no_label_of_two():
    twice = sparse.csr_array((np.ones(2), np.array([1, 1]), np.array([0, 2])), (1, 2))
    with pytest.raises(DataError, match=r"Y\[0, 1\] is 2"):
        MultiLabelData(X=[[1.0]], Y=twice)


def test_statistics_are_those_counted_by_hand():
    data = toy()
    assert (data.n_rows, data.n_features, data.n_labels) == (4, 3, 2)
    assert data.statistics() == {
        "rows": 4,
        "features": 3,
        "labels": 2,
        "cardinality": 1.0,
        "density": 0.5,
        "unlabelled": 1,
        "label_sets": 4,
        "nonzeros": 11 / 12,
    }
    assert toy(X=sparse.csr_array(X)).statistics() == data.statistics()


@pytest.mark.parametrize("wrap", [np.asarray, sparse.csr_array])
def test_the_parts_of_a_split_hold_their_rows_and_say_where_they_are_from(wrap):
    split = Split([1, 0, -1, 1], ("train", "test"))
    data = toy(X=wrap(X), splits={"half": split}, label_names=("sea", "sky"))
    parts = data.split("half")
    assert list(parts) == ["train", "test"]
    assert split.sizes() == {"train": 1, "test": 2}
    np.testing.assert_array_equal(parts["test"].Y.toarray(), Y[[0, 3]])
    np.testing.assert_array_equal(sparse.csr_array(parts["test"].X).toarray(), X[[0, 3]])
    assert parts["test"].title == "toy (half/test)"
    assert parts["test"].label_names == ("sea", "sky")
    assert not parts["test"].splits


def test_an_unknown_split_or_part_lists_the_known_ones():
    data = toy(splits={"half": Split([0, 0, 1, 1], ("train", "test"))})
    with pytest.raises(DataError, match="toy has no split 'third'; its splits: half"):
        data.split("third")
    with pytest.raises(DataError, match="no part 'dev'"):
        data.splits["half"].rows("dev")
    with pytest.raises(DataError, match="its splits: none"):
        toy().split("half")


def test_a_subset_takes_numbers_or_a_mask_and_is_never_empty():
    np.testing.assert_array_equal(toy().subset([3, 0]).X, X[[3, 0]])
    np.testing.assert_array_equal(toy().subset([True, False, False, True]).X, X[[0, 3]])
    with pytest.raises(DataError, match="an empty subset of toy"):
        toy().subset([])


def test_adding_a_split_leaves_the_data_without_it_alone():
    data = toy()
    more = data.with_split("half", Split([0, 0, 1, 1], ("train", "test")))
    assert list(more.splits) == ["half"]
    assert not data.splits


@pytest.mark.parametrize(
    ("parts", "names", "message"),
    [
        ([0, 1, 0], ("train",), "row 1 is in part 1"),
        ([0, -2], ("train",), "row 1 is in part -2"),
        ([0, 0], ("train", "test"), "part 'test' of the split is empty"),
        ([0, 1], ("train", "train"), "different part names"),
        ([-1], (), "1 to 127 different part names"),
        ([[0]], ("train",), "a vector of integers"),
        ([0.0], ("train",), "dtype float64"),
    ],
)
def test_a_split_that_is_none_is_refused(parts, names, message):
    with pytest.raises(DataError, match=message):
        Split(parts, names)


def test_the_parts_of_a_split_cannot_be_written_to():
    split = Split([0, 1], ("train", "test"))
    with pytest.raises(ValueError, match="read-only"):
        split.parts[0] = 1
