"""Plots: PNG files that show what the history and the energy hold, without a display."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from structured.energies import MultiLabelEnergy
from structured.plots import (
    COLOURS,
    label_correlation,
    pair_agreement,
    plot_history,
    plot_label_hessian,
)

HISTORY = [
    {"epoch": 1, "phase": "pretraining", "cross_entropy": 9.0, "validation_f1_expected": 0.2},
    {
        "epoch": 2,
        "phase": "implicit",
        "cross_entropy": 8.0,
        "validation_f1_expected": 0.3,
        "energy_gap": -0.5,
        "inner_gradient": 2.0,
        "relative_residual": 0.1,
        "direct_norm": 1.0,
        "implicit_norm": 0.01,
    },
    {
        "epoch": 3,
        "phase": "implicit",
        "cross_entropy": 7.0,
        "validation_f1_expected": 0.4,
        "energy_gap": 0.5,
        "inner_gradient": 1.0,
        "relative_residual": 0.2,
        "direct_norm": math.inf,
        "implicit_norm": 0.02,
    },
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that are saved."""
    seen: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def keep(self: matplotlib.figure.Figure, *args: Any, **options: Any) -> None:
        seen.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return seen


def _list(values: Any) -> list[float]:
    return list(values)


def _size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_curves_show_energy_gap_inner_gradient_residual_and_both_norms(
    tmp_path: Path, figures: list[matplotlib.figure.Figure]
) -> None:
    path = plot_history(HISTORY, tmp_path / "curves.png", title="digits, seed 0", best_epoch=3)
    assert min(_size(path)) > 400
    curves = {line.get_label(): line for ax in figures[0].axes for line in ax.get_lines()}
    assert {"energy gap", "inner gradient norm", "relative residual"} <= curves.keys()
    assert _list(curves["energy gap"].get_xdata()) == [2, 3]
    assert _list(curves["implicit norm"].get_ydata()) == [0.01, 0.02]
    assert _list(curves["direct norm"].get_xdata()) == [2]  # what is not finite is left out
    norms = next(ax for ax in figures[0].axes if ax.get_title() == "Hypergradient")
    assert norms.get_yscale() == "log"
    assert {text.get_text() for text in norms.texts} == {"pretraining", "implicit"}
    for ax in figures[0].axes:  # told apart by dashes as well as by colour
        drawn = [line for line in ax.get_lines() if line.get_color() in COLOURS]
        assert len({(line.get_color(), str(line.get_linestyle())) for line in drawn}) == len(drawn)


def test_only_panels_with_figures_are_drawn(
    tmp_path: Path, figures: list[matplotlib.figure.Figure]
) -> None:
    plot_history(HISTORY[:1], tmp_path / "curves.png")
    shown = [ax.get_title() for ax in figures[0].axes if ax.axison]
    assert shown == ["Losses", "Validation example-F1"]


def test_a_history_with_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history: found none of the figures to draw, wanted one"):
        plot_history([{"epoch": 1}], tmp_path / "curves.png")


@given(seed=st.integers(0, 1000), rows=st.integers(2, 300))
@settings(max_examples=20)
def test_label_correlation_is_pearsons_and_zero_for_constant_labels(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    Y = (rng.random((rows, 4)) < [0.5, 0.8, 0.5, 0.0]).astype(np.int8)
    found = label_correlation(sparse.csr_array(Y))
    assert np.allclose(found, label_correlation(Y))
    assert not found[3].any()
    for i in range(3):
        for j in range(3):
            if Y[:, i].std() > 0 and Y[:, j].std() > 0:
                assert found[i, j] == pytest.approx(np.corrcoef(Y[:, i], Y[:, j])[0, 1])


def _bound_labels(rows: int = 400) -> np.ndarray[Any, Any]:
    """Label 1 repeats label 0, label 2 excludes it, label 3 is free."""
    rng = np.random.default_rng(0)
    first, free = rng.integers(0, 2, rows), rng.integers(0, 2, rows)
    return np.column_stack([first, first, 1 - first, free]).astype(np.int8)


def test_an_energy_that_favours_labels_together_agrees_with_their_correlation(
    tmp_path: Path, figures: list[matplotlib.figure.Figure]
) -> None:
    Y = _bound_labels()
    energy = MultiLabelEnergy(2, 4, hidden=(2,), global_size=1)
    with torch.no_grad():  # -softplus(y0 + y1 - y2): concave along y0 + y1, so low if both are on
        energy.global_weight.fill_(-1.0)
        energy.global_matrix.copy_(torch.tensor([[1.0, 1.0, -1.0, 0.0]]))
    hessian = energy.label_hessian(torch.from_numpy(Y).float()).detach().numpy()
    assert pair_agreement(-hessian, label_correlation(Y)) > 0.9
    path = plot_label_hessian(hessian, Y, ["first", "twin", "rival", "free"], tmp_path / "h.png")
    assert min(_size(path)) > 300
    learned, data = (ax for ax in figures[0].axes if ax.images)
    names = [text.get_text() for text in learned.get_yticklabels()]
    shown = learned.images[0].get_array()
    assert shown is not None
    first, twin, rival = (names.index(name) for name in ("first", "twin", "rival"))
    assert shown[first, twin] > 0 > shown[first, rival]
    assert abs(first - twin) == 1  # labels that occur together stand together
    assert np.ma.getmaskarray(shown).diagonal().all()  # the diagonals are left out
    low, high = data.images[0].get_clim()
    assert low == -high


def test_of_many_labels_those_with_the_strongest_pairs_are_drawn(
    tmp_path: Path, figures: list[matplotlib.figure.Figure]
) -> None:
    rng = np.random.default_rng(1)
    Y = np.hstack([rng.integers(0, 2, (300, 40)), _bound_labels(300)]).astype(np.int8)
    names = [f"label {i} with a name that is long" for i in range(44)]
    plot_label_hessian(np.zeros((44, 44)), Y, names, tmp_path / "h.png", title="toy", most=3)
    ax = figures[0].axes[0]
    shown = sorted(text.get_text() for text in ax.get_yticklabels())
    assert shown == ["label 40 with a n…", "label 41 with a n…", "label 42 with a n…"]


@pytest.mark.parametrize(("size", "names"), [(3, ["a", "b", "c", "d"]), (4, ["a"]), (1, ["a"])])
def test_matrices_that_do_not_fit_are_refused(tmp_path: Path, size: int, names: list[str]) -> None:
    with pytest.raises(ValueError, match="hessian: found shape"):
        plot_label_hessian(np.zeros((size, size)), _bound_labels(), names, tmp_path / "h.png")


def test_importing_plots_chooses_no_backend_and_loads_no_pyplot() -> None:
    program = "import sys, structured.plots; print('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "False\n"
