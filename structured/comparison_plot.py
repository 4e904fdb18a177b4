"""The picture of a comparison: every method's score as a dot, its deviation over seeds as a bar."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from structured.comparison import Comparison
from structured.plots import COLOURS

DECODERS = ("expected F1", "joint expected F1")
"""The decoders that are drawn: that of independent labels, and that which asks the energy too."""

_MARKERS = ("o", "D")
_FAR = 1.0  # of the width that the rivals take up


def plot_comparison(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    decoders: Sequence[str] = DECODERS,
) -> Path:
    """Draw the example-F1 of every method on the test part, under some decoders.

    The methods are in their order, the baseline above with a line through its score. A control is
    grey; where it is far off, the axis ends before it, and its score is written at the edge.

    Args:
        comparison: with at least one run.
        path: of the PNG file.
        decoders: their names in the tables; one or two.

    Returns:
        The path.

    Raises:
        ValueError: if no run is done.
    """
    records = [record for record in comparison.summary() if record["seeds"]]
    if not records:
        raise ValueError("comparison: found no run, wanted at least one to draw")
    figure = Figure(figsize=(7.5, 1.3 + 0.36 * len(records)), layout="constrained")
    ax = figure.add_subplot()
    shift = 0.26 / max(len(decoders) - 1, 1)
    rivals = [record for record in records if record["method"] != comparison.control]
    for number, decoder in enumerate(decoders):
        colour, marker = COLOURS[number], _MARKERS[number % len(_MARKERS)]
        offset = shift * number - 0.13 if len(decoders) > 1 else 0.0
        for row, record in enumerate(records):
            score = record[decoder]
            ax.errorbar(
                100 * score["mean"],
                row + offset,
                xerr=100 * (score["deviation"] or 0.0),
                color=colour if record in rivals else "0.6",
                marker=marker,
                markersize=5,
                linewidth=1.4,
                label=decoder if row == 0 else None,
            )
        ax.axvline(
            100 * records[0][decoder]["mean"],
            color=colour,
            linewidth=0.8,
            linestyle=("--", ":")[number % 2],
            zorder=0,
        )
    _limit(ax, records, rivals, decoders)
    ax.set_yticks(range(len(records)), [record["method"] for record in records], fontsize=9)
    ax.set_ylim(len(records) - 0.5, -0.5)
    seeds = max(len(record["seeds"]) for record in records)
    bars = "; bars: standard deviation over seeds" if seeds > 1 else ""
    ax.set_xlabel(f"example-F1 on test, percent{bars}", fontsize=9)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    split = f", split {comparison.split!r}" if comparison.split else ""
    figure.suptitle(
        f"{comparison.data}{split}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10
    )
    figure.legend(loc="outside lower center", ncols=len(decoders), fontsize=8, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
    return Path(path)


def _limit(
    ax: Axes,
    records: Sequence[Mapping[str, Any]],
    rivals: Sequence[Mapping[str, Any]],
    decoders: Sequence[str],
) -> None:
    """Give the axis to the rivals, if a control is so far off that they would all look alike."""

    def ends(record: Mapping[str, Any]) -> list[float]:
        return [
            100 * (record[decoder]["mean"] + sign * (record[decoder]["deviation"] or 0.0))
            for decoder in decoders
            for sign in (-1, 1)
        ]

    shown = [end for record in rivals for end in ends(record)]
    low, high = min(shown), max(shown)
    width = max(high - low, 1.0)
    if all(min(ends(record)) > low - _FAR * width for record in records):
        return
    ax.set_xlim(low - 0.1 * width, high + 0.05 * width)
    for row, record in enumerate(records):
        if max(ends(record)) < low - 0.1 * width:
            texts = [f"{100 * record[decoder]['mean']:.1f}" for decoder in decoders]
            ax.annotate(
                "← " + ", ".join(dict.fromkeys(texts)),
                (0.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="0.4",
            )
