"""Every format gives back what was written in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.datasets import dump_svmlight_file

from structured.data import (
    MultiLabelData,
    Split,
    read_libsvm,
    read_mulan,
    read_npz,
    write_npz,
)

VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(0.0)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1
)


@st.composite
def data_sets(draw: st.DrawFn) -> MultiLabelData:
    rows, width, labels = (draw(st.integers(1, 6)) for _ in range(3))
    X = draw(hnp.arrays(np.float32, (rows, width), elements=VALUES))
    Y = draw(hnp.arrays(np.int8, (rows, labels), elements=st.integers(0, 1)))
    names = draw(st.lists(NAMES, min_size=width + labels, max_size=width + labels, unique=True))
    splits = {}
    if rows > 1:
        parts = draw(st.permutations([0, 1] + [-1] * (rows - 2)))
        splits["holdout"] = Split(parts, ("train", "test"))
    return MultiLabelData(
        X=sparse.csr_array(X) if draw(st.booleans()) else X,
        Y=Y,
        label_names=names[:labels],
        feature_names=names[labels:],
        splits=splits,
        name=draw(NAMES),
        meta={"note": draw(NAMES)},
    )


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else matrix


@settings(max_examples=60)
@given(data_sets())
def test_npz_gives_back_tables_names_splits_and_meta(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.npz")
        write_npz(data, path)
        read = read_npz(path)
    np.testing.assert_array_equal(dense(read.X), dense(data.X))
    np.testing.assert_array_equal(dense(read.Y), dense(data.Y))
    assert read.label_names == data.label_names
    assert read.feature_names == data.feature_names
    assert read.name == data.name
    assert read.meta["note"] == data.meta["note"]
    assert read.splits.keys() == data.splits.keys()
    for key, split in data.splits.items():
        assert read.splits[key].names == split.names
        np.testing.assert_array_equal(read.splits[key].parts, split.parts)


def quoted(name: str) -> str:
    escapes = {"\\": r"\\", "'": r"\'", "\t": r"\t"}
    return "'" + "".join(escapes.get(character, character) for character in name) + "'"


def attribute_text(text: str) -> str:
    """The text with what XML keeps for itself, and the blanks it would fold, written as numbers."""
    return "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in text)


def mulan_files(data: MultiLabelData, *, as_sparse: bool) -> tuple[str, str]:
    lines = ["@relation toy"]
    lines += [f"@attribute {quoted(name)} numeric" for name in data.feature_names]
    lines += [f"@attribute {quoted(name)} {{0,1}}" for name in data.label_names]
    lines.append("@data")
    for row in np.hstack([dense(data.X).astype(np.float64), dense(data.Y)]):
        cells = [f"{value:.9g}" for value in row]
        if as_sparse:
            pairs = [f"{column} {cells[column]}" for column in np.flatnonzero(row)]
            lines.append("{" + ", ".join(pairs) + "}")
        else:
            lines.append(",".join(cells))
    labels = "\n".join(f'<label name="{attribute_text(name)}"/>' for name in data.label_names)
    return "\n".join(lines) + "\n", f"<labels>\n{labels}\n</labels>\n"


XML_NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co", "Zl", "Zp"]),
    min_size=1,
)


@settings(max_examples=60)
@given(data_sets(), st.data(), st.booleans())
def test_mulan_files_give_back_tables_and_names(data, draw, as_sparse):
    count = data.n_labels + data.n_features
    unique = draw.draw(st.lists(XML_NAMES, min_size=count, max_size=count, unique=True))
    data = MultiLabelData(
        X=data.X,
        Y=data.Y,
        label_names=unique[: data.n_labels],
        feature_names=unique[data.n_labels :],
    )
    arff, xml = mulan_files(data, as_sparse=as_sparse)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "t.arff").write_text(arff, encoding="utf-8")
        Path(folder, "t.xml").write_text(xml, encoding="utf-8")
        read = read_mulan(Path(folder, "t.arff"), Path(folder, "t.xml"))
    np.testing.assert_array_equal(dense(read.X), dense(data.X))
    np.testing.assert_array_equal(dense(read.Y), dense(data.Y))
    assert read.label_names == data.label_names
    assert read.feature_names == data.feature_names


@settings(max_examples=60)
@given(data_sets(), st.booleans())
def test_libsvm_files_give_back_tables(data, zero_based):
    """Written by scikit-learn, whose labels are always counted from 0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.txt")
        dump_svmlight_file(
            sparse.csr_matrix(data.X),
            sparse.csr_matrix(data.Y),
            str(path),
            zero_based=zero_based,
            multilabel=True,
        )
        read = read_libsvm(
            path,
            n_features=data.n_features,
            n_labels=data.n_labels,
            features_from=0 if zero_based else 1,
            labels_from=0,
        )
    np.testing.assert_array_equal(dense(read.X), dense(data.X))
    np.testing.assert_array_equal(dense(read.Y), dense(data.Y))
