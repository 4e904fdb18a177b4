from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from structured.comparison_plot import plot_comparison
from tests.structured.test_comparison import comparison, made


def ink(path: Path) -> float:
    """How much of a picture is not white."""
    return float(np.mean(imread(path)[..., :3] < 0.9))


def test_every_method_with_a_run_has_a_row(tmp_path: Path) -> None:
    one = plot_comparison(comparison(made("base", 0, 0.4)), tmp_path / "one.png")
    both = comparison(*(made(m, s, 0.4 + 0.01 * s) for m in ("base", "ours") for s in range(3)))
    two = plot_comparison(both, tmp_path / "two.png")
    assert ink(one) > 0.005
    assert imread(two).shape[0] > imread(one).shape[0]


def test_a_control_that_is_far_off_leaves_the_axis_to_the_rivals(tmp_path: Path) -> None:
    scores = {"base": 0.8, "ours": 0.82, "shuffled labels": 0.2}
    found = replace(
        comparison(*(made(method, 0, score) for method, score in scores.items())),
        methods={method: {} for method in scores},
        control="shuffled labels",
    )
    with_control = imread(plot_comparison(found, tmp_path / "control.png"))
    assert (
        with_control.shape[:2]
        == imread(plot_comparison(replace(found, control=""), tmp_path / "rival.png")).shape[:2]
    )
    # Where the axis is the rivals', they are far apart: one stands in the left half of it.
    blue = np.abs(with_control[..., :3] - np.array([0.0, 0.447, 0.698])).max(axis=-1) < 0.05
    columns = np.flatnonzero(blue.any(axis=0))
    assert columns.min() < 0.4 * blue.shape[1]


def test_nothing_done_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no run"):
        plot_comparison(comparison(), tmp_path / "none.png")
