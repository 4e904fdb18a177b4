"""The public files that data sets are made from: addresses, sizes and hashes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Source:
    """A public file at a pinned address.

    Args:
        dataset: The data set it belongs to.
        file: Its name: `<dataset>-train.arff`, `<dataset>-test.arff`, `<dataset>.arff` or
            `<dataset>.xml`.
        url: Where it is, over HTTP.
        bytes: Its size.
        sha256: Its SHA-256, as 64 hexadecimal digits.
    """

    dataset: str
    file: str
    url: str
    bytes: int
    sha256: str


@cache
def public_sources() -> tuple[Source, ...]:
    """Return the files of every set that `load` can download, from the packaged `sources.tsv`.

    Example:
        >>> [source.file for source in public_sources() if source.dataset == "cal500"]
        ['cal500.arff', 'cal500.xml']
    """
    table = resources.files(__package__ or "structured.data").joinpath("sources.tsv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return tuple(
        Source(row["dataset"], row["file"], row["url"], int(row["bytes"]), row["sha256"])
        for row in rows
    )
