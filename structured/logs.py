"""What a run writes while it trains: CSV files and, if wanted, TensorBoard events.

The files follow the checkpoint: on resuming, whatever a killed run wrote after it is taken back, so
that an interrupted and an uninterrupted run leave the same files.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from structured._atomic import write_atomically
from structured.errors import CheckpointError, StructuredError

Row = Mapping[str, Any]


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write rows as CSV, whole or not at all.

    Columns are in the order of their first appearance; what a row lacks is left empty. Floats are
    written so that reading them gives the same number back.

    Raises:
        StructuredError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_rows(Path(folder) / "log.csv", [{"epoch": 1}, {"epoch": 2, "gap": 0.5}])
        ...     print((Path(folder) / "log.csv").read_text(), end="")
        epoch,gap
        1,
        2,0.5
    """
    try:
        write_atomically(Path(path), _text(rows, _columns(rows)).encode())
    except OSError as error:
        raise _unwritable(path, error) from error


class StepLog:
    """A CSV file that grows by one row a step, in blocks.

    Rows are held until `flush`, which the trainer calls just before it saves a checkpoint: the file
    then has at least the rows that the checkpoint counts.

    Args:
        path: the file.
        keep: rows of an earlier part of the run to keep; all after them are dropped.

    Attributes:
        rows: rows logged so far, the kept ones included.

    Raises:
        CheckpointError: if the file has fewer rows than should be kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = StepLog(Path(folder) / "steps.csv")
        ...     log.append({"step": 1, "loss": 0.5})
        ...     log.flush()
        ...     (Path(folder) / "steps.csv").read_text().splitlines()
        ['step,loss', '1,0.5']
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 0) -> None:
        self._path = Path(path)
        self._held: list[Row] = []
        self.rows = keep
        kept = self._read()[:keep] if keep else []
        if len(kept) < keep:
            raise CheckpointError(
                f"{os.fspath(path)}: has {len(kept)} rows, the checkpoint counts {keep}; "
                "restore the file or train anew in another folder"
            )
        self._known: list[str] = _columns(kept)
        write_rows(path, kept)

    def append(self, row: Row) -> None:
        """Log a row, to be written by the next `flush`."""
        self._held.append(dict(row))
        self.rows += 1

    def flush(self) -> None:
        """Bring what was logged to the disk.

        Raises:
            StructuredError: if the file cannot be written.
        """
        if not self._held:
            return
        columns = _columns([dict.fromkeys(self._known), *self._held])
        if columns != self._known:  # a figure that was never there before: a wider file
            write_rows(self._path, [*self._read(), *self._held])
        else:
            try:
                with open(self._path, "a", newline="") as stream:
                    stream.write(_text(self._held, columns, header=False))
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                raise _unwritable(self._path, error) from error
        self._known, self._held = columns, []

    def _read(self) -> list[dict[str, str]]:
        try:
            with open(self._path, newline="") as stream:
                return list(csv.DictReader(stream))
        except OSError as error:
            raise CheckpointError(
                f"{self._path}: cannot be read ({error.strerror or error}); the run it belongs to "
                "needs it to go on"
            ) from error


class TensorBoardLog:
    """Figures as TensorBoard scalars over the number of steps.

    Args:
        folder: where the event files go.
        first_step: the first step that is new; TensorBoard hides later ones of a killed run.

    Raises:
        StructuredError: if the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise StructuredError(
                "TensorBoard logs were asked for, but tensorboard is not installed; "
                "`pip install tensorboard`, or leave them out (log.csv is always written)"
            ) from error
        self._writer = SummaryWriter(os.fspath(folder), purge_step=first_step)

    def write(self, group: str, row: Row, step: int) -> None:
        """Write a row's numbers under ``group/name``."""
        for name, value in row.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the event file."""
        self._writer.close()


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _text(rows: Sequence[Row], columns: Sequence[str], *, header: bool = True) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _unwritable(path: str | os.PathLike[str], error: OSError) -> StructuredError:
    return StructuredError(
        f"{os.fspath(path)}: could not be written ({error.strerror or error}); free space or "
        "choose another folder, then resume from the last checkpoint"
    )
