"""The picture of the comparison page: who is ahead of cross-entropy, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from structured.comparison import Comparison

_FULL = 3.0  # points of F1 that take the darkest colour


def draw(found: Mapping[str, Comparison], decoder: str, path: Path) -> None:
    """Draw the difference to cross-entropy of every method on every set, as an SVG file.

    Args:
        found: title -> comparison.
        decoder: what labels are decoded by.
        path: of the file.
    """
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "comparison", "svg.fonttype": "none"})
    methods = list(
        dict.fromkeys(
            method
            for comparison in found.values()
            for method in comparison.methods
            if method not in (comparison.baseline, comparison.control)
        )
    )
    cells = [
        [_gap(comparison, method, decoder) for comparison in found.values()] for method in methods
    ]
    figure = Figure(figsize=(7.6, 1.0 + 0.27 * len(methods)), layout="constrained")
    ax = figure.add_subplot()
    ax.imshow(
        [[mean for mean, _ in row] for row in cells],
        cmap="PuOr_r",
        vmin=-_FULL,
        vmax=_FULL,
        aspect="auto",
    )
    for y, row in enumerate(cells):
        for x, (mean, clear) in enumerate(row):
            if math.isnan(mean):
                continue
            dark = abs(mean) > 0.75 * _FULL
            ax.text(
                x,
                y,
                f"{round(mean, 1) + 0.0:+.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black" if clear else "0.35",
                fontweight="bold" if clear else "normal",
            )
            if clear:
                ax.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, linewidth=0.9))
    titles = [title.replace(", ", ",\n") for title in found]
    ax.set_xticks(range(len(titles)), titles, fontsize=8)
    ax.set_yticks(range(len(methods)), methods, fontsize=8)
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for side in ax.spines.values():
        side.set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _gap(comparison: Comparison, method: str, decoder: str) -> tuple[float, bool]:
    """The mean over seeds in points, and whether its interval leaves out zero."""
    gap = comparison.difference(method, decoder) if method in comparison.methods else None
    if gap is None:
        return math.nan, False
    return 100 * gap.mean, gap.verdict != "no clear difference"
