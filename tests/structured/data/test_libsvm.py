"""The LIBSVM reader on good and bad files."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from structured.data import read_libsvm
from structured.errors import DataError


def data(tmp_path, text: str, **options):
    path = tmp_path / "t.txt"
    path.write_text(text)
    return read_libsvm(path, **options)


def test_rows_with_many_one_and_no_labels_are_read(tmp_path):
    read = data(tmp_path, "1,3 1:0.5 4:-2e1\n 2:1\n2:7 # no label either\n2 1:1\n")
    np.testing.assert_array_equal(
        read.dense()[0], [[0.5, 0, 0, -20], [0, 1, 0, 0], [0, 7, 0, 0], [1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(read.dense()[1], [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]])
    assert read.label_names == ("1", "2", "3")
    assert read.name == "t.txt"


def test_a_zero_anywhere_means_counting_from_zero(tmp_path):
    read = data(tmp_path, "0,2 0:1 2:1\n1 1:1\n")
    assert (read.n_features, read.n_labels) == (3, 3)
    np.testing.assert_array_equal(read.dense()[0], [[1, 0, 1], [0, 1, 0]])
    assert read.label_names == ("0", "1", "2")


def test_the_frame_can_be_given_so_that_two_files_agree(tmp_path):
    frame = {"n_features": 5, "n_labels": 4, "features_from": 0, "labels_from": 0}
    read = data(tmp_path, "1 1:1\n", **frame)
    np.testing.assert_array_equal(read.dense()[0], [[0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(read.dense()[1], [[0, 1, 0, 0]])


def test_comments_query_ids_and_empty_lines_at_the_end_are_passed_over(tmp_path):
    read = data(tmp_path, "# made by hand\n1 qid:7 1:2 # last\n\n\r\n\n")
    np.testing.assert_array_equal(read.dense()[0], [[2]])


def test_an_indented_comment_is_no_row(tmp_path):
    read = data(tmp_path, "1 1:2\n   # a note\n\t# another\n2 1:1\n")
    np.testing.assert_array_equal(read.dense()[0], [[2], [1]])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 1:2\n\n2 1:1\n", 2),
        ("# head\n\n1 1:2\n", 2),
        ("\n1 1:2\n", 1),
        ("1 1:2\r\n\r\n \r\n", 2),
        ("1 1:2\n\n# the end\n", 2),
    ],
)
def test_an_empty_line_before_others_is_refused_with_its_line_and_the_fix(tmp_path, text, line):
    with pytest.raises(DataError, match="line is empty; remove it, or write one blank") as caught:
        data(tmp_path, text)
    assert caught.value.line == line


def test_rows_without_labels_and_values_stay_where_scikit_learn_writes_them(tmp_path):
    X = np.array([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    Y = np.array([[1, 0], [0, 0], [0, 0], [0, 0]])
    path = tmp_path / "t.txt"
    dump_svmlight_file(X, Y, str(path), multilabel=True, zero_based=False)
    read = read_libsvm(path, n_features=2, n_labels=2, features_from=1, labels_from=0)
    np.testing.assert_array_equal(read.dense()[0], X)
    np.testing.assert_array_equal(read.dense()[1], Y)


def test_a_blank_line_is_a_row_without_labels_and_features(tmp_path):
    assert data(tmp_path, "1 1:2\n \n2\n").n_rows == 3


def test_a_file_is_read_as_scikit_learn_reads_it(tmp_path):
    text = "1,3 1:0.5 4:-2e1\n2 2:1 3:.25\n3 1:1e-3\n"
    read = data(tmp_path, text)
    X, labels = load_svmlight_file(str(tmp_path / "t.txt"), multilabel=True)
    np.testing.assert_array_equal(read.dense()[0], X.toarray().astype(np.float32))
    ours = [tuple(np.flatnonzero(row) + 1.0) for row in read.dense()[1]]
    assert ours == [tuple(row) for row in labels]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,x 1:2", "wanted a label number, found 'x'"),
        ("1, 1:2", "wanted a label number, found ''"),
        ("1.5 1:2", "wanted a label number, found '1.5'"),
        ("1_0 1:2", "wanted a label number, found '1_0'"),
        ("-1 1:2", "label -1; wanted 0 to 16777215"),
        ("1,1 1:2", "label 1 comes twice"),
        ("2000000000 1:2", "label 2000000000; wanted 0 to 16777215"),
        ("1 x:2", "wanted 'index:value', found 'x:2'"),
        ("1 1:x", "wanted 'index:value', found '1:x'"),
        ("1 1:", "wanted 'index:value', found '1:'"),
        ("1 2", "wanted 'index:value', found '2'"),
        ("1 1:2:3", "wanted 'index:value', found '1:2:3'"),
        ("1 1:1_0", "wanted 'index:value', found '1:1_0'"),
        ("1 1:2 1:3", "index 1 comes twice"),
        ("1 -3:2", "index -3; wanted 0 to"),
        ("1 1:nan", "value nan is not finite in float32"),
        ("1 2:1 3:1e999", "value inf is not finite in float32"),
        ("1 2:1 3:-1e39", r"value -1e\+39 is not finite in float32"),
        ("1 99999999999999999999:1", "index 99999999999999999999; wanted 0 to 2147483646"),
        ("-99999999999999999999 1:1", "label -99999999999999999999; wanted"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        data(tmp_path, f"# head\n2 1:1\n{row}\n1 2:1\n")
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "t.txt"), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 2}, "index 3; counted from 1 it is 1 to 2"),
        ({"n_labels": 4}, "label 5; counted from 1 it is 1 to 4"),
        ({"features_from": 0, "n_features": 3}, "index 3; counted from 0 it is 0 to 2"),
    ],
)
def test_what_is_outside_the_given_frame_is_named_with_its_line(tmp_path, options, message):
    with pytest.raises(DataError, match=message) as caught:
        data(tmp_path, "1 1:1\n5 3:1\n", **options)
    assert caught.value.line == 2


def test_zero_is_outside_a_file_that_counts_from_one(tmp_path):
    with pytest.raises(DataError, match="index 0; counted from 1"):
        data(tmp_path, "1 0:1\n", features_from=1)


def test_a_base_that_is_neither_0_nor_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="features_from is 0, 1 or None; found 2"):
        data(tmp_path, "1 1:1\n", features_from=2)


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no row in the file"):
        data(tmp_path, "# nothing\n\n")
