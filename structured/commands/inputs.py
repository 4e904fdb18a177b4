"""From what a user typed to a data set: a known name, or files in one of the known formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.failures import UsageError
from structured.commands.options import Reading
from structured.errors import DataError

if TYPE_CHECKING:
    from structured.data import MultiLabelData

FORMATS = {
    ".npz": "npz",
    ".arff": "arff",
    ".svm": "libsvm",
    ".libsvm": "libsvm",
    ".txt": "libsvm",
    ".dat": "libsvm",
}
"""What the last part of a file's name says about its format; `.gz` after it is ignored."""

PARTS = {1: ("all",), 2: ("train", "test"), 3: ("train", "validation", "test")}
"""What several files of one data set are, in the order in which they are given."""

MADE_SPLIT = "stratified3"
"""The split that a data set without any of its own gets: 60, 20 and 20 percent, stratified."""


_GOES_WITH = {
    "labels": ("arff", "ARFF"),
    "n_features": ("libsvm", "LIBSVM"),
    "n_labels": ("libsvm", "LIBSVM"),
    "features_from": ("libsvm", "LIBSVM"),
    "labels_from": ("libsvm", "LIBSVM"),
}
"""Each field of `Reading` -> the format whose files it says something about."""


def file_format(path: Path) -> str | None:
    """Return "npz", "arff" or "libsvm" by the file's name, None if it says nothing.

    Example:
        >>> file_format(Path("genes.svm.gz")), file_format(Path("bibtex"))
        ('libsvm', None)
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def is_file(source: str) -> bool:
    """Whether a user means a file and not a known name."""
    path = Path(source)
    return file_format(path) is not None or path.is_file()


def given_options(reading: Reading) -> dict[str, str]:
    """Return the fields that say something -> the options that users know them by.

    Example:
        >>> given_options(Reading(n_features=7))
        {'n_features': '--n-features'}
    """
    return {
        field: f"--{field.replace('_', '-')}"
        for field, value in vars(reading).items()
        if value is not None
    }


def check_reading(source: str, reading: Reading) -> None:
    """Refuse what would be ignored: options for files of another format than the source has.

    Raises:
        UsageError: There is such an option.
    """
    for field, option in given_options(reading).items():
        wanted, name = _GOES_WITH[field]
        if file_format(Path(source)) != wanted:
            raise UsageError(f"{option} goes with {name} files, and {source} is none; leave it out")


def open_data(
    source: str, reading: Reading, *, download: bool = True, progress: bool = True
) -> MultiLabelData:
    """Return a data set by its name or from one file.

    Args:
        source: One of `structured.data.known_names()`, or a file whose name ends as in `FORMATS`.
        reading: What the file does not say.
        download: Whether a known set may be downloaded.
        progress: Whether a download shows a bar.

    Raises:
        DataError: There is no such set or file, or the file cannot be used.
        UsageError: Something is said of files of another format.
    """
    from structured.data import load

    path = Path(source)
    if is_file(source):
        return open_files([path], reading)
    if len(path.parts) > 1 or path.suffix:
        raise DataError(
            f"no file {source}, and no data set has such a name; give a file that ends in "
            f"{', '.join(FORMATS)}, or a name that `structured data` lists"
        )
    check_reading(source, reading)
    return load(source, download=download, progress=progress)


def open_files(
    paths: Sequence[Path], reading: Reading, *, name: str | None = None
) -> MultiLabelData:
    """Return one data set from one file, or from one file for each part of a split.

    Args:
        paths: One file, the train and the test file, or train, validation and test.
        reading: What the files do not say.
        name: The name of the data set; by default that of the (first) file.

    Raises:
        DataError: A file is missing, cannot be used, or has another format than the first.
        UsageError: Something is said of files of another format.
    """
    if len(paths) not in PARTS:
        raise DataError(f"found {len(paths)} files; wanted one, train and test, or all three parts")
    for path in paths:
        if not path.is_file():
            raise DataError("there is no such file; check the path", path)
    formats = {file_format(path) for path in paths}
    if len(formats) != 1 or None in formats:
        raise DataError(
            f"the format is not known from the name; wanted an end like {', '.join(FORMATS)}, the "
            "same for all files",
            paths[0],
        )
    check_reading(str(paths[0]), reading)
    match formats.pop():
        case "arff":
            return _open_arff(paths, reading, name)
        case "libsvm":
            return _open_libsvm(paths, reading, name)
    if len(paths) > 1:
        raise DataError("an .npz file holds all parts of its data set; give one file", paths[1])
    from structured.data import read_npz

    data = read_npz(paths[0])
    return data if name is None else replace(data, name=name)


def _open_arff(paths: Sequence[Path], reading: Reading, name: str | None) -> MultiLabelData:
    from structured.data import read_mulan

    names = reading.labels or _label_list(paths[0])
    if not names.is_file():
        raise DataError(
            f"the list of labels {names} is not there; name it with --labels FILE.xml", paths[0]
        )
    if len(paths) == 1:
        return read_mulan(paths[0], names, name=name)
    return read_mulan(dict(zip(PARTS[len(paths)], paths, strict=True)), names, name=name)


def _label_list(path: Path) -> Path:
    """Where Mulan's archives keep it: `genes.xml` beside `genes.arff` or `genes-train.arff`."""
    stem = path.name.removesuffix(".gz").removesuffix(".arff")
    for part in PARTS[3]:
        stem = stem.removesuffix(f"-{part}")
    return path.with_name(f"{stem}.xml")


def _open_libsvm(paths: Sequence[Path], reading: Reading, name: str | None) -> MultiLabelData:
    import numpy as np
    from scipy import sparse

    from structured.data import MultiLabelData, Split, read_libsvm

    wanted: dict[str, Any] = {
        "n_features": reading.n_features,
        "n_labels": reading.n_labels,
        "features_from": reading.features_from,
        "labels_from": reading.labels_from,
    }
    missing = [f"--{key.replace('_', '-')}" for key, value in wanted.items() if value is None]
    if len(paths) > 1 and missing:
        raise DataError(
            "several LIBSVM files only fit together if it is known how wide they are and where "
            f"they count from; give {', '.join(missing)}",
            paths[0],
        )
    parts = [read_libsvm(path, **wanted, name=name) for path in paths]
    if len(parts) == 1:
        return parts[0]
    sizes = [part.n_rows for part in parts]
    return MultiLabelData(
        X=sparse.vstack([part.X for part in parts], format="csr"),
        Y=sparse.vstack([part.Y for part in parts], format="csr"),
        label_names=parts[0].label_names,
        splits={"split": Split(np.repeat(np.arange(len(parts)), sizes), PARTS[len(parts)])},
        name=parts[0].name,
        meta=parts[0].meta,
    )


def with_usable_split(data: MultiLabelData, split: str | None) -> tuple[MultiLabelData, str]:
    """Choose the split to train and test with.

    Args:
        data: The data set.
        split: The name of one of its splits; by default its first with the parts train and test,
            and if it has none, a new one as `MADE_SPLIT` says.

    Returns:
        The data set, with that split, and its name.

    Raises:
        DataError: There is no such split.
    """
    from structured.data import shares, stratified

    usable = [name for name, parts in data.splits.items() if {"train", "test"} <= set(parts.names)]
    if split is not None and not (split == MADE_SPLIT and split not in data.splits):
        data.split(split)  # says which there are, if it is none of them
        return data, split
    if usable and split is None:
        return data, usable[0]
    sizes = shares(data.n_rows, (0.6, 0.2, 0.2))
    return data.with_split(MADE_SPLIT, stratified(data, sizes)), MADE_SPLIT
