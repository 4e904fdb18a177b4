"""Inputs that the model itself brings to one scale."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from structured.data import MultiLabelData, digit_strips
from structured.evaluation import predict_probabilities
from structured.methods import CrossEntropy, FenchelYoung, Implicit, Method
from structured.model_file import load_models
from structured.models import ModelConfig, build_models
from structured.networks import InputScaling, fit_inputs
from structured.run_folder import MODEL
from structured.train_config import TrainConfig
from structured.training import train

SMALL = ModelConfig((8,), 0.0, 0.0, energy_hidden=(6,), global_size=3, standardize=True)


def in_other_units(data: MultiLabelData) -> MultiLabelData:
    units = 10.0 ** (np.arange(data.n_features) % 7 - 2)
    X = data.dense()[0].astype(np.float64) * units + 3.0 * units
    return MultiLabelData(X, data.Y, name=data.name)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_features_get_mean_zero_and_deviation_one(form: type) -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(50, 4)) * [1.0, 1e3, 1e-2, 0.0] + [0.0, 1e4, 5.0, 2.0]
    X[:, :3][generator.random((50, 3)) < 0.3] = 0.0
    X[:, 3] = 2.0
    scaling = InputScaling(4).double()
    fit_inputs([scaling], form(X))
    scaled = scaling(torch.from_numpy(X)).numpy()
    assert scaled.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-9)
    assert scaled.std(axis=0) == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    "method", [CrossEntropy(), Implicit(pretrain_epochs=1), FenchelYoung(energy="linear_concave")]
)
def test_training_does_not_depend_on_the_units_of_the_features(method: Method) -> None:
    parts = digit_strips(96, 32, 32).split("disjoint_images")
    config = TrainConfig(epochs=2, device="cpu")
    found = []
    for change in (lambda data: data, in_other_units):
        training, validation = change(parts["train"]), change(parts["validation"])
        result = train(method, training, validation, config, model=SMALL)
        found.append(predict_probabilities(method, result.models, validation.X))
    assert torch.allclose(*found, atol=2e-3)


def test_a_saved_model_scales_by_itself(tmp_path: Path) -> None:
    parts = digit_strips(96, 32, 32).split("disjoint_images")
    training, validation = (in_other_units(parts[name]) for name in ("train", "validation"))
    config = TrainConfig(epochs=1, device="cpu")
    result = train(CrossEntropy(), training, validation, config, model=SMALL, run_dir=tmp_path)
    loaded, _ = load_models(tmp_path / MODEL)
    assert torch.equal(
        predict_probabilities(CrossEntropy(), loaded, validation.X),
        predict_probabilities(CrossEntropy(), result.models, validation.X),
    )


def test_large_features_that_are_left_as_they_are_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = digit_strips(96, 32, 32).split("disjoint_images")
    training, validation = (in_other_units(parts[name]) for name in ("train", "validation"))
    with caplog.at_level(logging.WARNING):
        train(
            CrossEntropy(),
            training,
            validation,
            TrainConfig(epochs=1, device="cpu"),
            model=ModelConfig(hidden=(8,)),
        )
    assert "features reach 4e+04" in caplog.text
    assert "standardize" in caplog.text


def test_a_scaling_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match="X: found 2 features, wanted 3"):
        fit_inputs([InputScaling(3)], np.zeros((4, 2)))


def test_models_without_scaling_are_left_as_they_are() -> None:
    models = build_models(3, 2, ModelConfig(hidden=(4,)), seed=0)
    fit_inputs([models.network], np.ones((4, 3)))
    assert not list(models.network.buffers())
