"""Inputs brought to mean 0 and deviation 1, inside the module that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn


class InputScaling(nn.Module):
    """``(x - mean) / deviation`` by feature; changes nothing until `fit_inputs` has set it.

    Kept in the model, so that whoever loads it predicts from features as they come.

    Args:
        features: the size of x, D.

    Attributes:
        mean: subtracted, ``[D]``.
        rate: one over the deviation, ``[D]``; 1 where a feature is constant.

    Example:
        >>> import numpy as np
        >>> scaling = InputScaling(2)
        >>> fit_inputs([scaling], np.array([[0.0, 5.0], [4.0, 5.0]]))
        >>> scaling(torch.tensor([[4.0, 6.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    rate: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("rate", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Return scaled inputs, ``[..., D]``."""
        return (x - self.mean) * self.rate


def fit_inputs(modules: Iterable[nn.Module], X: Any) -> None:
    """Set every `InputScaling` in some modules to the mean and deviation of training inputs.

    Args:
        modules: the network, and the energy; without any `InputScaling` nothing happens.
        X: the training inputs, sparse or dense, ``[n, D]``.

    Raises:
        ValueError: if a scaling is for another number of features.
    """
    found = [part for module in modules for part in module.modules()]
    scalings = [part for part in found if isinstance(part, InputScaling)]
    if not scalings:
        return
    mean, deviation = _moments(X)
    # The deviation of a constant is the rounding of its mean.
    varies = deviation > X.shape[0] * np.finfo(np.float64).eps * abs(mean)
    rate = 1.0 / np.where(varies, deviation, 1.0)
    for scaling in scalings:
        if scaling.mean.shape != mean.shape:
            raise ValueError(
                f"X: found {len(mean)} features, wanted {len(scaling.mean)}, as the model has"
            )
        scaling.mean.copy_(torch.from_numpy(mean))
        scaling.rate.copy_(torch.from_numpy(rate))


def _moments(X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the deviation of every column, in double precision."""
    if not sparse.issparse(X):
        table = np.asarray(X, dtype=np.float64)
        return table.mean(axis=0), table.std(axis=0)
    table: Any = sparse.csr_array(X, dtype=np.float64)
    mean = np.asarray(table.mean(axis=0)).ravel()
    # Around the mean: sums of squares would cancel. The zeros that are not stored count, too.
    stored = table.tocsc(copy=True)
    counts = np.diff(stored.indptr)
    stored.data = (stored.data - np.repeat(mean, counts)) ** 2
    squares = np.asarray(stored.sum(axis=0)).ravel() + (table.shape[0] - counts) * mean**2
    return mean, np.sqrt(squares / table.shape[0])
