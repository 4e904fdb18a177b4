"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structured.data import MultiLabelData
    from structured.training import RunResult

CURVES, HESSIAN = "curves.png", "label-hessian.png"


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
    import torch

    from structured.plots import plot_history, plot_label_hessian

    paths = [
        plot_history(
            result.history, folder / f"{before}{CURVES}", title=title, best_epoch=result.best_epoch
        )
    ]
    energy: Any = result.models.energy
    trained = any("auxiliary" in record for record in result.history)
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
