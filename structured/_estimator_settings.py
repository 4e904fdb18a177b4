"""The parameters of an estimator, and the configurations of models and training they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.base import BaseEstimator

from structured._parameters import plain
from structured.models import ModelConfig
from structured.train_config import TrainConfig

_TRAINING = (
    "epochs",
    "batch_size",
    "patience",
    "monitor",
    "last_phase_only",
    "average",
    "refit",
    "device",
)


def parameters_of(estimator: BaseEstimator) -> dict[str, Any]:
    """Return the parameters by name as they are now, numbers and lists as Python's and tuples."""
    return {name: plain(value) for name, value in estimator.get_params(deep=False).items()}


def model_config(parameters: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of the models; a number of hidden units is one layer.

    Raises:
        ValueError: A size is out of range.

    Example:
        >>> model_config(ModelConfig().to_dict() | {"hidden": 8}).hidden
        (8,)
    """
    values = {name: parameters[name] for name in ModelConfig().to_dict()}
    for name in ("hidden", "energy_hidden"):
        if isinstance(values[name], int):
            values[name] = (values[name],)
    return ModelConfig(**values)


def train_config(parameters: Mapping[str, Any], seed: int) -> TrainConfig:
    """Return the trainer's settings.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> train_config(TrainConfig(epochs=3).to_dict(), seed=1).epochs
        3
    """
    return TrainConfig(seed=seed, **{name: parameters[name] for name in _TRAINING})
