"""Minibatches: every row once, in an order that can be taken up again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from structured import batches
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


@pytest.mark.parametrize(
    ("device", "bound"), [("cpu", "CPU_RESIDENT_BYTES"), ("meta", "RESIDENT_BYTES")]
)
def test_a_table_is_made_dense_once_if_it_fits_on_the_device_and_for_each_batch_if_not(
    monkeypatch: pytest.MonkeyPatch, device: str, bound: str
) -> None:
    made: list[tuple[int, ...]] = []

    def watched(table: Any) -> Tensor:
        made.append(table.shape)
        return dense(table)

    dense = batches._dense
    monkeypatch.setattr(batches, "_dense", watched)
    for limit, expected in ((24, [(3, 2)]), (23, [(2, 2), (1, 2)])):
        monkeypatch.setattr(batches, bound, limit)
        rows = Rows(np.ones((3, 2)), device)
        found = [rows.take([2, 0]), rows.take([1])]
        assert [tuple(one.shape) for one in found] == [(2, 2), (1, 2)]
        assert all(one.device.type == device for one in found)
        assert made == expected
        made.clear()


@given(seed=SEEDS, kind=st.sampled_from(["sparse", "float64", "int8"]))
@settings(max_examples=20, deadline=None)
def test_whether_a_table_is_kept_dense_changes_no_bit(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(9, 5)) * (rng.random((9, 5)) < 0.4)
    given = {"sparse": sparse.coo_array(table), "int8": (10 * table).astype(np.int8)}
    wanted = rng.integers(9, size=6)
    kept = Rows(given.get(kind, table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "CPU_RESIDENT_BYTES", 0)
        made = Rows(given.get(kind, table))
    assert torch.equal(kept.take(wanted), made.take(wanted))
    assert kept.shape == made.shape == (9, 5)


@pytest.mark.parametrize("bound", [0, 2**28])
def test_numbers_of_rows_may_be_read_only_or_run_backwards(
    monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(batches, "CPU_RESIDENT_BYTES", bound)
    numbers = np.arange(3)[::-1]
    numbers.flags.writeable = False
    assert Rows(np.arange(3.0)[:, None]).take(numbers).flatten().tolist() == [2.0, 1.0, 0.0]


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
