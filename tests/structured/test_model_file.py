"""Trained models in a file: they come back, and others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from structured.errors import CheckpointError
from structured.model_file import load_models, save_models
from structured.models import ModelConfig, Models, build_models

SMALL = ModelConfig(hidden=(4,), energy_hidden=(3,), global_size=2)


def test_models_come_back_with_their_outputs(tmp_path: Path) -> None:
    models = build_models(5, 3, SMALL, seed=1)
    save_models(tmp_path / "m", models, SMALL, features=5, labels=3, about={"seed": 1})
    loaded, about = load_models(tmp_path / "m")
    x, y = torch.ones(2, 5), torch.ones(2, 3)
    assert about == {"seed": 1}
    assert torch.equal(loaded.network.eval()(x), models.network.eval()(x))
    assert loaded.energy is not None
    assert models.energy is not None
    assert torch.equal(loaded.energy(x, y), models.energy(x, y))


def test_weights_of_another_model_are_refused_and_the_model_is_left_alone(tmp_path: Path) -> None:
    models = build_models(5, 3, SMALL, seed=1)
    save_models(tmp_path / "m", models, None, features=5, labels=3)
    other = build_models(6, 3, SMALL, seed=2)
    before = other.network.state_dict()["output.weight"].clone()
    with pytest.raises(
        CheckpointError, match=r"another model: network\.hidden\.0\.weight is \[4, 5"
    ):
        load_models(tmp_path / "m", other)
    assert torch.equal(other.network.state_dict()["output.weight"], before)
    without = Models(models.space, models.network)
    with pytest.raises(CheckpointError, match="energy"):
        load_models(tmp_path / "m", without)
    with pytest.raises(CheckpointError, match="models of your own making"):
        load_models(tmp_path / "m")
