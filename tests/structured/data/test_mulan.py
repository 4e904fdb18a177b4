"""Mulan's label lists, and how they meet the ARFF tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from structured.data import read_mulan, read_mulan_labels
from structured.errors import DataError

ARFF = """\
@relation toy
@attribute size numeric
@attribute age numeric
@attribute sea {0,1}
@attribute 'the sky' {0,1}
@data
"""
XML = """\
<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="sea"></label>
<label name="the sky"></label>
</labels>
"""


def write(tmp_path, **files: str):
    paths = []
    for name, text in files.items():
        path = tmp_path / name.replace("_", ".")
        path.write_text(text)
        paths.append(path)
    return paths


def test_the_labels_are_told_from_the_features(tmp_path):
    arff, xml = write(tmp_path, toy_arff=ARFF + "1,2,0,1\n3,4,1,0\n", toy_xml=XML)
    data = read_mulan(arff, xml)
    np.testing.assert_array_equal(data.X, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(data.Y.toarray(), [[0, 1], [1, 0]])
    assert data.label_names == ("sea", "the sky")
    assert data.feature_names == ("size", "age")
    assert data.name == "toy"
    assert not data.splits


def test_train_and_test_files_are_stacked_and_make_the_split(tmp_path):
    train, test, xml = write(
        tmp_path, a_arff=ARFF + "{0 1}\n{1 2,3 1}\n", b_arff=ARFF + "{2 1}\n", toy_xml=XML
    )
    data = read_mulan({"train": train, "test": test}, xml, name="named")
    assert isinstance(data.X, sparse.csr_array)
    assert data.splits["split"].sizes() == {"train": 2, "test": 1}
    np.testing.assert_array_equal(data.Y.toarray(), [[0, 0], [0, 1], [1, 0]])
    assert data.split("split")["test"].title == "named (split/test)"


def test_a_sparse_and_a_dense_part_make_a_sparse_whole(tmp_path):
    train, test, xml = write(
        tmp_path, a_arff=ARFF + "{0 1}\n", b_arff=ARFF + "1,2,1,0\n", toy_xml=XML
    )
    data = read_mulan({"train": train, "test": test}, xml)
    assert isinstance(data.X, sparse.csr_array)
    np.testing.assert_array_equal(data.X.toarray(), [[1, 0], [1, 2]])


def test_the_xml_sets_the_order_of_the_labels(tmp_path):
    swapped = XML.replace("sea", "x").replace("the sky", "sea").replace('"x"', '"the sky"')
    arff, xml = write(tmp_path, toy_arff=ARFF + "1,2,0,1\n", toy_xml=swapped)
    data = read_mulan(arff, xml)
    assert data.label_names == ("the sky", "sea")
    np.testing.assert_array_equal(data.Y.toarray(), [[1, 0]])


def test_nested_labels_are_flattened_parents_first(tmp_path):
    (xml,) = write(
        tmp_path,
        toy_xml="<labels><label name='a'>\n<label name='b'>\n<label name='c'/></label></label>\n"
        "<label name='d'/></labels>",
    )
    assert [(label.name, label.line) for label in read_mulan_labels(xml)] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
    ]


@pytest.mark.parametrize("declared", [r"TAG_m\'usica", r"'TAG_m\'usica'", r"'TAG_m\\\'usica'"])
def test_a_quote_escaped_on_one_side_only_is_the_same_label(tmp_path, declared):
    arff, xml = write(
        tmp_path,
        toy_arff=f"@attribute x real\n@attribute {declared} {{0,1}}\n@data\n1,1\n",
        toy_xml=r"""<labels><label name="TAG_m\'usica"/></labels>""",
    )
    assert read_mulan(arff, xml).label_names == (r"TAG_m\'usica",)


BOMB = """\
<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<labels><label name="&b;"/></labels>
"""
OUTSIDE = """\
<?xml version="1.0"?>
<!DOCTYPE labels SYSTEM "file:///etc/passwd">
<labels><label name="a"/></labels>
"""


@pytest.mark.parametrize("text", [BOMB, OUTSIDE], ids=["entities", "external"])
def test_a_doctype_is_refused_before_anything_is_expanded(tmp_path, text):
    (xml,) = write(tmp_path, toy_xml=text)
    with pytest.raises(DataError, match=r"toy\.xml:2: a DOCTYPE is refused"):
        read_mulan_labels(xml)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "not whole, well-formed XML"),
        (XML[:110], 3, "not whole, well-formed XML"),
        (XML.replace("</labels>\n", ""), 5, "not whole, well-formed XML"),
        (XML + "<labels/>", 6, "not whole, well-formed XML"),
        (XML.replace("the sky", "&sky;"), 4, "undefined entity"),
        ("<labels>\n</labels>", 2, "the list has no label"),
        ("<list>\n<label name='a'/></list>", 1, "wanted the element <labels>, found <list>"),
        ("<labels>\n<tag name='a'/></labels>", 2, "wanted the element <label>, found <tag>"),
        ("<labels>\n<label/></labels>", 2, "a <label> without a name"),
        (XML.replace("the sky", "sea"), 4, "'sea' is already listed in line 3"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path, text, line, message):
    (xml,) = write(tmp_path, toy_xml=text)
    with pytest.raises(DataError, match=message) as caught:
        read_mulan_labels(xml)
    assert (caught.value.file, caught.value.line) == (str(xml), line)


def test_a_label_missing_from_the_arff_is_named_with_its_line_of_the_xml(tmp_path):
    arff, xml = write(
        tmp_path, toy_arff=ARFF + "1,2,0,1\n", toy_xml=XML.replace("the sky", "the_sky")
    )
    with pytest.raises(DataError, match=r"toy\.xml:4: label 'the_sky' is no attribute of "):
        read_mulan(arff, xml)


@pytest.mark.parametrize(("missing", "line"), [("sea", 5), ("the sky", 6)])
def test_a_label_missing_from_the_xml_is_named_with_its_line_of_the_arff(tmp_path, missing, line):
    header = ARFF.replace("@data", "@attribute sand {0,1}\n@data").replace(
        "@attribute sea", "@attribute land {0,1}\n@attribute sea"
    )
    labels = [name for name in ("land", "sea", "the sky", "sand") if name != missing]
    listed = "".join(f'<label name="{name}"/>\n' for name in labels)
    arff, xml = write(
        tmp_path, toy_arff=header + "1,2,0,1,0,1\n", toy_xml=f"<labels>{listed}</labels>"
    )
    with pytest.raises(DataError, match=f"attribute '{missing}' stands among or behind") as caught:
        read_mulan(arff, xml)
    assert (caught.value.file, caught.value.line) == (str(arff), line)
    data = read_mulan(arff, xml, scattered_labels=True)
    assert missing in data.feature_names


def test_the_last_label_missing_from_the_xml_is_noticed(tmp_path):
    arff, xml = write(
        tmp_path,
        toy_arff=ARFF + "1,2,0,1\n",
        toy_xml=XML.replace('<label name="the sky"></label>', ""),
    )
    with pytest.raises(DataError, match="attribute 'the sky' stands among or behind") as caught:
        read_mulan(arff, xml)
    assert caught.value.line == 5


def test_two_labels_of_one_attribute_are_refused(tmp_path):
    arff, xml = write(
        tmp_path,
        toy_arff='@attribute x real\n@attribute "a\'b" {0,1}\n@data\n1,1\n',
        toy_xml="""<labels><label name="a'b"/>\n<label name="a\\'b"/></labels>""",
    )
    with pytest.raises(DataError, match=r"toy\.xml:2: labels .* are one attribute"):
        read_mulan(arff, xml)


@pytest.mark.parametrize(
    ("categories", "without", "having"),
    [
        ("{FALSE,TRUE}", "FALSE", "TRUE"),
        ("{TRUE,FALSE}", "FALSE", "TRUE"),
        ("{'true', 'false'}", "false", "'true'"),
        ("{no,yes}", "no", "yes"),
        ("{Yes,No}", "No", "Yes"),
        ("{1,0}", "0", "1"),
    ],
)
def test_labels_that_are_texts_are_read_by_what_they_mean(tmp_path, categories, without, having):
    rows = f"1,2,{without},{having}\n3,4,{having},{having}\n"
    arff, xml = write(tmp_path, toy_arff=ARFF.replace("{0,1}", categories) + rows, toy_xml=XML)
    data = read_mulan(arff, xml)
    np.testing.assert_array_equal(data.Y.toarray(), [[0, 1], [1, 1]])
    np.testing.assert_array_equal(data.X, [[1, 2], [3, 4]])


@pytest.mark.parametrize("categories", ["{a,b}", "{no,true}", "{0,yes}"])
def test_labels_that_are_texts_of_unknown_meaning_are_refused(tmp_path, categories):
    first = categories[1:-1].split(",")[0]
    header = ARFF.replace("sky' {0,1}", f"sky' {categories}")
    arff, xml = write(tmp_path, toy_arff=header + f"1,2,0,{first}\n", toy_xml=XML)
    with pytest.raises(DataError, match=r"label 'the sky' is .* nothing says which") as caught:
        read_mulan(arff, xml)
    assert (caught.value.file, caught.value.line) == (str(arff), 5)


def test_sparse_rows_may_not_omit_what_means_that_they_have_a_label(tmp_path):
    header = ARFF.replace("sky' {0,1}", "sky' {yes,no}")
    arff, xml = write(tmp_path, toy_arff=header + "{0 1}\n{3 no}\n", toy_xml=XML)
    with pytest.raises(DataError, match="ARFF means its first category, 'yes'") as caught:
        read_mulan(arff, xml)
    assert caught.value.line == 5
    arff.write_text(ARFF.replace("sky' {0,1}", "sky' {no,yes}") + "{0 1}\n{3 yes}\n")
    np.testing.assert_array_equal(read_mulan(arff, xml).Y.toarray(), [[0, 0], [0, 1]])


@pytest.mark.parametrize("row", ["1,2,0,0.5", "{0 1,3 0.5}"])
def test_a_label_outside_0_and_1_is_named_with_its_line(tmp_path, row):
    header = ARFF.replace("{0,1}", "numeric")
    first = "{0 1}" if row[0] == "{" else "1,2,0,1"
    arff, xml = write(tmp_path, toy_arff=header + f"{first}\n{row}\n", toy_xml=XML)
    with pytest.raises(DataError, match=r"label 'the sky' is 0\.5; wanted 0 or 1") as caught:
        read_mulan(arff, xml)
    assert (caught.value.file, caught.value.line) == (str(arff), 8)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        (ARFF.replace("age", "weight"), 3, "attribute 'weight' differs from 'age' in .*line 3"),
        (ARFF.replace("sea {0,1}", "sea {0,1,2}"), 4, "attribute 'sea' differs from 'sea'"),
        (ARFF.replace("@attribute age numeric\n", ""), 4, "3 attributes; .* has 4"),
    ],
)
def test_parts_with_other_attributes_are_refused(tmp_path, header, line, message):
    row = ",".join("0" * header.count("@attribute")) + "\n"
    train, test, xml = write(tmp_path, a_arff=ARFF + "1,2,0,1\n", b_arff=header + row, toy_xml=XML)
    with pytest.raises(DataError, match=message) as caught:
        read_mulan({"train": train, "test": test}, xml)
    assert (caught.value.file, caught.value.line) == (str(test), line)
