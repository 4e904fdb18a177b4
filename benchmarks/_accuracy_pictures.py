"""The pictures of ``accuracy``: error against products, and products along a trajectory."""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path
from typing import Any

# One colour per solver in every panel, told apart without colour by the style of the line.
CURVES = {
    "Auto": {"color": "#0072B2", "linewidth": 2.2},
    "CG": {"color": "#D55E00"},
    "CG, Nystrom of rank 80": {"color": "#009E73"},
    "CG, Jacobi of 20 probes": {"color": "#E69F00", "linestyle": "--"},
    "MINRES": {"color": "#CC79A7", "linestyle": "--"},
    "GMRES": {"color": "#56B4E9", "linestyle": "--"},
    "BiCGStab": {"color": "#999999", "linestyle": "--"},
    "Chebyshev": {"color": "#555555", "linestyle": ":"},
    "Neumann": {"color": "#000000", "linestyle": ":"},
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero": ("CG from zero", {"color": "#D55E00"}),
    "last": ("CG from the last adjoint", {"color": "#E69F00", "linestyle": "--"}),
    "predicted": ("CG, predicted", {"color": "#56B4E9"}),
    "kept": ("CG, Nystrom kept", {"color": "#009E73", "linestyle": "--"}),
    "both": ("CG, predicted, Nystrom kept", {"color": "#CC79A7"}),
    "Auto": ("Auto from zero", {"color": "#999999", "linestyle": "--"}),
    "learned": ("Auto, predicted and learned", {"color": "#0072B2", "linewidth": 2.2}),
}


def pictures(results: dict[str, Any], folder: str) -> None:
    """Draw both as SVG files; without matplotlib, say so."""
    try:
        import matplotlib
    except ImportError:
        print("\nno pictures: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    # The same figures give the same file, and a small one.
    matplotlib.rcParams.update(
        {"svg.hashsalt": "accuracy", "svg.fonttype": "none", "font.size": 8},
    )
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    names = [fact["problem"] for fact in results["problems"]]
    for file, draw, rows in (
        ("accuracy_products.svg", _errors, results["to_accuracy"]),
        ("accuracy_trajectory.svg", _trajectories, results["trajectories"]),
    ):
        figure, axes = _panels(names)
        for name, panel in zip(names, axes, strict=True):
            draw(panel, [row for row in rows if row["problem"] == name])
            panel.set_title(name, fontsize=8)
            panel.minorticks_off()  # half of the file would be ticks
            panel.grid(alpha=0.3, linewidth=0.5)
        labels = {
            label: line
            for panel in axes
            for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5)
        figure.savefig(place / file, metadata={"Date": None})
        print(f"picture: {place / file}")


def _panels(names: list[str]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows = math.ceil(len(names) / 3)
    figure = Figure(figsize=(9, 0.8 + 2.4 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, min(3, len(names)), i + 1) for i in range(len(names))]
    return figure, axes


def _errors(panel: Any, rows: list[dict[str, Any]]) -> None:
    for name, style in CURVES.items():
        row = next(row for row in rows if row["solver"] == name and "curve" in row)
        curve = sorted(row["curve"])
        panel.plot(*zip(*curve, strict=True), label=name, **{"linewidth": 1.2, **style})
    panel.set(xscale="log", yscale="log", xlabel="products", ylabel="relative error")
    panel.set_ylim(1e-8, 10)


def _trajectories(panel: Any, rows: list[dict[str, Any]]) -> None:
    # The tighter tolerance and the usual step size.
    rtol, pace = min(row["rtol"] for row in rows), max(row["pace"] for row in rows)
    for row in rows:
        if (row["rtol"], row["pace"]) == (rtol, pace):
            label, style = WAYS[row["way"]]
            total = list(accumulate(row["each"]))
            places = range(0, len(total), 2)  # every other step: the file stays small
            panel.plot(
                [place + 1 for place in places],
                [total[place] for place in places],
                label=label,
                **{"linewidth": 1.2, **style},
            )
    panel.set(yscale="log", xlabel="outer step", ylabel=f"products in all, to {rtol:.0e}")
