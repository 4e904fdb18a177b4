"""Two processes never train in one folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import structured._lock
from structured._lock import alone_in
from structured.errors import CheckpointError, StructuredError
from structured.run_folder import LOCK, REFIT
from tests.structured.runs import FAST, QUICK, REFIT_STEPS, killed_in_step, outcome, run
from tests.structured.runs import REFIT as WITH_REFIT

IN_USE = r"run: another process is using this folder; let it end, or choose another folder$"

# It trains, and stops in its third step, with the run's folder in use, until it is ended.
_OTHER = """
import sys, time
from pathlib import Path
from structured.methods import CrossEntropyLearner
from tests.structured.runs import FAST, QUICK, run

original, calls = CrossEntropyLearner.step, 0

def step(self, x, y):
    global calls
    calls += 1
    if calls == 3:
        print("in step 3", flush=True)
        time.sleep(600)
    return original(self, x, y)

CrossEntropyLearner.step = step
run(FAST, QUICK, run_dir=Path(sys.argv[1]))
"""


@contextmanager
def _other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Within the block another process is in the middle of a run in the folder."""
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "in step 3\n"
        yield other
    finally:
        other.kill()
        other.communicate(timeout=60)


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with _other_process(folder) as other:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for resume in (True, False):
            with pytest.raises(CheckpointError, match=IN_USE):
                run(FAST, QUICK, run_dir=folder, resume=resume)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=60)
        run(FAST, QUICK, run_dir=folder, resume=True)
    run(FAST, QUICK, run_dir=tmp_path / "whole")
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_folder_is_free_again_after_a_run_that_failed_or_ended(tmp_path: Path) -> None:
    with killed_in_step(FAST, 2):
        run(FAST, QUICK, run_dir=tmp_path)
    run(FAST, QUICK, run_dir=tmp_path, resume=True)
    with alone_in(tmp_path, LOCK):
        assert (tmp_path / LOCK).is_file()


def test_a_second_run_of_the_same_process_is_kept_out_too(tmp_path: Path) -> None:
    seen = []

    def interfere(record: object) -> None:
        with pytest.raises(CheckpointError, match=IN_USE):
            run(FAST, QUICK, run_dir=tmp_path / "run", resume=True)
        seen.append(record)

    run(FAST, QUICK, run_dir=tmp_path / "run", on_epoch=interfere)
    assert len(seen) == 3


def test_the_folder_of_a_run_stays_in_use_during_its_refit(tmp_path: Path) -> None:
    folder, refits = tmp_path / "run", []

    def interfere(record: Mapping[str, Any]) -> None:
        refits.append(record["step"] == record["epoch"] * REFIT_STEPS)
        for busy in (folder, folder / REFIT) if refits[-1] else (folder,):
            with (
                pytest.raises(CheckpointError, match="another process is using this folder"),
                alone_in(busy, LOCK),
            ):
                pass

    run(FAST, WITH_REFIT, run_dir=folder, on_epoch=interfere)
    assert refits == [False] * 4 + [True] * 3


def test_runs_in_different_folders_do_not_disturb_each_other(tmp_path: Path) -> None:
    def beside(record: object) -> None:
        run(FAST, replace(QUICK, epochs=1), run_dir=tmp_path / f"b{len(list(tmp_path.iterdir()))}")

    run(FAST, QUICK, run_dir=tmp_path / "a", on_epoch=beside)
    assert len(list(tmp_path.iterdir())) == 4


def test_where_the_file_system_has_no_locks_training_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(structured._lock, "_take", none)
    with alone_in(tmp_path, LOCK):
        run(FAST, QUICK, run_dir=tmp_path)
    assert (tmp_path / "result.json").exists()


def test_a_place_that_can_be_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StructuredError, match=r"file: cannot be written to \("):
        run(FAST, QUICK, run_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
