"""The pictures of a run and of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structured.data import MultiLabelData
    from structured.methods import Method
    from structured.models import Models
    from structured.training import RunResult

CURVES, HESSIAN, COMPARISON = "curves.png", "label-hessian.png", "comparison.png"
FEW = 4
"""So many methods are shown in full."""


def draw(
    result: RunResult, training: MultiLabelData, folder: Path, *, title: str, before: str = ""
) -> list[Path]:
    """Draw the training curves and, if an energy was trained, what it learned about labels.

    Args:
        result: of the training.
        training: the rows it learned from.
        folder: where the PNG files go.
        title: above each picture.
        before: what the names of the files begin with.

    Returns:
        The paths of the files.
    """
    return _draw(result.history, result.best_epoch, result.models, training, folder, title, before)


def draw_run(
    run: Path, training: MultiLabelData, folder: Path, *, title: str, before: str
) -> list[Path]:
    """Draw the same of a run that is finished, from its folder.

    Args:
        run: the folder of the run.
        training: the rows it learned from.
        folder: where the PNG files go.
        title: above each picture.
        before: what the names of the files begin with.
    """
    from structured.model_file import load_models
    from structured.run_folder import MODEL, RESULT

    result = json.loads((run / RESULT).read_bytes())
    models, _ = load_models(run / MODEL)
    return _draw(result["history"], result["best_epoch"], models, training, folder, title, before)


def pictured(methods: Mapping[str, Method]) -> set[str]:
    """Return the labels of the methods whose first run is drawn.

    All of a few; of more the baseline and the implicit method, as a picture each would be dozens.
    """
    from structured.methods import Implicit

    if len(methods) <= FEW:
        return set(methods)
    baseline = next(iter(methods))
    return {baseline} | {label for label, method in methods.items() if isinstance(method, Implicit)}


def _draw(
    history: Sequence[Mapping[str, Any]],
    best_epoch: int,
    models: Models,
    training: MultiLabelData,
    folder: Path,
    title: str,
    before: str,
) -> list[Path]:
    import torch

    from structured.plots import plot_history, plot_label_hessian

    curves = folder / f"{before}{CURVES}"
    paths = [plot_history(history, curves, title=title, best_epoch=best_epoch)]
    energy: Any = models.energy
    trained = any("auxiliary" in record for record in history)
    if trained and hasattr(energy, "label_hessian") and training.n_labels > 1:
        gold = torch.from_numpy(training.Y.toarray()).to(
            energy.global_matrix.device, energy.global_matrix.dtype
        )
        with torch.no_grad():
            hessian = energy.label_hessian(gold).cpu().numpy()
        path = folder / f"{before}{HESSIAN}"
        paths.append(
            plot_label_hessian(hessian, training.Y, training.label_names, path, title=title)
        )
    return paths
