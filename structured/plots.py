"""Pictures of a run, as PNG: its training curves, and what the energy learned about labels.

Nothing here needs a display, and the state of ``matplotlib.pyplot`` is not touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

# Okabe & Ito 2008: eight colours that people with any colour vision tell apart; dashes and markers
# tell the curves of a panel apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
_DIVERGING = "PuOr_r"  # orange to purple through white: safe for colour-blind readers, signed

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One set of axes of the training curves.

    Args:
        title: above the axes.
        figures: name in the history -> name in the legend; what a history lacks is left out.
        logarithmic: whether positive figures get a logarithmic axis.
    """

    title: str
    figures: Mapping[str, str]
    logarithmic: bool = False


PANELS = (
    Panel(
        "Losses",
        {
            "cross_entropy": "cross-entropy",
            "validation_cross_entropy": "cross-entropy, validation",
            "auxiliary": "auxiliary (inner)",
            "primary": "primary (outer)",
        },
    ),
    Panel(
        "Validation example-F1",
        {
            "validation_f1_half": "threshold 0.5",
            "validation_f1_tuned": "tuned threshold",
            "validation_f1_expected": "expected F1",
        },
    ),
    Panel("Energy gap E(x, ŷ) − E(x, y)", {"energy_gap": "energy gap"}),
    Panel(
        "Inner gradient norm and residual",
        {"inner_gradient": "inner gradient norm", "relative_residual": "relative residual"},
        logarithmic=True,
    ),
    Panel(
        "Hypergradient",
        {"direct_norm": "direct norm", "implicit_norm": "implicit norm"},
        logarithmic=True,
    ),
)
"""The panels of `plot_history`."""


def plot_history(
    history: Sequence[Record],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    best_epoch: int | None = None,
    panels: Sequence[Panel] = PANELS,
) -> Path:
    """Draw the curves of a run, one panel per kind of figure that its history has.

    Args:
        history: one record per epoch, with "epoch" and, if phases should be marked, "phase".
        path: of the PNG file.
        title: above all panels.
        best_epoch: marked by a vertical line, if given.
        panels: what to draw.

    Returns:
        The path.

    Raises:
        ValueError: if the history has nothing that a panel shows.

    Example:
        >>> import tempfile
        >>> history = [{"epoch": 1, "cross_entropy": 7.0}, {"epoch": 2, "cross_entropy": 4.0}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_history(history, Path(folder) / "curves.png").exists()
        True
    """
    shown = [panel for panel in panels if any(_series(history, key) for key in panel.figures)]
    if not shown:
        wanted = ", ".join(key for panel in panels for key in panel.figures)
        raise ValueError(f"history: found none of the figures to draw, wanted one of {wanted}")
    size = (4.6 * min(len(shown), 3), 3.2 * -(-len(shown) // 3) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(-(-len(shown) // 3), min(len(shown), 3), squeeze=False).flatten()
    for panel, ax in zip(shown, axes, strict=False):
        _draw_panel(ax, panel, history)
        _mark(ax, history, best_epoch)
        ax.legend(fontsize=7.5, framealpha=0.7)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def label_correlation(Y: Any) -> NDArray[np.float64]:
    """Return how labels occur together: the correlation of each pair (phi coefficient).

    Args:
        Y: gold labels in {0, 1}, sparse or dense, ``[n, L]``.

    Returns:
        ``[L, L]``, from -1 (never together) to 1; 0 where a label is constant.

    Example:
        >>> label_correlation([[1, 1], [0, 0], [1, 1], [0, 0]]).round(2).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    # In double from the start: of int8, sums of more than 127 would overflow.
    counts = (Y if sparse.issparse(Y) else np.asarray(Y)).astype(np.float64)
    together: Any = counts.T @ counts
    joint = (together.toarray() if sparse.issparse(together) else together) / counts.shape[0]
    share = np.diag(joint).copy()
    covariance = joint - np.outer(share, share)
    deviation = np.sqrt(share * (1.0 - share))
    scale = np.outer(deviation, deviation)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def plot_label_hessian(
    hessian: ArrayLike,
    Y: Any,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    most: int = 30,
) -> Path:
    """Draw what the energy learned about pairs of labels beside how they occur together.

    After the paper's figure 1: on the left minus the Hessian of the global energy in y (energies
    are low where they are good, so that positive entries mark labels that favour each other), on
    the right the correlation of the gold labels. The diagonals are left out.

    Args:
        hessian: ``energy.label_hessian(y)``, ``[L, L]``.
        Y: gold labels in {0, 1}, sparse or dense, ``[n, L]``.
        names: of the labels, ``[L]``.
        path: of the PNG file.
        title: above both.
        most: how many labels are drawn at most: those whose pairs are most strongly correlated.
            They are ordered so that labels that occur together stand together.

    Returns:
        The path.

    Raises:
        ValueError: if shapes do not fit or there are fewer than two labels.

    Example:
        >>> import tempfile
        >>> Y = [[1, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "hessian.png"
        ...     plot_label_hessian(-label_correlation(Y), Y, ["a", "b", "c"], path).exists()
        True
    """
    learned, correlation = -np.asarray(hessian, dtype=np.float64), label_correlation(Y)
    if learned.shape != correlation.shape or len(names) != len(learned) or len(learned) < 2:
        raise ValueError(
            f"hessian: found shape {learned.shape} for {len(correlation)} labels and "
            f"{len(names)} names, wanted [L, L] with L >= 2 of the same labels"
        )
    agreement = pair_agreement(learned, correlation)
    chosen = _similar_together(correlation, _strongest(correlation, most))
    side = max(0.22 * len(chosen), 2.0)
    figure = Figure(figsize=(2 * side + 3.4, side + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [_short(names[int(label)]) for label in chosen]
    for ax, matrix, caption in (
        (left, learned, "Energy: minus its Hessian in y"),
        (right, correlation, "Data: correlation of labels"),
    ):
        _draw_matrix(ax, matrix[np.ix_(chosen, chosen)], labels)
        ax.set_title(caption, fontsize=10)
    right.set_yticklabels([])
    pairs = f"the two agree with r = {agreement:.2f} over all pairs of {len(names)} labels"
    figure.suptitle(f"{title}\n{pairs}" if title else pairs, fontsize=11)
    return _save(figure, path)


def pair_agreement(first: ArrayLike, second: ArrayLike) -> float:
    """Return Pearson's correlation of two symmetric matrices over the pairs above the diagonal.

    Returns:
        From -1 to 1; 0 if either is constant there.

    Example:
        >>> a = np.array([[9, 1, 2], [1, 9, 3], [2, 3, 9]])
        >>> round(pair_agreement(a, -2 * a), 6)
        -1.0
    """
    above = np.triu_indices(np.asarray(first).shape[0], k=1)
    a, b = (np.asarray(matrix, dtype=np.float64)[above] for matrix in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _series(history: Sequence[Record], key: str) -> list[tuple[int, float]]:
    return [
        (record["epoch"], float(record[key]))
        for record in history
        if record.get(key) is not None and np.isfinite(record[key])
    ]


def _draw_panel(ax: Axes, panel: Panel, history: Sequence[Record]) -> None:
    drawn = 0
    for index, (key, name) in enumerate(panel.figures.items()):
        points = _series(history, key)
        if panel.logarithmic:  # a norm of zero is one that was not computed
            points = [(epoch, value) for epoch, value in points if value > 0]
        if not points:
            continue
        drawn += len(points)
        epochs, values = zip(*points, strict=True)
        ax.plot(
            epochs,
            values,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=_DASHES[index % len(_DASHES)],
            linewidth=1.6,
            marker="o" if len(points) < 12 else None,
            markersize=3,
        )
    if panel.logarithmic and drawn:
        ax.set_yscale("log")
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel("epoch", fontsize=9)
    ax.tick_params(which="both", labelsize=8)
    # The same epochs in every panel, whenever its figures begin.
    ax.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _mark(ax: Axes, history: Sequence[Record], best_epoch: int | None) -> None:
    """Shade every second phase, name the phases, and mark the best epoch."""
    starts = [
        index
        for index, record in enumerate(history)
        if index == 0 or record.get("phase") != history[index - 1].get("phase")
    ]
    if len(starts) > 1:
        epochs = [record["epoch"] for record in history]
        for number, start in enumerate(starts):
            end = starts[number + 1] if number + 1 < len(starts) else len(history)
            left, right = epochs[start] - 0.5, epochs[end - 1] + 0.5
            if number % 2:
                ax.axvspan(left, right, color="0.5", alpha=0.12, linewidth=0)
            ax.text(
                (left + right) / 2,
                0.01,
                str(history[start].get("phase", "")),
                transform=ax.get_xaxis_transform(),
                ha="center",
                fontsize=7,
                color="0.35",
            )
    if best_epoch is not None:
        ax.axvline(
            best_epoch, color="0.3", linewidth=0.9, linestyle=(0, (2, 2)), label="best epoch"
        )


def _strongest(correlation: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """The labels with the strongest single pair, at most `most`, in their own order."""
    magnitude = np.abs(correlation)
    np.fill_diagonal(magnitude, 0.0)
    return np.sort(np.argsort(-magnitude.max(axis=0), kind="stable")[:most])


def _similar_together(
    correlation: NDArray[np.float64], chosen: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Order labels so that correlated ones are neighbours (the order of a clustering's leaves)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1.0 - correlation[np.ix_(chosen, chosen)]
    distance = (distance + distance.T) / 2.0
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(np.maximum(distance, 0.0), checks=False)
    return chosen[leaves_list(linkage(condensed, "average", optimal_ordering=True))]


def _draw_matrix(ax: Axes, matrix: NDArray[np.float64], labels: Sequence[str]) -> None:
    values = matrix.copy()
    np.fill_diagonal(values, np.nan)  # grey: neither matrix says anything there
    ax.set_facecolor("0.8")
    # The largest pair would leave all others pale: colours saturate for the top percent of them.
    limit = float(np.nanquantile(np.abs(values), 0.99)) or 1.0
    image = ax.imshow(values, cmap=_DIVERGING, vmin=-limit, vmax=limit)
    size = 8 if len(labels) <= 20 else 6.5
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    ax.set_yticks(range(len(labels)), labels, fontsize=size)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, extend="both").ax.tick_params(
        labelsize=7
    )


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
    return Path(path)
