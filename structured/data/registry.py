"""Data sets by name: from a folder of yours, from the cache, or from their public source."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pooch

from structured.data.digits import digit_strips
from structured.data.download import fetch
from structured.data.mulan import read_mulan
from structured.data.multilabel import MultiLabelData
from structured.data.npz import read_npz, write_npz
from structured.data.sources import Source, public_sources
from structured.data.splits import shares, stratified
from structured.errors import DataError, DownloadError

EMBEDDED = "digits"
"""The set that is made on the fly and needs no file: `digit_strips` with its defaults."""

LOCAL_ONLY = ("rcv1sub",)
"""Sets without a public source that holds them as they should be; only read from a folder."""

SURROGATE_SIZES = {"bibtex": (4407, 1491, 1497), "delicious": (9690, 3207, 3194)}
"""Rows of train, validation and test in the published splits, whose rows are not public."""


def known_names(sources: Sequence[Source] | None = None) -> list[str]:
    """Return the names `load` knows, the embedded set first.

    Args:
        sources: The public files, by default those of `public_sources`.

    Example:
        >>> known_names()[:4]
        ['digits', 'bibtex', 'birds', 'cal500']
    """
    files = public_sources() if sources is None else sources
    return [EMBEDDED, *sorted({source.dataset for source in files} | set(LOCAL_ONLY))]


def load(
    name: str,
    cache: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool = True,
    *,
    sources: Sequence[Source] | None = None,
) -> MultiLabelData:
    """Return a data set by name.

    It is looked for in the folder that the environment variable STRUCTURED_DATA names, then in the
    cache, in both as `<name>/<name>.npz`, and then made from its public files, which are downloaded
    with their SHA-256 checked, and cached. "digits" is made on the fly and needs none of this.

    Every set has at least one split into train, validation and test:

    - "split": the official train/test split of the source, where it has one;
    - "split3_surrogate" (bibtex, delicious): `iterative_stratification` with seed 0 in the sizes of
      the published three-way split, whose rows are not public; rows without labels are left out;
    - "stratified3" (the others): the same with 60, 20 and 20 percent of all rows; of rcv1sub, only
      of the first of equal rows.

    Args:
        name: One of `known_names()`.
        cache: The cache folder; by default the environment variable STRUCTURED_CACHE, else the
            user's cache folder for "structured".
        download: Whether the public files may be downloaded.
        progress: Show a bar for each download on the standard error stream.
        sources: The public files, by default those of `public_sources`.

    Raises:
        DataError: The name is unknown, the set is not there and may not or cannot be downloaded, or
            a file of it is damaged.
        DownloadError: A download failed; nothing half-written is left.

    Example:
        >>> data = load("digits")
        >>> list(data.split("disjoint_images"))
        ['train', 'validation', 'test']
    """
    files = public_sources() if sources is None else sources
    known = known_names(files)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"no data set {name!r}; known: {', '.join(known)}{hint}")
    if name == EMBEDDED:
        return digit_strips()
    cached = _cache_folder(cache) / name / f"{name}.npz"
    places = [*_own_place(name), cached]
    for place in places:
        if place.exists():
            return _with_three_parts(_read(place, removable=place == cached))
    wanted = [source for source in files if source.dataset == name]
    looked = " and ".join(str(place) for place in places)
    if not wanted:
        raise DataError(
            f"{name} has no public source to download; put it at {places[0]} (looked at {looked})"
        )
    if not download:
        raise DataError(f"{name} is not at {looked}; allow the download, or put it there")
    return _with_three_parts(_build(name, wanted, cached, progress))


def _own_place(name: str) -> list[Path]:
    folder = os.environ.get("STRUCTURED_DATA")
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise DataError(f"STRUCTURED_DATA is {folder}, which is no folder; correct or unset it")
    return [Path(folder, name, f"{name}.npz")]


def _cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("STRUCTURED_CACHE") or pooch.os_cache("structured"))


def _read(path: Path, *, removable: bool) -> MultiLabelData:
    try:
        return read_npz(path)
    except DataError as error:
        if not removable:
            raise
        raise DataError(f"{error.reason}; delete it to have it made again", path) from error


def _build(name: str, wanted: Sequence[Source], path: Path, progress: bool) -> MultiLabelData:
    """Download, read, cache, and read back, so that the first load is as every later one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"cannot make the cache folder {path.parent} ({error}); set STRUCTURED_CACHE to "
            "another one"
        ) from error
    files = {
        source.file: fetch(source, path.parent / "source", progress=progress) for source in wanted
    }
    parts = {part: f"{name}-{part}.arff" for part in ("train", "test")}
    arff = {part: files[file] for part, file in parts.items() if file in files}
    data = read_mulan(
        arff or files[f"{name}.arff"],
        files[f"{name}.xml"],
        name=name,
        scattered_labels=True,  # their hash is right, so nothing can be missing
    )
    write_npz(data, path)
    return read_npz(path)


def _with_three_parts(data: MultiLabelData) -> MultiLabelData:
    """Add the split into train, validation and test that `load` promises, if there is none."""
    if any(len(split.names) == 3 for split in data.splits.values()):
        return data
    if data.name in SURROGATE_SIZES:
        labelled = np.diff(data.Y.indptr) > 0
        split = stratified(data, SURROGATE_SIZES[data.name], rows=labelled)
        return data.with_split("split3_surrogate", split)
    if "first_seen" in data.splits:
        rows = data.splits["first_seen"].rows("true")
    else:
        rows = np.arange(data.n_rows)
    split = stratified(data, shares(rows.size, (0.6, 0.2, 0.2)), rows=rows)
    return data.with_split("stratified3", split)
