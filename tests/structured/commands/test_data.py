"""`structured data`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from structured.data import MultiLabelData, Split, read_npz, write_npz
from tests.structured.commands.cli import ok, refused


def test_data_lists_the_known_sets_in_a_table_and_as_json() -> None:
    for text in (ok("data").stdout, ok("data", "list").stdout):
        assert "digits" in text
        assert "bibtex" in text
    for text in (ok("data", "--json").stdout, ok("data", "list", "--json").stdout):
        assert json.loads(text)[0]["name"] == "digits"
    assert "--json stands after the command: `structured data list ..." in refused(
        2, "data", "--json", "list"
    )


def test_data_shows_statistics_splits_and_frequent_labels(file: Path) -> None:
    text = ok("data", "show", file).stdout
    for part in ("coast", "cardinality", "thirds", "train 20, validation 20, test 20", "a beach"):
        assert part in text
    found = json.loads(ok("data", "show", file, "--json").stdout)
    assert found["statistics"]["rows"] == 60
    assert found["splits"] == {"thirds": {"train": 20, "validation": 20, "test": 20}}


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ("[/sea]", "[red]", ":wave:")
    data = MultiLabelData(
        X=np.eye(3),
        Y=np.eye(3),
        label_names=names,
        splits={"[i]": Split([0, 1, 1], ("[/b]", "[u]"))},
        name="m3[v2]",
    )
    write_npz(data, tmp_path / "m3.npz")
    text = ok("data", "show", "m3.npz").stdout
    for part in ("m3[v2]", "[i]", "[/b] 1, [u] 2", *names):
        assert part in text


def test_data_converts_arff_and_libsvm_with_their_parts(tmp_path: Path) -> None:
    header = "@relation r\n@attribute f numeric\n@attribute a {0,1}\n@attribute b {0,1}\n@data\n"
    Path("toy-train.arff").write_text(header + "0.5,1,0\n1.5,0,1\n")
    Path("toy-test.arff").write_text(header + "2.5,1,1\n")
    Path("toy.xml").write_text("<labels><label name='a'/><label name='b'/></labels>")
    ok("data", "convert", "toy-train.arff", "toy-test.arff", "-o", "toy.npz", "--name", "toy")
    found = read_npz(tmp_path / "toy.npz")
    assert found.name == "toy"
    assert found.label_names == ("a", "b")
    assert found.split("split")["test"].Y.toarray().tolist() == [[1, 1]]

    Path("one.svm").write_text("1 1:0.5\n2 2:1\n")
    Path("two.svm").write_text("1,2 1:2\n")
    ok("data", "convert", "one.svm", "-o", "one.npz")
    assert read_npz(tmp_path / "one.npz").n_rows == 2
    line = refused(2, "data", "convert", "one.svm", "two.svm", "-o", "both.npz")
    assert "--n-features, --n-labels, --features-from, --labels-from" in line
    widths = ("--n-features", 2, "--n-labels", 2, "--features-from", 1, "--labels-from", 1)
    ok("data", "convert", "one.svm", "two.svm", "-o", "both.npz", *widths)
    assert read_npz(tmp_path / "both.npz").splits["split"].sizes() == {"train": 2, "test": 1}
