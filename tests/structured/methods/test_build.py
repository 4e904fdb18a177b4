"""The models of a method: made by its `build`, saved, and made again from the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from structured.data import digit_strips
from structured.errors import CheckpointError
from structured.estimators import MultiLabelClassifier
from structured.methods import CrossEntropy, registry
from structured.methods.cross_entropy import CrossEntropyLearner
from structured.model_file import load_models, save_models, weights_of
from structured.models import ModelConfig, Models, build_models
from structured.train_config import TrainConfig
from structured.training import train

CONFIG = ModelConfig(hidden=(4,), energy_hidden=(3,), global_size=2)


@dataclass(frozen=True)
class OwnEnergy(CrossEntropy):
    """Cross-entropy beside an energy that no `ModelConfig` describes."""

    rows: int = 5

    @property
    def name(self) -> str:
        return "own-energy"

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        models = build_models(n_features, n_labels, config, seed)
        return replace(models, energy=nn.Linear(n_labels, self.rows))

    def learner(self, models: Models, **options: Any) -> CrossEntropyLearner:
        options.pop("steps_per_epoch")
        return CrossEntropyLearner(self, models, **{"seed": 0, "device": "cpu", **options})


@pytest.fixture(autouse=True)
def own_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.known()
    monkeypatch.setitem(registry._REGISTERED, "own_energy", OwnEnergy)


def test_a_method_builds_the_common_models_unless_it_says_otherwise() -> None:
    found = weights_of(CrossEntropy().build(6, 3, CONFIG, 7))
    wanted = weights_of(build_models(6, 3, CONFIG, 7))
    for part, tensors in wanted.items():
        assert all(torch.equal(value, found[part][name]) for name, value in tensors.items())


def test_a_run_of_a_method_with_its_own_energy_is_read_again_from_its_folder(
    tmp_path: Path,
) -> None:
    parts = digit_strips(64, 16, 16).split("disjoint_images")
    config = TrainConfig(epochs=1, device="cpu")
    folder = tmp_path / "run"
    result = train(
        OwnEnergy(rows=7), parts["train"], parts["validation"], config, model=CONFIG, run_dir=folder
    )
    loaded, _ = load_models(folder / "model.safetensors")
    assert isinstance(loaded.energy, nn.Linear)
    assert loaded.energy.out_features == 7
    saved = weights_of(result.models)["energy"]
    assert all(
        torch.equal(value, saved[name]) for name, value in weights_of(loaded)["energy"].items()
    )


def test_an_estimator_with_such_a_method_comes_back_from_its_file(tmp_path: Path) -> None:
    x, y = np.eye(20, dtype=np.float32), np.eye(20, 3)
    fitted = MultiLabelClassifier(OwnEnergy(), hidden=(4,), epochs=1, device="cpu").fit(x, y)
    fitted.save(tmp_path / "m")
    loaded = MultiLabelClassifier.load(tmp_path / "m")
    assert isinstance(loaded.models_.energy, nn.Linear)
    np.testing.assert_array_equal(loaded.predict_proba(x), fitted.predict_proba(x))


def test_models_of_a_method_that_is_not_known_here_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = OwnEnergy()
    models = method.build(6, 3, CONFIG, 0)
    save_models(tmp_path / "m", models, CONFIG, features=6, labels=3, method=method)
    monkeypatch.delitem(registry._REGISTERED, "own_energy")
    with pytest.raises(CheckpointError, match="OwnEnergy"):
        load_models(tmp_path / "m")
