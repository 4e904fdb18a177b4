"""The control of a comparison: what a method scores when there is nothing to learn from inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from structured.data.multilabel import MultiLabelData

CONTROL = "shuffled labels"
"""What the row of the control is called."""


def with_shuffled_labels(data: MultiLabelData, seed: int) -> MultiLabelData:
    """Return the same rows with their sets of labels permuted among them.

    Label frequencies and which labels go together stay as they are; what the inputs say about them
    is gone.

    Args:
        data: training rows.
        seed: of the permutation.

    Example:
        >>> data = MultiLabelData(X=[[0.0], [1.0], [2.0]], Y=[[1, 0], [1, 1], [0, 0]])
        >>> shuffled = with_shuffled_labels(data, seed=0)
        >>> sorted(shuffled.Y.toarray().tolist()), (shuffled.X == data.X).all()
        ([[0, 0], [1, 0], [1, 1]], np.True_)
    """
    order = np.random.default_rng(seed).permutation(data.n_rows)
    part = " with ".join(str(word) for word in (data.meta.get("part", ""), CONTROL) if word)
    return replace(data, Y=data.Y[order], meta={**data.meta, "part": part})
