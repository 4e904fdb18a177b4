"""Minibatches: rows of a sparse or dense table as dense float32 tensors on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor

RESIDENT_BYTES = 2**30
"""A table is kept dense in an accelerator's memory if it needs at most this many bytes.

Whatever is not there has to be made dense and sent over for every batch.
"""

CPU_RESIDENT_BYTES = 2**28
"""A table is kept dense in the CPU's memory if it needs at most this many bytes.

That spares every batch the indexing of a sparse table; but the memory is shared with the data
themselves and with other processes, and wide sparse tables would need a hundred times their size.
"""


class Rows:
    """A table ``[n, d]`` that hands out rows as a dense float32 tensor.

    A table that needs at most `RESIDENT_BYTES` as dense float32, ``4 n d`` bytes, is made dense
    once and kept on the device; on the CPU the bound is `CPU_RESIDENT_BYTES`. It is a copy: later
    changes of the table are not seen. A larger table stays as it is in main memory, sparse if it
    was, and each batch is made dense.

    Args:
        table: sparse or dense, ``[n, d]``, of numbers.
        device: where the tensors go; "cpu" by default.

    Raises:
        ValueError: if the table does not have two dimensions.

    Example:
        >>> from scipy import sparse
        >>> Rows(sparse.csr_array([[0, 1], [2, 0], [0, 3]])).take([2, 0])
        tensor([[0., 3.],
                [0., 1.]])
    """

    def __init__(self, table: Any, device: torch.device | str = "cpu") -> None:
        given: Any = sparse.csr_array(table) if sparse.issparse(table) else np.asarray(table)
        if given.ndim != 2:
            raise ValueError(
                f"table: found shape {tuple(given.shape)}, wanted two dimensions [n, d]"
            )
        self.device = torch.device(device)
        bound = CPU_RESIDENT_BYTES if self.device.type == "cpu" else RESIDENT_BYTES
        resident = 4 * given.shape[0] * given.shape[1] <= bound
        self._table: Any = _dense(given).to(self.device) if resident else given

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._table.shape
        return rows, columns

    def take(self, rows: ArrayLike) -> Tensor:
        """Return the rows of the given numbers, in their order, ``[len(rows), d]``."""
        # A copy, since torch takes no array that is read-only or runs backwards.
        wanted = np.array(rows, dtype=np.int64)
        if isinstance(self._table, Tensor):
            return self._table.index_select(0, torch.from_numpy(wanted).to(self.device))
        return _dense(self._table[wanted]).to(self.device)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


class Batches:
    """Every row once an epoch, in an order that only the seed and the epoch decide.

    Iterating yields what is left of the present epoch and then moves on to the next, so that a loop
    over `Batches` can be left, saved with `state_dict`, and taken up again elsewhere.

    A table that needs at most 256 MiB as dense float32 is copied once, on an accelerator one that
    needs at most 1 GiB; of a larger one each batch is made dense.

    Args:
        X: inputs, sparse or dense, ``[n, d]``.
        Y: gold outputs, sparse or dense, ``[n, L]``.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
        seed: of the order, at least 0. No other source of randomness is used or disturbed.
        shuffle: False takes the rows in their own order.
        device: where the tensors go.

    Attributes:
        epoch: epochs completed.
        position: batches of the present epoch that were handed out.

    Raises:
        ValueError: if X and Y differ in length, there is no row, or a number is out of range.

    Example:
        >>> batches = Batches([[1.0], [2.0], [3.0]], [[0], [1], [0]], 2, shuffle=False)
        >>> [x.flatten().tolist() for x, y in batches]
        [[1.0, 2.0], [3.0]]
        >>> batches.epoch
        1
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self._x, self._y = Rows(X, device), Rows(Y, device)
        if len(self._x) != len(self._y) or len(self._x) == 0:
            raise ValueError(
                f"Y: found {len(self._y)} rows for {len(self._x)} rows of X, wanted the same "
                "number, at least one"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size: found {batch_size}, wanted at least 1")
        if seed < 0:
            raise ValueError(f"seed: found {seed}, wanted at least 0")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epoch = 0
        self.position = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self._x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(self.epoch)
        while self.position < self.steps_per_epoch:
            start = self.position * self.batch_size
            rows = order[start : start + self.batch_size]
            self.position += 1
            yield self._x.take(rows), self._y.take(rows)
        self.epoch += 1
        self.position = 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the rows in an epoch, counted from 0."""
        if not self.shuffle:
            return np.arange(len(self._x))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self._x))

    def state_dict(self) -> dict[str, int]:
        """Return the place in the data, as plain numbers."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            ValueError: if the place does not exist in these data.
        """
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= self.steps_per_epoch:
            raise ValueError(
                f"state: found batch {position} of epoch {epoch}, wanted one of "
                f"{self.steps_per_epoch} batches; were the data or the batch size others then?"
            )
        self.epoch, self.position = epoch, position


def _dense(table: Any) -> Tensor:
    # Into memory that torch allocated: its alignment is always the same, and with it the order in
    # which the BLAS sums. Arrays from NumPy would make runs differ in the last bit.
    out = torch.empty(table.shape, dtype=torch.float32)
    if isinstance(table, np.ndarray):
        out.numpy()[...] = table
    else:
        table.astype(np.float32).toarray(out=out.numpy())
    return out
