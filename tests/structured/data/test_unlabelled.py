"""Rows whose labels are not known, in the forms in which they are written."""

from __future__ import annotations

import numpy as np
import pytest

from structured.data import read_arff, read_libsvm, read_npz
from structured.errors import DataError

HEADER = """\
@relation toy
@attribute size numeric
@attribute sea {0,1}
@attribute 'the sky' {no,yes}
@attribute age numeric
@data
"""


@pytest.mark.parametrize("label", ["", "?", "-1", "1.5", "2,2", "1_0", "sea"])
def test_whatever_stands_for_the_labels_of_a_libsvm_row_is_passed_over(tmp_path, label):
    path = tmp_path / "t.svm"
    path.write_text(f"{label} 1:2 3:1 # {label}\n1 2:5\n")
    data = read_libsvm(path, n_features=3, labelled=False)
    np.testing.assert_array_equal(data.dense()[0], [[2, 0, 1], [0, 5, 0]])
    assert data.Y.nnz == 0


def test_values_of_rows_without_labels_are_checked_as_all_others(tmp_path):
    path = tmp_path / "t.svm"
    path.write_text("? 1:2\n? 1:x\n")
    with pytest.raises(DataError, match="wanted 'index:value', found '1:x'") as caught:
        read_libsvm(path, labelled=False)
    assert caught.value.line == 2


@pytest.mark.parametrize(
    "rows",
    [
        "1,?,?,2\n3,?,?,4\n",
        "1,0,no,2\n3,7,perhaps,4\n",
        "{0 1, 1 ?, 2 ?, 3 2}\n{0 3, 3 4}\n",
        "{0 1, 2 yes, 3 2}\n{0 3, 3 4}\n",
    ],
)
def test_attributes_of_an_arff_file_can_be_left_out_whatever_their_cells_hold(tmp_path, rows):
    path = tmp_path / "t.arff"
    path.write_text(HEADER + rows)
    table = read_arff(path, without=["sea", "the sky", "not there"])
    assert [attribute.name for attribute in table.attributes] == ["size", "age"]
    values = table.values if isinstance(table.values, np.ndarray) else table.values.toarray()
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


def test_an_attribute_is_left_out_by_its_name_with_escapes_or_without(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text("@attribute x real\n@attribute 'm\\'usica' {0,1}\n@data\n1,?\n")
    for name in ("m'usica", "m\\'usica"):
        assert len(read_arff(path, without=[name]).attributes) == 1


def test_a_missing_value_of_an_attribute_that_is_read_is_refused_beside_labels_that_are_not(
    tmp_path,
):
    path = tmp_path / "t.arff"
    path.write_text(HEADER + "1,?,?,2\n?,?,?,4\n")
    with pytest.raises(DataError, match="attribute 'size' is missing") as caught:
        read_arff(path, without=["sea", "the sky"])
    assert caught.value.line == 8


def test_a_first_category_other_than_0_does_not_matter_where_it_is_left_out(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text("@attribute x real\n@attribute sea {1,0}\n@data\n{0 5}\n")
    values = read_arff(path, without=["sea"]).values
    assert not isinstance(values, np.ndarray)
    np.testing.assert_array_equal(values.toarray(), [[5]])


@pytest.mark.parametrize(
    "others",
    [{}, {"Y": np.full((2, 3), np.nan)}, {"y": np.array([1, 2, 3])}, {"ids": np.array(["a"])}],
    ids=["alone", "unknown", "a vector", "something else"],
)
def test_an_npz_of_features_is_read_whatever_else_it_holds(tmp_path, others):
    path = tmp_path / "t.npz"
    X = np.array([[1.0, 0], [0, 2]])
    np.savez(path, X=X, feature_names=np.array(["size", "age"]), **others)
    data = read_npz(path, labelled=False)
    np.testing.assert_array_equal(data.X, X)
    assert data.feature_names == ("size", "age")
    assert data.Y.nnz == 0
