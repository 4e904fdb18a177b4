"""Where an error points to."""

from __future__ import annotations

from pathlib import Path

import pytest

from structured.errors import CheckpointError, DataError, DownloadError, StructuredError


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ((), "wrong"),
        (("a.arff",), "a.arff: wrong"),
        ((Path("a.arff"), 3), "a.arff:3: wrong"),
    ],
)
def test_a_data_error_names_file_and_line_as_far_as_known(place, text):
    error = DataError("wrong", *place)
    assert str(error) == text
    assert error.reason == "wrong"
    assert (error.file, error.line) == (*map(str, place[:1]), *place[1:], None, None)[:2]


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(DataError, ValueError), (DownloadError, OSError), (CheckpointError, RuntimeError)],
)
def test_every_error_is_of_the_family_and_of_a_usual_kind(kind, builtin):
    assert issubclass(kind, StructuredError)
    assert issubclass(kind, builtin)
