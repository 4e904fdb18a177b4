from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from structured.errors import CheckpointError
from structured.workers import WorkerError, Workers, default_jobs, usable_cores

REPOSITORY = Path(__file__).parents[2]


def work(shared: int, unit: int) -> tuple[int, int, int]:
    """Different endings for different units."""
    if unit == -1:
        raise CheckpointError("unit -1: is damaged")
    if unit == -2:
        os.kill(os.getpid(), signal.SIGKILL)
    if unit == -3:
        time.sleep(600)
    return shared + unit, os.getpid(), torch.get_num_threads()


def test_all_units_are_done_in_other_processes_with_threads_of_their_own() -> None:
    with Workers(work, 10, count=2, threads=1) as workers:
        first = dict(workers.run(range(6)))
        second = dict(workers.run([7]))
    assert {unit: found[0] for unit, found in first.items()} == {n: 10 + n for n in range(6)}
    processes = {found[1] for found in first.values()}
    assert os.getpid() not in processes
    assert {found[2] for found in first.values()} == {1}
    assert second[7][1] in processes  # which are kept
    assert not multiprocessing.active_children()


def test_an_error_comes_through_with_what_was_done_before_it() -> None:
    done = []
    with (
        pytest.raises(CheckpointError, match="unit -1: is damaged") as caught,
        Workers(work, 0, count=1) as workers,
    ):
        done.extend(unit for unit, _ in workers.run([1, 2, -1, 3]))
    assert "In a worker process:\nTraceback" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_in_one_line_that_names_its_unit() -> None:
    with (
        pytest.raises(WorkerError, match=r"^-2: its process ended .*-9.*fewer jobs.*resume$"),
        Workers(work, 0, count=1) as workers,
    ):
        list(workers.run([-2]))
    assert not multiprocessing.active_children()


def test_an_interrupt_ends_what_is_underway() -> None:
    def interrupted() -> None:
        with Workers(work, 0, count=2) as workers:
            for _ in workers.run([-3, 1]):
                raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 100
    assert not multiprocessing.active_children()


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from structured.workers import Workers\n"
        "def work(shared, unit):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with Workers(work, 0, count=1) as workers:\n"
        "        list(workers.run([0]))\n"
    )
    running = subprocess.Popen(
        [sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    with running.stdout as stream:
        assert int(stream.readline()) != running.pid
        running.kill()
        running.wait()
        assert stream.read() == ""  # comes once no process holds the other end


def test_jobs_are_the_cores_on_a_cpu_and_one_on_an_accelerator() -> None:
    assert default_jobs(torch.device("cpu")) == usable_cores() >= 1
    assert default_jobs(torch.device("cuda")) == 1
