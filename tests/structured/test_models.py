from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from structured.models import ModelConfig, build_models
from structured.spaces import Labels

SMALL = ModelConfig(hidden=(8, 6), energy_hidden=(7,), global_size=2)


def test_the_models_fit_the_data_and_each_other() -> None:
    models = build_models(5, 3, SMALL, seed=0)
    assert models.space == Labels(3)
    assert models.energy is not None
    x = torch.randn(4, 5)
    y = models.space.relax(models.network(x))
    assert y.shape == (4, 3)
    assert models.energy(x, y.expand(10, 4, 3)).shape == (10, 4)


def test_the_seed_alone_decides_the_parameters_and_nothing_else_is_disturbed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_models(5, 3, SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = (build_models(5, 3, SMALL, seed=seed) for seed in (0, 1))
    for name in ("network", "energy"):
        pairs = zip(
            getattr(first, name).parameters(),
            getattr(again, name).parameters(),
            getattr(other, name).parameters(),
            strict=True,
        )
        for one, same, different in pairs:
            assert torch.equal(one, same)
            assert not one.any() or not torch.equal(one, different)


def test_an_energy_without_sizes_of_its_own_takes_the_networks() -> None:
    models = build_models(5, 3, ModelConfig(hidden=(8,), energy_hidden=None), seed=0)
    assert models.energy is not None
    shapes = [tuple(leaf.shape) for leaf in models.network.parameters()]
    unaries = models.energy.unaries
    assert isinstance(unaries, torch.nn.Module)
    assert [tuple(leaf.shape) for leaf in unaries.parameters()] == shapes


def test_a_configuration_survives_json() -> None:
    for config in (ModelConfig(), SMALL, ModelConfig(energy_hidden=None, energy_activation=None)):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown 'hiden', wanted hidden, dropout"):
        ModelConfig.from_dict({"hiden": [8]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (0,)}, r"hidden: found \(0,\), wanted positive integers"),
        ({"energy_hidden": [1.5]}, r"energy_hidden: found \[1.5\], wanted positive integers"),
        ({"dropout": 1.0}, "dropout: found 1.0"),
        ({"input_dropout": -0.1}, "input_dropout: found -0.1"),
        ({"activation": "step"}, "activation: found 'step', wanted one of relu"),
        ({"activation": None}, "activation: found None"),
        ({"energy_activation": "step"}, "energy_activation: found 'step'"),
        ({"global_size": 0}, "global_size: found 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)
