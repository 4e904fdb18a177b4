"""Minibatches: every row once, in an order that can be taken up again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from structured.batches import Batches, Rows

SEEDS = st.integers(0, 2**32 - 1)


def _numbered(n: int, batch_size: int, **options: object) -> Batches:
    """Batches whose only feature is the number of the row."""
    X = np.arange(n, dtype=np.float32)[:, None]
    return Batches(X, np.zeros((n, 1), dtype=np.int8), batch_size, **options)  # type: ignore[arg-type]


def _epoch(batches: Batches) -> list[list[int]]:
    return [x.flatten().int().tolist() for x, _ in batches]


@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=SEEDS)
@settings(max_examples=40)
def test_every_row_comes_once_an_epoch_in_full_batches_but_for_the_last(
    n: int, size: int, seed: int
) -> None:
    batches = _numbered(n, size, seed=seed)
    found = _epoch(batches)
    assert sorted(row for batch in found for row in batch) == list(range(n))
    assert len(found) == batches.steps_per_epoch
    assert all(len(batch) == size for batch in found[:-1])
    assert batches.epoch == 1


@given(n=st.integers(2, 30), size=st.integers(1, 8), seed=SEEDS, data=st.data())
@settings(max_examples=40)
def test_a_loop_left_anywhere_goes_on_elsewhere_with_the_same_rows(
    n: int, size: int, seed: int, data: st.DataObject
) -> None:
    whole = _numbered(n, size, seed=seed)
    wanted = [*_epoch(whole), *_epoch(whole)]
    first = _numbered(n, size, seed=seed)
    taken = data.draw(st.integers(0, first.steps_per_epoch))
    rows = [x.flatten().int().tolist() for _, (x, _) in zip(range(taken), first, strict=False)]
    second = _numbered(n, size, seed=seed)
    second.load_state_dict(first.state_dict())
    assert [*rows, *_epoch(second), *_epoch(second)][: len(wanted)] == wanted


def test_the_order_is_another_one_in_each_epoch_and_for_each_seed() -> None:
    batches = _numbered(50, 50)
    orders = [_epoch(batches), _epoch(batches), _epoch(_numbered(50, 50, seed=1))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_without_shuffling_rows_come_in_their_own_order() -> None:
    assert _epoch(_numbered(5, 2, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_no_shared_generator_is_used() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _epoch(_numbered(10, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_sparse_and_dense_tables_give_the_same_float32_batches() -> None:
    rng = np.random.default_rng(0)
    X = rng.random((20, 7)) * (rng.random((20, 7)) < 0.3)
    Y = (rng.random((20, 4)) < 0.5).astype(np.int8)
    dense = Batches(X, Y, 6)
    thin = Batches(sparse.csr_array(X), sparse.csr_matrix(Y), 6)
    for (x, y), (thin_x, thin_y) in zip(dense, thin, strict=True):
        assert x.dtype == y.dtype == torch.float32
        assert torch.equal(x, thin_x)
        assert torch.equal(y, thin_y)


def test_a_batch_is_a_copy_that_leaves_the_table_alone() -> None:
    table = np.ones((2, 2), dtype=np.float32)
    table.flags.writeable = False
    Rows(table).take([0]).zero_()
    assert table.sum() == 4


def test_a_table_is_moved_to_an_accelerator_once_if_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meta = Rows(np.ones((3, 2)), "meta")
    assert meta.take([2, 0]).shape == (2, 2)
    assert meta._resident is not None
    monkeypatch.setattr("structured.batches.RESIDENT_BYTES", 8)
    large = Rows(np.ones((3, 2)), "meta")
    assert large._resident is None
    assert large.take([2, 0]).device.type == "meta"


def test_chunks_hold_all_rows_in_order() -> None:
    rows = Rows(np.arange(5.0)[:, None])
    assert [chunk.flatten().tolist() for chunk in rows.chunks(2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": np.zeros((2, 1))}, "Y: found 2 rows for 3 rows of X"),
        ({"X": np.zeros((0, 2)), "Y": np.zeros((0, 1))}, "Y: found 0 rows"),
        ({"X": np.zeros(3)}, r"table: found shape \(3,\)"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_what_cannot_be_batched_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"X": np.zeros((3, 2)), "Y": np.zeros((3, 1)), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        Batches(**(arguments | change))  # type: ignore[arg-type]


def test_a_place_that_these_data_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 9 of epoch 0, wanted one of 2 batches"):
        _numbered(4, 2).load_state_dict({"epoch": 0, "position": 9})
