"""The compact form: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from structured.data import MultiLabelData, Split, read_npz, write_npz
from structured.errors import DataError

GOOD = {
    "X_data": np.array([1, 2, 3], np.int8),
    "X_indices": np.array([0, 2, 1], np.uint16),
    "X_indptr": np.array([0, 2, 2, 3], np.int32),
    "X_shape": np.array([3, 3]),
    "Y_data": np.array([1, 1], np.int8),
    "Y_indices": np.array([1, 0], np.uint16),
    "Y_indptr": np.array([0, 1, 1, 2], np.int32),
    "Y_shape": np.array([3, 2]),
    "label_names": np.array(["sea", "sky"]),
    "feature_names": np.array([], dtype="U1"),
    "split": np.array([0, 1, 1], np.int8),
    "split_names": np.array(["train", "test"]),
    "split3_surrogate": np.array([0, 1, 2], np.int8),
    "split3_names": np.array(["train", "valid", "test"]),
    "subset": np.array([5, 7, 7], np.int8),
    "first_seen": np.array([True, False, True]),
    "meta_json": np.array(json.dumps({"name": "toy", "note": "by hand"})),
}


def write(tmp_path, **changes):
    path = tmp_path / "t.npz"
    arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
    np.savez_compressed(path, **arrays)
    return path


def test_the_described_form_is_read(tmp_path):
    data = read_npz(write(tmp_path))
    np.testing.assert_array_equal(data.dense()[0], [[1, 0, 2], [0, 0, 0], [0, 3, 0]])
    np.testing.assert_array_equal(data.Y.toarray(), [[0, 1], [0, 0], [1, 0]])
    assert isinstance(data.X, sparse.csr_array)
    assert data.X.indices.dtype == np.int32
    assert data.label_names == ("sea", "sky")
    assert (data.name, data.meta["note"]) == ("toy", "by hand")
    assert {key: split.names for key, split in data.splits.items()} == {
        "split": ("train", "test"),
        "split3_surrogate": ("train", "validation", "test"),
        "subset": ("5", "7"),
        "first_seen": ("false", "true"),
    }
    assert data.splits["subset"].sizes() == {"5": 1, "7": 2}
    np.testing.assert_array_equal(data.splits["first_seen"].rows("true"), [0, 2])


def test_names_and_meta_may_be_absent(tmp_path):
    data = read_npz(write(tmp_path, feature_names=None, meta_json=None))
    assert (data.name, data.feature_names) == ("t", ())


def dense(tmp_path, **changes):
    arrays = {"X": np.array([[1, 0, 2.5], [0, 0, 0]]), "Y": np.array([[0, 1], [1, 1]])} | changes
    path = tmp_path / "plain.npz"
    kept: dict[str, Any] = {key: value for key, value in arrays.items() if value is not None}
    np.savez(path, **kept)
    return path


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float64])
def test_dense_arrays_are_read_whatever_numbers_the_labels_are_written_as(tmp_path, dtype):
    Y = np.array([[0, 1], [1, 1]], dtype)
    for labels in ({"Y": Y}, {"Y": None, "y": Y}):
        data = read_npz(dense(tmp_path, **labels))
        assert isinstance(data.X, np.ndarray)
        np.testing.assert_array_equal(data.X, [[1, 0, 2.5], [0, 0, 0]])
        np.testing.assert_array_equal(data.Y.toarray(), [[0, 1], [1, 1]])
        assert (data.name, data.label_names) == ("plain", ("0", "1"))


def test_dense_arrays_may_come_with_names_and_splits_and_beside_sparse_ones(tmp_path):
    names = {"label_names": np.array(["sea", "sky"]), "holdout": np.array([0, 1])}
    data = read_npz(dense(tmp_path, **names, holdout_names=np.array(["train", "test"])))
    assert data.label_names == ("sea", "sky")
    assert data.splits["holdout"].sizes() == {"train": 1, "test": 1}
    sparse_part = {key: None for key in GOOD if key.startswith("X_")}
    mixed = read_npz(write(tmp_path, **sparse_part, X=np.ones((3, 1))))
    assert (mixed.n_features, mixed.label_names) == (1, ("sea", "sky"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, r"no array 'X_data' \(or 'X', dense\)"),
        ({"Y": None}, r"no array 'Y_data' \(or 'Y', dense\)"),
        ({"y": np.ones((2, 2))}, "'Y' and 'y' are both there"),
        ({"X_data": np.ones(2)}, "'X' and 'X_data' are both there"),
        ({"X": np.ones(2)}, r"X has shape \[2\]; wanted a matrix .* and d features"),
        ({"Y": None, "y": np.array([0, 1])}, r"y has shape \[2\]; wanted .* L labels, each 0 or 1"),
        ({"X": np.array([[1, np.inf], [0, 0]])}, r"X\[0, 1\] is inf"),
        ({"X": np.array([["a"], ["b"]])}, "wanted numbers"),
        ({"X": np.ones((3, 1))}, "X has 3 rows and Y has 2"),
        ({"Y": np.array([[0, 2], [1, 1]])}, r"Y\[0, 1\] is 2; labels are 0 or 1"),
        ({"Y": np.array([[0, 1], [0.5, 1]])}, r"Y\[1, 0\] is 0.5"),
        ({"label_names": np.array(["sea"])}, "label_names has 1 names"),
        ({"X_test": np.ones((1, 3))}, "X_test has dtype float64"),
    ],
)
def test_dense_arrays_are_checked_like_sparse_ones(tmp_path, changes, message):
    path = dense(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X_data": None}, "no array 'X_data';"),
        ({"label_names": None}, "no array 'label_names'"),
        ({"X_data": np.array([1, np.nan, 3])}, r"X\[0, 2\] is nan"),
        ({"Y_data": np.array([1, 2])}, r"Y\[2, 0\] is 2; labels are 0 or 1"),
        ({"Y_data": np.array([1, -1])}, r"Y\[2, 0\] is -1"),
        ({"X_data": np.ones(2)}, r"X_data has shape \[2\], X_indices \[3\]"),
        ({"X_data": np.ones((3, 1))}, r"X_data has shape \[3, 1\]"),
        ({"X_data": np.array(["a", "b", "c"])}, "wanted numbers"),
        ({"X_indices": np.array([0, 3, 1])}, "X_indices has 3 in row 0; with 3 columns"),
        ({"X_indices": np.array([0, 2, -1])}, "X_indices has -1 in row 2"),
        ({"X_indices": np.array([0.0, 2, 1])}, "X_indices has dtype float64"),
        ({"X_indptr": np.array([0, 2, 3])}, "X_indptr does not cut 3 values into 3 rows"),
        ({"X_indptr": np.array([0, 3, 2, 3])}, "X_indptr does not cut"),
        ({"X_indptr": np.array([1, 2, 2, 3])}, "X_indptr does not cut"),
        ({"X_indptr": np.array([0, 2, 2, 2])}, "X_indptr does not cut"),
        ({"X_shape": np.array([3])}, r"X_shape is \[3\]"),
        ({"X_shape": np.array([3, 0])}, r"X_shape is \[3, 0\]"),
        ({"X_shape": np.array([3, 2**40])}, "X_shape is"),
        (
            {"Y_indptr": np.array([0, 1, 2]), "Y_shape": np.array([2, 2])},
            "X has 3 rows and Y has 2",
        ),
        ({"label_names": np.array(["sea"])}, "label_names has 1 names"),
        ({"label_names": np.array([1, 2])}, "label_names has dtype int64"),
        ({"split": np.array([0, 1], np.int8)}, r"split has dtype int8, shape \[2\]"),
        ({"split": np.array([0, 0, 0], np.int8)}, "split: part 'test' of the split is empty"),
        ({"split": np.array([0, 1, 2], np.int8)}, "split: row 2 is in part 2"),
        ({"extra": np.ones(3)}, "extra has dtype float64"),
        ({"meta_json": np.array("{")}, "meta_json is not JSON"),
        ({"meta_json": np.array("[]")}, "meta_json is a list"),
        ({"label_names": np.array(["a", None], dtype=object)}, "pickle"),
    ],
)
def test_bad_content_is_refused_by_file_and_array(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(path)
    assert caught.value.file == str(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="not a whole"):
            read_npz(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = write(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 16
    path.write_bytes(raw)
    with pytest.raises(DataError):
        read_npz(path)


def test_other_files_are_no_data_sets(tmp_path):
    path = tmp_path / "t.npz"
    np.save(tmp_path / "t.npy", np.ones(3))
    os.replace(tmp_path / "t.npy", path)
    with pytest.raises(DataError, match="a single array"):
        read_npz(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="not a whole"):
        read_npz(path)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "absent.npz")


def toy(rows: int) -> MultiLabelData:
    rng = np.random.default_rng(0)
    return MultiLabelData(X=rng.normal(size=(rows, 50)), Y=rng.integers(2, size=(rows, 3)))


def test_a_full_disk_leaves_the_older_file_whole_and_nothing_else(tmp_path):
    path = tmp_path / "t.npz"
    write_npz(toy(10), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_npz(toy(2000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "nowhere" / "t.npz"
    with pytest.raises(FileNotFoundError, match="there is no such folder; make it") as caught:
        write_npz(toy(1), path)
    assert caught.value.filename == str(path.parent)


def test_writing_leaves_one_file_that_the_umask_allows_others_to_read(tmp_path):
    path = tmp_path / "t.npz"
    (tmp_path / "plain").touch()
    write_npz(toy(3), path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {entry.name for entry in tmp_path.iterdir()} == {"plain", "t.npz"}


@pytest.mark.parametrize(
    "name", ["X_data", "X", "y", "file", "allow_pickle", "a_names", "meta_json"]
)
def test_a_split_cannot_take_the_name_of_another_array(tmp_path, name):
    data = toy(2).with_split(name, Split([0, 1], "ab"))
    with pytest.raises(DataError, match="a split cannot be called"):
        write_npz(data, tmp_path / "t.npz")
    assert not list(tmp_path.iterdir())


def test_meta_that_is_not_json_is_refused(tmp_path):
    data = MultiLabelData(X=[[1.0]], Y=[[1]], meta={"when": {1, 2}})
    with pytest.raises(DataError, match="meta is not made of JSON values"):
        write_npz(data, tmp_path / "t.npz")
