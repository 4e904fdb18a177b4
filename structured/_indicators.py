"""Sets of labels as scikit-learn has them: zeros and ones, a row for each example."""

from __future__ import annotations

from typing import Any

from sklearn.utils.multiclass import check_classification_targets


def check_no_sets(y: Any) -> None:
    """Refuse rows that list their labels, before NumPy complains of their lengths."""
    rows = y if isinstance(y, list | tuple) else ()
    lengths = {len(row) for row in rows if isinstance(row, list | tuple)}
    if len(lengths) > 1 or any(isinstance(row, set | frozenset) for row in rows):
        raise ValueError(
            "y: found a set of labels for each row, wanted 0 or 1 for every row and label, [n, L]; "
            "sklearn.preprocessing.MultiLabelBinarizer makes it"
        )


def check_indicators(y: Any) -> None:
    """Refuse one class per row; entries other than 0 and 1 are `MultiLabelData`'s to refuse."""
    check_classification_targets(y)
    if y.ndim != 2:
        raise ValueError(
            f"y: found one class per row, shape {tuple(y.shape)}; wanted 0 or 1 for every row and "
            "label, [n, L]; sklearn.preprocessing.MultiLabelBinarizer makes it of sets of labels. "
            "Only binary classification is supported."
        )
