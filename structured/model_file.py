"""Trained models in one file without pickle, with what is needed to build them again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from structured.checkpoint import check_same, load_state, save_state
from structured.errors import CheckpointError
from structured.methods import Method, from_dict, to_dict
from structured.models import ModelConfig, Models, build_models

_KIND = "model"

Weights = dict[str, dict[str, Tensor]]


def weights_of(models: Models) -> Weights:
    """Return copies of the parameters and buffers of the network and, if any, the energy.

    Example:
        >>> models = build_models(2, 1, ModelConfig(hidden=()), seed=0)
        >>> sorted(weights_of(models)["network"])
        ['output.bias', 'output.weight']
    """
    return {
        part: {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        for part, module in _modules(models).items()
    }


def set_weights(models: Models, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put weights that `weights_of` returned into models of the same shapes, in place."""
    for part, module in _modules(models).items():
        module.load_state_dict(dict(weights[part]))


def shapes_of(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, list[int]]]:
    """Return the shape of every tensor by name; two models fit each other if these are equal."""
    return {
        part: {name: list(value.shape) for name, value in tensors.items()}
        for part, tensors in weights.items()
    }


def save_models(
    path: str | os.PathLike[str],
    models: Models,
    config: ModelConfig | None,
    *,
    features: int,
    labels: int,
    method: Method | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write models to a file, whole or not at all.

    Args:
        path: the file.
        models: what is saved.
        config: their sizes; None for models that no `ModelConfig` describes.
        features: the size of x, D.
        labels: how many labels, L.
        method: whose `Method.build` makes such models; None for `build_models`.
        about: plain values to keep with them: the method, label names, thresholds, ...

    Raises:
        CheckpointError: if the file cannot be written; an earlier one is then unchanged.
        TypeError: if the method holds a function or an object of your own.
    """
    state = {
        "config": None if config is None else config.to_dict(),
        "features": features,
        "labels": labels,
        "method": None if method is None else to_dict(method),
        "about": dict(about or {}),
        "weights": weights_of(models),
    }
    save_state(path, state, kind=_KIND)


def load_models(
    path: str | os.PathLike[str], models: Models | None = None
) -> tuple[Models, dict[str, Any]]:
    """Read what `save_models` wrote.

    Args:
        path: the file.
        models: to put the weights into, in place; None builds them from the configuration.

    Returns:
        The models, on the CPU if they were built here, and what is known about them.

    Raises:
        CheckpointError: if the file is missing, cut short, damaged, of another version, or of
            other models.

    Example:
        >>> import tempfile
        >>> config = ModelConfig(hidden=(8,))
        >>> models = build_models(4, 3, config, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     save_models(path, models, config, features=4, labels=3, about={"method": "demo"})
        ...     copy, about = load_models(path)
        >>> about
        {'method': 'demo'}
    """
    state = load_state(path, kind=_KIND)
    if models is None:
        if state["config"] is None:
            raise CheckpointError(
                f"{os.fspath(path)}: holds models of your own making; build them and pass them as "
                "`models`"
            )
        try:
            config = ModelConfig.from_dict(state["config"])
            method = state.get("method")
            build = build_models if method is None else from_dict(method).build
        except ValueError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
        models = build(state["features"], state["labels"], config, seed=0)
    check_same(path, shapes_of(state["weights"]), shapes_of(weights_of(models)), "model")
    set_weights(models, state["weights"])
    return models, state["about"]


def _modules(models: Models) -> dict[str, nn.Module]:
    energy = {} if models.energy is None else {"energy": models.energy}
    return {"network": models.network, **energy}
