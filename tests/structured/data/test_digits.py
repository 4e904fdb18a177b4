"""The embedded set: its rules, its images, and that no part sees another's."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from structured.data import digit_strips, rule_names, rules
from structured.data.digits import image_pools, sum_ranges
from structured.errors import DataError

PIXELS, TARGETS = load_digits(return_X_y=True)
IMAGES = {
    (image / 16).astype(np.float32).tobytes(): int(digit)
    for image, digit in zip(PIXELS, TARGETS, strict=True)
}
"""The digit that each image of scikit-learn's shows."""

STRIPS = st.integers(2, 5).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 9), min_size=length, max_size=length), min_size=1, max_size=5
    )
)


def by_hand(strip: list[int]) -> set[str]:
    """The labels of one strip, each rule written out on its own."""
    names = {f"has_{digit}" for digit in strip}
    if any(strip.count(digit) > 1 for digit in strip):
        names.add("repeat")
    if sum(strip) % 2 == 0:
        names.add("sum_even")
    for low, high in sum_ranges(len(strip)):
        if low <= sum(strip) <= high:
            names.add(f"sum_{low}_{high}")
    if all(left < right for left, right in itertools.pairwise(strip)):
        names.add("ascending")
    if strip[0] > strip[-1]:
        names.add("first_above_last")
    if any(abs(left - right) == 1 for left, right in itertools.pairwise(strip)):
        names.add("neighbours")
    odd = sum(digit % 2 for digit in strip)
    if odd > len(strip) - odd:
        names.add("mostly_odd")
    return names


@given(STRIPS)
def test_the_rules_are_those_written_out_by_hand(strips):
    names = rule_names(len(strips[0]))
    found = [set(itertools.compress(names, row)) for row in rules(strips)]
    assert found == [by_hand(strip) for strip in strips]


@given(STRIPS)
def test_labels_are_bound_to_each_other(strips):
    table = dict(zip(rule_names(len(strips[0])), rules(strips).T.astype(int), strict=True))
    occurring = sum(table[f"has_{digit}"] for digit in range(10))
    np.testing.assert_array_equal(table["repeat"], occurring < len(strips[0]))
    in_range = sum(column for name, column in table.items() if name.startswith("sum_") and
                   name != "sum_even")  # fmt: skip
    np.testing.assert_array_equal(in_range, 1)
    assert not (table["ascending"] & table["repeat"]).any()
    assert not (table["ascending"] & table["first_above_last"]).any()


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_the_ranges_of_the_sum_are_whole_disjoint_and_about_as_likely(length):
    ranges = sum_ranges(length)
    covered = [total for low, high in ranges for total in range(low, high + 1)]
    assert covered == list(range(9 * length + 1))
    rng = np.random.default_rng(0)
    labels = rules(rng.integers(10, size=(4000, length)))
    names = rule_names(length)
    shares = [labels[:, names.index(f"sum_{low}_{high}")].mean() for low, high in ranges]
    assert 0.15 < min(shares) <= max(shares) < 0.35


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        ([1, 2], "shape"),
        ([[1.0, 2.0]], "dtype float64"),
        ([[1, 10]], "digits are 0 to 9; found 1 to 10"),
        ([[-1, 3]], "found -1 to 3"),
        ([[1]], "at least 2 digits; found 1"),
    ],
)
def test_what_is_no_strip_of_digits_is_refused(digits, message):
    with pytest.raises(DataError, match=message):
        rules(digits)


def test_the_default_has_20_labels_of_useful_frequency():
    data = digit_strips()
    assert data.splits["disjoint_images"].sizes() == {
        "train": 4000,
        "validation": 1000,
        "test": 1000,
    }
    assert (data.n_features, data.n_labels) == (192, 20)
    assert data.meta["image_shape"] == [8, 24]
    frequency = data.Y.toarray().mean(axis=0)
    assert 0.1 < frequency.min() <= frequency.max() < 0.6
    assert isinstance(data.X, np.ndarray)
    assert 0 <= data.X.min() < data.X.max() <= 1


def test_a_seed_makes_the_same_strips_and_another_seed_others():
    first, again, other = (digit_strips(20, 10, 10, seed=seed) for seed in (3, 3, 4))
    for ours, theirs in zip(first.dense(), again.dense(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.dense()[0], other.dense()[0])


def images_in(data, length: int) -> list[set[bytes]]:
    """The digit images, as bytes, in each part of clean strips."""
    return [
        {
            image.tobytes()
            for strip in part.dense()[0].reshape(-1, 8, 8 * length)
            for image in np.split(strip, length, axis=1)
        }
        for part in data.split("disjoint_images").values()
    ]


def test_parts_share_no_image():
    data = digit_strips(600, 200, 200, length=3, noise=0, occlusion=0)
    parts = images_in(data, 3)
    for one, other in itertools.combinations(parts, 2):
        assert not one & other
    assert set.union(*parts) <= IMAGES.keys()


@given(st.integers(0, 1000))
def test_the_pools_are_disjoint_cover_all_images_and_hold_every_digit(seed):
    targets = np.array(list(TARGETS))
    pools = image_pools(targets, np.random.default_rng(seed))
    assert sorted(np.concatenate(pools)) == list(range(targets.size))
    for pool, share in zip(pools, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(targets[pool], minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(targets), atol=1)


def test_clean_strips_show_the_digits_their_labels_are_made_of():
    data = digit_strips(100, 1, 1, length=4, noise=0, occlusion=0)
    strips = [
        [IMAGES[image.tobytes()] for image in np.split(strip, 4, axis=1)]
        for strip in data.dense()[0].reshape(-1, 8, 32)
    ]
    np.testing.assert_array_equal(data.Y.toarray(), rules(strips))


def test_an_occlusion_hides_half_of_each_digit_and_noise_moves_pixels():
    (clean, labels), (hidden, same), (noisy, _) = (
        digit_strips(200, 1, 1, noise=noise, occlusion=occlusion).dense()
        for noise, occlusion in ((0, 0), (0, 1), (0.1, 0))
    )
    np.testing.assert_array_equal(labels, same)
    kept = hidden.reshape(-1, 8, 3, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    quarters = kept.reshape(-1, 2, 4, 2, 4).sum(axis=(2, 4)) == 0
    halves = [quarters[:, 0].all(1), quarters[:, 1].all(1),
              quarters[:, :, 0].all(1), quarters[:, :, 1].all(1)]  # fmt: skip
    assert np.any(halves, axis=0).all()
    assert np.array(halves).any(axis=1).all()
    assert ((hidden == clean) | (hidden == 0)).all()
    between = (clean > 0.3) & (clean < 0.7)
    assert np.std((noisy - clean)[between]) == pytest.approx(0.1, rel=0.05)


def test_thousands_of_strips_take_less_than_a_second():
    begin = time.process_time()
    digit_strips(4000, 1, 1)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_validation": 0}, r"every part needs a row; found the sizes \[4000, 0, 1000\]"),
        ({"noise": -0.1}, "noise must be >= 0"),
        ({"noise": float("nan")}, "noise must be >= 0"),
        ({"occlusion": 1.1}, "occlusion between 0 and 1"),
        ({"length": 1}, "at least 2 digits"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        digit_strips(**options)
