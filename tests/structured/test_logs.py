"""Logs: files that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import structured.logs
from structured.errors import CheckpointError, StructuredError
from structured.logs import StepLog, write_rows

ROWS = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.floats(allow_nan=False), min_size=1), max_size=12
)


@given(rows=ROWS, data=st.data())
@settings(max_examples=30)
def test_a_log_taken_up_again_at_any_row_becomes_the_same_file(
    rows: list[dict[str, float]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_rows(folder / "wanted.csv", rows)
    saved = data.draw(st.integers(0, len(rows)))
    lost = data.draw(st.integers(saved, len(rows)))  # rows that a killed run wrote after that
    log = StepLog(folder / "found.csv")
    for index, row in enumerate(rows[:lost], start=1):
        log.append(row)
        if index == saved or data.draw(st.booleans()):
            log.flush()
    log.flush()
    log = StepLog(folder / "found.csv", keep=saved)
    assert log.rows == saved
    for row in rows[saved:]:
        log.append(row)
    log.flush()
    assert (folder / "found.csv").read_bytes() == (folder / "wanted.csv").read_bytes()


def test_numbers_are_read_back_exactly_and_missing_ones_are_empty(tmp_path: Path) -> None:
    write_rows(tmp_path / "log.csv", [{"a": 0.1 + 0.2, "note": "one, two"}, {"b": 1}])
    with open(tmp_path / "log.csv", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert float(first["a"]) == 0.1 + 0.2
    assert first["note"] == "one, two"
    assert second == {"a": "", "note": "", "b": "1"}


def test_a_line_that_a_kill_left_half_written_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    StepLog(path, keep=1).flush()
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_a_log_that_lost_rows_or_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    write_rows(path, [{"step": 1}])
    with pytest.raises(CheckpointError, match=r"steps\.csv: has 1 rows, the checkpoint counts 2"):
        StepLog(path, keep=2)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"steps\.csv: cannot be read \(No such file"):
        StepLog(path, keep=2)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = StepLog(tmp_path / "steps.csv")
    log.append({"step": 1})
    log.flush()
    log.append({"step": 2})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(structured.logs.os, "fsync", full)
    with pytest.raises(StructuredError, match=r"steps\.csv: could not be written \(No space left"):
        log.flush()
    with pytest.raises(StructuredError, match=r"log\.csv: could not be written \(No space left"):
        write_rows(tmp_path / "log.csv", [])
