"""The ARFF reader on good and bad files, sparse and dense."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy import sparse

from structured.data import read_arff
from structured.errors import DataError

HEADER = """\
% a comment
@RELATION 'my data'

@attribute size numeric
@attribute "two words" REAL % trailing
@attribute 'it\\'s' integer
@attribute red {0,1}
@data
"""  # the rows start in line 9


def table(tmp_path, text: str):
    path = tmp_path / "t.arff"
    path.write_text(text)
    return read_arff(path)


def test_a_dense_file_is_read_cell_by_cell(tmp_path):
    read = table(tmp_path, HEADER + "1.5,-2e3,+3,0\n\n% between\n .5 , 0,7.,1\n")
    assert isinstance(read.values, np.ndarray)
    np.testing.assert_array_equal(read.values, [[1.5, -2000, 3, 0], [0.5, 0, 7, 1]])
    assert read.relation == "my data"
    assert [attribute.name for attribute in read.attributes] == ["size", "two words", "it's", "red"]
    assert [attribute.line for attribute in read.attributes] == [4, 5, 6, 7]
    np.testing.assert_array_equal(read.lines, [9, 12])


def test_a_sparse_file_is_read_and_stays_sparse(tmp_path):
    read = table(tmp_path, HEADER + "{0 1.5, 3 1}\n{}\n{ 2 7 }\n{3 1 ,0\t2}  % mark\n")
    assert isinstance(read.values, sparse.csr_array)
    expected = [[1.5, 0, 0, 1], [0, 0, 0, 0], [0, 0, 7, 0], [2, 0, 0, 1]]
    np.testing.assert_array_equal(read.values.toarray(), expected)
    np.testing.assert_array_equal(read.lines, [9, 10, 11, 12])


def test_a_gzip_file_is_read_whatever_its_name(tmp_path):
    path = tmp_path / "t.arff"
    path.write_bytes(gzip.compress((HEADER + "1,2,3,0\n").encode()))
    np.testing.assert_array_equal(read_arff(path).values, [[1, 2, 3, 0]])


def test_a_cut_gzip_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "t.arff.gz"
    packed = gzip.compress((HEADER + "1,2,3,0\n" * 5000).encode())
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"t\.arff\.gz:\d+: the gzip file is cut"):
        read_arff(path)


def test_windows_line_ends_and_a_missing_last_one_change_nothing(tmp_path):
    read = table(tmp_path, (HEADER + "1,2,3,1").replace("\n", "\r\n"))
    np.testing.assert_array_equal(read.values, [[1, 2, 3, 1]])


def test_two_texts_as_categories_become_0_and_1_in_their_order(tmp_path):
    header = "@relation r\n@attribute wet {no, 'oh yes'}\n@attribute n {3,5}\n@data\n"
    np.testing.assert_array_equal(
        table(tmp_path, header + "no,5\n'oh yes',3\n\"oh yes\",'5'\n").values,
        [[0, 5], [1, 3], [1, 5]],
    )


def test_quoted_numbers_are_numbers(tmp_path):
    read = table(tmp_path, HEADER + "'1',\"2\",3,'1'\n")
    np.testing.assert_array_equal(read.values, [[1, 2, 3, 1]])
    read = table(tmp_path, HEADER + "{0 '1',3 '1'}\n")
    assert isinstance(read.values, sparse.csr_array)
    np.testing.assert_array_equal(read.values.toarray(), [[1, 0, 0, 1]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,3", "3 values for 4 attributes; the row is cut"),
        ("1,2,3,0,1", "5 values for 4 attributes"),
        ("1,2 3,0", "3 values for 4"),
        ("1,2,x,0", "attribute \"it's\": wanted a number, found 'x'"),
        ("1,2,,0", 'attribute "it\'s": wanted a number'),
        ("1,?,3,0", r"attribute 'two words' is missing \('\?'\)"),
        ("1,nan,3,0", "attribute 'two words': wanted a number that is finite in .* found nan"),
        ("1,1e999,3,0", "wanted a number that is finite in float32, found inf"),
        ("1,1e39,3,0", r"wanted a number that is finite in float32, found 1e\+39"),
        ("1,1_0,3,0", "wanted a number, found '1_0'"),
        ("1,0x1,3,0", "wanted a number, found '0x1'"),
        ("1,٣,3,0_", "wanted a number, found '٣'"),
        ("1,2,3,2", r"attribute 'red': wanted one of \['0', '1'\], found 2"),
        ("1,2,3,yes", r"attribute 'red': wanted one of \['0', '1'\], found 'yes'"),
        ("1,2,'3,0", "a quote is not closed; the row is cut"),
        ("{0 1}", "a sparse row in a file whose first row is dense"),
    ],
)
def test_a_bad_dense_row_is_named_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, HEADER + f"1,2,3,0\n{row}\n1,2,3,1\n")
    assert caught.value.line == 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{0 1, 3", "no closing '}'; the file is cut here"),
        ("{0 1, 3}", "wanted 'index value', found '3'"),
        ("{0 1,}", "wanted 'index value', found ''"),
        ("{0 1 3 1}", "wanted a number, found '1 3 1'"),
        ("{4 1}", "index 4; with 4 attributes it is 0 to 3"),
        ("{'4' 1}", "wanted 'index value'"),
        ("{4 '1'}", "index 4; with 4 attributes"),
        ("{-1 1}", "index -1; with 4"),
        ("{99999999999999999999 1}", "index 99999999999999999999"),
        ("{1 2, 1 3}", "index 1 comes twice"),
        ("{1.0 2}", "wanted 'index value'"),
        ("{1 ?}", "is missing"),
        ("{1 inf}", "wanted a number that is finite in float32, found inf"),
        ("{0 1, 1 1_0}", "wanted a number, found '1_0'"),
        ("{3 2}", r"attribute 'red': wanted one of \['0', '1'\], found 2"),
        ("{1 '2}", "a quote is not closed"),
        ("{0 1}, {5}", "more than one pair of braces; instance weights"),
        ("{0 1} 7", "more than one pair of braces"),
        ("1,2,3,0", "a dense row in a file whose first row is sparse"),
    ],
)
def test_a_bad_sparse_row_is_named_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, HEADER + f"{{0 1}}\n{row}\n{{3 1}}\n")
    assert caught.value.line == 10


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "ends in its header, after 0 attributes"),
        ("@relation r\n@attribute a numeric\n", 2, "after 1 attributes and before @data"),
        ("@relation r\n@attribute a num", 2, "type 'num'; wanted numeric"),
        ("@relation r\n@attribute a {0,", 2, "type '{0,'"),
        ("@relation r\n@attribute a", 2, "the line is cut"),
        ("@relation r\n@attribute 'a b numeric\n@data\n", 2, "wanted '@attribute name type'"),
        ("@relation r\n@attribute a b numeric\n@data\n", 2, "type 'b numeric'"),
        ("@relation r\n@attribute a string\n@data\n", 2, "type 'string'"),
        ("@relation r\n@attribute a {x,y,z}\n@data\n", 2, "3 categories that are not numbers"),
        ("@attribute a real\n@attribute a real\n@data\n", 2, "already declared in line 1"),
        ("@relation r\n1,2\n", 2, "wanted @relation, @attribute or @data, found '1,2'"),
        ("@relation r\n@data\n1\n", 2, "@data before any @attribute"),
        ("@relation r\n@attribute a real\n@data\n% no row\n", 4, "no row after @data"),
        ("@attribute a {1,0}\n@data\n{0 1}\n", 1, "means its first category, '1', and not 0"),
    ],
)
def test_a_bad_header_is_named_with_its_line(tmp_path, text, line, message):
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, text)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{tmp_path / 't.arff'}:{line}: ")


def test_a_text_category_is_not_mistaken_for_its_number(tmp_path):
    header = "@attribute wet {no,yes}\n@data\n"
    with pytest.raises(DataError, match=r"wanted one of \['no', 'yes'\], found '1'"):
        table(tmp_path, header + "1\n")


def test_dense_rows_may_put_category_1_first(tmp_path):
    read = table(tmp_path, "@attribute a {1,0}\n@data\n1\n0\n")
    np.testing.assert_array_equal(read.values, [[1], [0]])


@pytest.mark.parametrize("row", ["1.5,2,3,0\n", "{0 1.5,3 1}\n"])
def test_a_file_cut_at_any_byte_never_reads_as_the_whole(tmp_path, row):
    whole = HEADER + row * 3
    first = len(HEADER) + len(row)
    between_rows = {first - 1, first, first + len(row) - 1, first + len(row)}
    for end in range(len(whole) - 1):
        if end in between_rows:  # cannot be told from a shorter file
            assert len(table(tmp_path, whole[:end]).lines) < 3
        else:
            with pytest.raises(DataError) as caught:
                table(tmp_path, whole[:end])
            assert caught.value.line == max(len(whole[:end].splitlines()), 1)


def test_a_file_that_is_not_there_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.arff"):
        read_arff(tmp_path / "absent.arff")
