"""Independent pieces of work in several processes at once, each on threads of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from tqdm import tqdm

from structured.errors import StructuredError

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")


class WorkerError(StructuredError, RuntimeError):
    """A worker process ended without an answer."""


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(device: torch.device) -> int:
    """Return how many trainings to run at once: one per core, but one on an accelerator."""
    return usable_cores() if device.type == "cpu" else 1


class Workers(Generic[S, U, R]):
    """Processes that each do one unit of work after another, for the length of a block.

    They are started afresh (not forked), ignore an interrupt, which is for the caller to handle,
    and end with the block, or with the caller if that is killed.

    Args:
        function: called in a process as ``function(shared, unit)``; a function of a module.
        shared: what all units need, such as data; sent to each process once.
        count: of the processes, at least 1.
        threads: of PyTorch in each process.
    """

    def __init__(
        self, function: Callable[[S, U], R], shared: S, *, count: int, threads: int = 1
    ) -> None:
        self._start = (function, shared, threads)
        self._count = count
        self._processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Workers[S, U, R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection, process in self._processes.items():
            process.terminate()
            connection.close()
        for process in self._processes.values():
            process.join()
            process.close()
        self._processes.clear()

    def run(self, units: Sequence[U]) -> Iterator[tuple[U, R]]:
        """Do all units, begun in their order; yield each with what came out, as they end.

        Raises:
            WorkerError: if a process was killed; the message names its unit.
            Exception: what the function raised, with the traceback of the process as a note.
        """
        waiting = list(reversed(units))
        busy: dict[Connection, U] = {}
        for connection in self._ready(min(self._count, len(units))):
            self._hand(connection, waiting.pop(), busy)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                unit = busy[connection]
                found, error = self._answer(connection, unit)
                del busy[connection]
                if error is not None:
                    raise error
                if waiting:  # before the caller takes its time with what came out
                    self._hand(connection, waiting.pop(), busy)
                yield unit, found

    def _ready(self, count: int) -> list[Connection]:
        """The connections to so many processes; those that are missing are started."""
        context = multiprocessing.get_context("spawn")
        while len(self._processes) < count:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, *self._start), daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process
        return list(self._processes)[:count]

    def _hand(self, connection: Connection, unit: U, busy: dict[Connection, U]) -> None:
        busy[connection] = unit
        try:
            connection.send(unit)
        except BrokenPipeError:
            raise self._killed(connection, unit) from None

    def _answer(self, connection: Connection, unit: U) -> tuple[R, Exception | None]:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._killed(connection, unit) from None

    def _killed(self, connection: Connection, unit: U) -> WorkerError:
        process = self._processes[connection]
        process.join()
        return WorkerError(
            f"{unit}: its process ended without an answer (exit code {process.exitcode}), likely "
            "for want of memory; take fewer jobs (--jobs), and resume"
        )


def _serve(
    connection: Connection, function: Callable[[Any, Any], Any], shared: Any, threads: int
) -> None:
    """What a process does: units come in, pairs of result and error go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    # The semaphore of tqdm's own lock would be left behind by a process that is ended underway.
    tqdm.set_lock(threading.RLock())
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        try:
            answer = function(shared, unit), None
        except Exception as error:
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
            answer = None, error
        connection.send(answer)


def _end_with_parent() -> None:
    """A run that goes on without anyone to report to would keep its folder locked."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
