"""Strips of handwritten digits whose labels are bound by rules; nothing to download.

A row shows `length` digits side by side, from the 1797 images of 8 x 8 pixels that scikit-learn
ships (Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI). Its labels
follow from the digits alone: which occur, whether one repeats, the parity and range of the sum, the
order. Where the image leaves a digit open, the labels stay bound to each other, which is what an
energy over labels can know and a label-by-label loss cannot.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits

from structured.data.multilabel import MultiLabelData, Split
from structured.data.splits import THREE_PARTS
from structured.errors import DataError

SIDE = 8
"""Pixels on a side of a digit."""

_POOL_SHARES = (0.6, 0.2, 0.2)  # of the images of each digit: for training, validation, test


def digit_strips(
    n_train: int = 4000,
    n_validation: int = 1000,
    n_test: int = 1000,
    *,
    length: int = 3,
    noise: float = 0.1,
    occlusion: float = 0.1,
    seed: int = 0,
) -> MultiLabelData:
    """Make strips of digits with the labels of `rules`, split into parts that share no image.

    Args:
        n_train: Rows to train on.
        n_validation: Rows to tune on.
        n_test: Rows to report on.
        length: Digits in a strip, at least 2.
        noise: Standard deviation of the Gaussian noise on pixels from 0 to 1; the sum is clipped.
        occlusion: The probability that a digit has one of its four halves blanked.
        seed: Of everything random.

    Returns:
        X of shape [n, 64 * length], dense, in [0, 1], row by row of the strip as an image of
        `meta["image_shape"]` = [8, 8 * length]; Y of shape [n, 20] named by `rule_names`; the split
        "disjoint_images" into train, validation and test.

    Raises:
        DataError: A part is empty, `length` is below 2, or `noise` or `occlusion` is out of range.

    Example:
        >>> data = digit_strips(60, 20, 20, length=3)
        >>> print(data.split("disjoint_images")["test"])
        digits (disjoint_images/test): 20 rows, 192 features, 20 labels, cardinality 6.200
    """
    sizes = (n_train, n_validation, n_test)
    if min(sizes) < 1:
        raise DataError(f"every part needs a row; found the sizes {list(sizes)}")
    if not (noise >= 0 and 0 <= occlusion <= 1):
        raise DataError(
            f"noise must be >= 0 and occlusion between 0 and 1; found {noise} and {occlusion}"
        )
    images, targets = _images()
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            rng.choice(pool, size=(size, length))
            for pool, size in zip(image_pools(targets, rng), sizes, strict=True)
        ]
    )
    return MultiLabelData(
        X=_render(images[chosen], noise, occlusion, rng),
        Y=rules(targets[chosen]),
        label_names=rule_names(length),
        splits={"disjoint_images": Split(np.repeat(np.arange(3), sizes), THREE_PARTS)},
        name="digits",
        meta={
            "image_shape": [SIDE, SIDE * length],
            "length": length,
            "noise": noise,
            "occlusion": occlusion,
            "seed": seed,
        },
    )


def rules(digits: ArrayLike) -> NDArray[np.int8]:
    """Return the labels that strips of digits have, in the order of `rule_names`.

    Args:
        digits: Shape [n, length], integers from 0 to 9, length at least 2.

    Returns:
        Shape [n, 20], 0 or 1: does 0, ..., 9 occur; does a digit occur twice; is the sum even; in
        which of the four ranges of `sum_ranges` is the sum; do the digits ascend strictly; is the
        first above the last; do two digits side by side differ by one; are more odd than even.

    Raises:
        DataError: The shape is another one, or an entry is no digit.

    Example:
        >>> row = rules([[2, 2, 5]])[0]
        >>> list(itertools.compress(rule_names(3), row))
        ['has_2', 'has_5', 'repeat', 'sum_0_9']
    """
    digits = np.asarray(digits)
    if digits.ndim != 2 or not np.issubdtype(digits.dtype, np.integer):
        raise DataError(
            f"digits have shape {list(digits.shape)}, dtype {digits.dtype}; wanted integers of "
            "shape [n, length]"
        )
    if digits.size and not 0 <= digits.min() <= digits.max() <= 9:
        raise DataError(f"digits are 0 to 9; found {digits.min()} to {digits.max()}")
    length = digits.shape[1]
    occurs = (digits[:, :, None] == np.arange(10)).any(axis=1)
    total = digits.sum(axis=1)
    steps = np.diff(digits, axis=1)
    columns = [
        occurs.sum(axis=1) < length,
        total % 2 == 0,
        *((low <= total) & (total <= high) for low, high in sum_ranges(length)),
        (steps > 0).all(axis=1),
        digits[:, 0] > digits[:, -1],
        (abs(steps) == 1).any(axis=1),
        (digits % 2).sum(axis=1) * 2 > length,
    ]
    return np.column_stack([occurs, *columns]).astype(np.int8)


def rule_names(length: int) -> tuple[str, ...]:
    """Return the names of the labels of `rules`; those of the sums depend on the length.

    Example:
        >>> rule_names(4)[10:]
        ('repeat', 'sum_even', 'sum_0_13', 'sum_14_17', 'sum_18_22', 'sum_23_36', 'ascending',
         'first_above_last', 'neighbours', 'mostly_odd')
    """
    return (
        *(f"has_{digit}" for digit in range(10)),
        "repeat",
        "sum_even",
        *(f"sum_{low}_{high}" for low, high in sum_ranges(length)),
        "ascending",
        "first_above_last",
        "neighbours",
        "mostly_odd",
    )


def sum_ranges(length: int) -> list[tuple[int, int]]:
    """Return four ranges of the sum, first and last included, each as likely as can be.

    Args:
        length: The number of digits, at least 2, each from 0 to 9 with equal chances.

    Example:
        >>> sum_ranges(4)
        [(0, 13), (14, 17), (18, 22), (23, 36)]
    """
    if length < 2:
        raise DataError(f"a strip has at least 2 digits; found {length}")
    ways = [1]  # of reaching each sum; whole numbers, so that equals are equal everywhere
    for _ in range(length):
        ways = [sum(ways[max(total - 9, 0) : total + 1]) for total in range(len(ways) + 9)]
    below = list(itertools.accumulate(ways))
    cuts = [
        min(range(len(below)), key=lambda total: abs(4 * below[total] - quarter * below[-1]))
        for quarter in (1, 2, 3)
    ]
    return list(zip([0, *(cut + 1 for cut in cuts)], [*cuts, 9 * length], strict=True))


def image_pools(targets: NDArray[np.intp], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return the images each part may draw from: 60, 20 and 20 percent of those of each digit.

    Args:
        targets: Shape [m], the digit of every image.
        rng: Shuffles the images of a digit.

    Returns:
        Three disjoint vectors of image numbers that cover all.
    """
    shuffled = [rng.permutation(np.flatnonzero(targets == digit)) for digit in np.unique(targets)]
    bounds = np.cumsum(_POOL_SHARES)[:-1]
    cut = [np.split(pool, np.round(bounds * pool.size).astype(int)) for pool in shuffled]
    return [np.concatenate(parts) for parts in zip(*cut, strict=True)]


def _images() -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """All images [m, 8, 8] with pixels from 0 to 1, and their digits [m]."""
    images, targets = load_digits(return_X_y=True)
    return (images.reshape(-1, SIDE, SIDE) / 16).astype(np.float32), targets.astype(np.intp)


def _render(
    digits: NDArray[np.float32], noise: float, occlusion: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Strips [n, 64 * length] from digits [n, length, 8, 8]: occluded, side by side, noisy."""
    n, length = digits.shape[:2]
    halves = np.zeros((5, SIDE, SIDE), dtype=bool)  # the last hides nothing
    halves[0, : SIDE // 2], halves[1, SIDE // 2 :] = True, True
    halves[2, :, : SIDE // 2], halves[3, :, SIDE // 2 :] = True, True
    hidden = np.where(rng.random((n, length)) < occlusion, rng.integers(4, size=(n, length)), 4)
    strips = np.where(halves[hidden], np.float32(0), digits)
    strips = strips.transpose(0, 2, 1, 3).reshape(n, -1)
    strips = strips + rng.normal(scale=noise, size=strips.shape).astype(np.float32)
    return np.clip(strips, 0, 1)
