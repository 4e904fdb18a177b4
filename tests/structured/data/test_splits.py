"""Stratification: exact sizes, the same for a seed, and even shares of every label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from structured.data import (
    MultiLabelData,
    Split,
    carve,
    iterative_stratification,
    shares,
    stratified,
    train_validation_test,
)
from structured.errors import DataError

LABELS = hnp.arrays(
    np.int8, st.tuples(st.integers(3, 40), st.integers(1, 6)), elements=st.integers(0, 1)
)


@settings(max_examples=60)
@given(LABELS, st.integers(0, 2**32), st.data())
def test_sizes_are_exact_and_every_row_has_one_part(Y, seed, draw):
    first = draw.draw(st.integers(1, len(Y) - 2))
    second = draw.draw(st.integers(1, len(Y) - first - 1))
    sizes = [first, second, len(Y) - first - second]
    parts = iterative_stratification(Y, sizes, seed)
    assert np.bincount(parts, minlength=3).tolist() == sizes


@settings(max_examples=30)
@given(LABELS, st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_parts_for_any_form_of_the_labels(Y, seed):
    sizes = shares(len(Y), [2, 1])
    parts = iterative_stratification(Y, sizes, seed)
    np.testing.assert_array_equal(parts, iterative_stratification(Y.tolist(), sizes, seed))
    np.testing.assert_array_equal(
        parts, iterative_stratification(sparse.csc_matrix(Y), sizes, seed)
    )


def test_other_seeds_give_other_parts():
    Y = np.eye(4)[np.arange(40) % 4]
    parts = {iterative_stratification(Y, [20, 20], seed).tobytes() for seed in range(5)}
    assert len(parts) > 1


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(0, 100))
def test_with_one_label_a_row_each_label_is_shared_out_to_within_one_row(classes, seed):
    Y = np.eye(4, dtype=np.int8)[classes]
    sizes = shares(len(Y), [1, 1])
    parts = iterative_stratification(Y, sizes, seed)
    first, second = Y[parts == 0].sum(axis=0), Y[parts == 1].sum(axis=0)
    assert (abs(first - second) <= 2).all()


def test_rare_labels_are_shared_out_better_than_by_chance():
    rng = np.random.default_rng(0)
    Y = (rng.random((600, 30)) < rng.uniform(0.005, 0.1, size=30)).astype(np.int8)
    sizes = [360, 120, 120]

    def unevenness(parts) -> float:
        counts = np.array([Y[parts == part].sum(axis=0) for part in range(3)])
        wanted = np.outer(np.array(sizes) / 600, Y.sum(axis=0))
        return float(abs(counts - wanted).sum())

    by_chance = np.repeat([0, 1, 2], sizes)
    chance = np.mean([unevenness(rng.permutation(by_chance)) for _ in range(20)])
    assert unevenness(iterative_stratification(Y, sizes)) < chance / 3


def test_a_label_with_as_many_rows_as_parts_reaches_every_part():
    Y = np.zeros((30, 2), dtype=np.int8)
    Y[[3, 11, 20], 0] = 1
    Y[:, 1] = 1
    parts = iterative_stratification(Y, [10, 10, 10])
    assert sorted(parts[[3, 11, 20]]) == [0, 1, 2]


@pytest.mark.parametrize("sizes", [[3, 3], [4, 0], [5, -1], [], [1] * 4 + [0]])
def test_sizes_that_do_not_add_up_are_refused(sizes):
    with pytest.raises(DataError, match="must be positive, at most 127, and add up to 4"):
        iterative_stratification(np.ones((4, 1)), sizes)


@given(st.integers(1, 500), st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
def test_shares_add_up_and_are_as_near_as_whole_numbers_come(n, fractions):
    if n < len(fractions):
        with pytest.raises(DataError, match="cannot fill"):
            shares(n, fractions)
        return
    sizes = shares(n, fractions)
    assert sum(sizes) == n
    assert min(sizes) >= 1
    exact = np.array(fractions) * n / sum(fractions)
    if exact.min() >= 1:
        assert (abs(np.array(sizes) - exact) < 1 + 1e-9).all()


@pytest.mark.parametrize("fractions", [[], [0.5, 0], [1, -1]])
def test_fractions_must_be_positive(fractions):
    with pytest.raises(DataError, match="fractions must be positive"):
        shares(10, fractions)


def toy(rows: int = 20) -> MultiLabelData:
    rng = np.random.default_rng(0)
    return MultiLabelData(
        X=np.arange(rows, dtype=float)[:, None] + 1, Y=rng.integers(2, size=(rows, 3)), name="toy"
    )


def test_rows_that_are_not_chosen_are_in_no_part():
    data = toy()
    chosen = np.arange(20) % 4 > 0
    split = stratified(data, [10, 5], ("a", "b"), rows=chosen)
    np.testing.assert_array_equal(split.parts >= 0, chosen)
    by_number = stratified(data, [10, 5], ("a", "b"), rows=np.flatnonzero(chosen))
    np.testing.assert_array_equal(split.parts, by_number.parts)


def test_carving_shares_out_all_rows_and_says_how():
    train = toy().subset(np.arange(20), split="split", part="train")
    rest, validation = carve(train, 0.25, seed=3)
    assert (rest.n_rows, validation.n_rows) == (15, 5)
    rows = np.sort(np.concatenate([rest.dense()[0], validation.dense()[0]]).ravel())
    np.testing.assert_array_equal(rows, train.dense()[0].ravel())
    assert rest.title == "toy (split, validation 0.25, seed 3/train)"
    assert validation.title == "toy (split, validation 0.25, seed 3/validation)"
    again = carve(train, 0.25, seed=3)[1]
    np.testing.assert_array_equal(validation.X, again.X)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_the_carved_fraction_is_between_0_and_1(fraction):
    with pytest.raises(DataError, match="fraction must be between 0 and 1"):
        carve(toy(), fraction)


def test_one_row_cannot_be_carved():
    with pytest.raises(DataError, match="1 rows cannot fill 2 parts"):
        carve(toy(1), 0.5)


def test_a_split_with_three_parts_gives_them_and_one_with_two_has_one_carved():
    data = toy(10).with_split("two", Split([0] * 8 + [1] * 2, ("train", "test")))
    data = data.with_split("three", Split([2, 1, *[0] * 8], ("train", "validation", "test")))
    assert [part.n_rows for part in train_validation_test(data, "three")] == [8, 1, 1]
    carved = train_validation_test(data, "two", fraction=0.25, seed=1)
    assert [part.n_rows for part in carved] == [6, 2, 2]
    expected = carve(data.split("two")["train"], 0.25, seed=1)
    for part, wanted in zip(carved, expected, strict=False):
        np.testing.assert_array_equal(part.X, wanted.X)
        assert part.title == wanted.title


def test_a_split_into_other_parts_cannot_be_trained_on():
    data = toy(4).with_split("halves", Split([0, 0, 1, 1], ("left", "right")))
    with pytest.raises(DataError, match=r"'halves' of toy has the parts .* wanted train and test"):
        train_validation_test(data, "halves")
