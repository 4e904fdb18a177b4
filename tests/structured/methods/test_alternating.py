"""What holds for every method that moves a network and an energy in turn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured import costs
from structured._state import flatten_state, unflatten_state
from structured.energies import ChainEnergy, ConvolutionalEnergy
from structured.methods import CrossEntropy, Learner, Method, from_dict, to_dict
from structured.methods.alen import ALEN, IALEN
from structured.methods.infnet import InfNet
from structured.methods.infnet_plus import InfNetPlus
from structured.methods.seal import SEAL
from structured.metrics import example_f1
from structured.models import ModelConfig, Models, build_models
from structured.named import as_method
from structured.networks import BiLSTMTagger, UNet
from structured.spaces import Mask, Tags

SIZES: dict[str, Any] = {"hidden": (8,), "energy_hidden": (6,), "global_size": 3}
DROPPED = ModelConfig(**SIZES)
STEPS = 3

# By the name users type; what follows a comma tells variants apart.
METHODS: dict[str, Method] = {
    "infnet": InfNet(pretrain_epochs=1, joint_epochs=1),
    "infnet, published penalties": InfNet(
        pretrain_epochs=1, joint_epochs=1, anchor=10.0, entropy=1.0, l2=0.1, ce_weight=0.0
    ),
    "infnet_plus": InfNetPlus(pretrain_epochs=1, network_steps=2),
    "infnet_plus, shared": InfNetPlus("shared", pretrain_epochs=1, weight=0.5),
    "infnet_plus, stacked": InfNetPlus("stacked", detach=False, pretrain_epochs=1),
    "seal": SEAL(pretrain_epochs=1, samples=5),
    "seal, margin": SEAL(energy_loss="margin", pretrain_epochs=1, network_steps=2, energy_steps=3),
    "seal, value": SEAL(energy_loss="value", pretrain_epochs=1),
    "seal, static": SEAL("static", pretrain_epochs=1, energy_epochs=1, samples=5),
    "alen": ALEN(pretrain_epochs=1),
    "ialen": IALEN(pretrain_epochs=1, network_steps=2),
}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
EVERY_NAME = pytest.mark.parametrize("name", METHODS)


def batches(count: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(5, 6, generator=generator),
            (torch.rand(5, 4, generator=generator) < 0.4).float(),
        )
        for _ in range(count)
    ]


def start(method: Method, config: ModelConfig = DROPPED) -> Learner:
    return method.learner(method.build(6, 4, config, 0), steps_per_epoch=STEPS, seed=1)


def run(learner: Learner, epochs: int, seed: int = 0) -> list[dict[str, float]]:
    figures = []
    for _ in range(epochs):
        figures += [learner.step(x, y) for x, y in batches(seed=seed)]
        learner.end_epoch()
    return figures


def same(left: nn.Module | None, right: nn.Module | None) -> bool:
    assert left is not None
    assert right is not None
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@EVERY
def test_a_method_survives_json(method: Method) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method


SHARED = {
    "pretrain_epochs": -1,
    "pretrain_lr": 0.0,
    "energy_start": "zero",
    "network_steps": 0,
    "network_lr": -1.0,
    "energy_lr": math.inf,
    "energy_weight_decay": -0.1,
}


@EVERY
@pytest.mark.parametrize(("option", "value"), SHARED.items())
def test_a_shared_option_that_does_not_fit_is_refused(
    method: Any, option: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"^{option}: found {value!r}"):
        replace(method, **{option: value})


@EVERY_NAME
def test_a_method_is_known_by_its_name(name: str) -> None:
    assert type(as_method(name.partition(",")[0])) is type(METHODS[name])


@EVERY
def test_pretraining_is_cross_entropy_step_for_step(method: Method) -> None:
    plain, learner = start(CrossEntropy()), start(method)
    assert learner.phase == "pretraining"
    run(plain, 1)
    run(learner, 1)
    assert same(plain.models.network, learner.models.network)


@EVERY
def test_every_figure_of_every_step_is_finite(method: Method) -> None:
    learner = start(method)
    for figures in run(learner, 4):
        assert figures
        assert all(math.isfinite(value) for value in figures.values())
    assert learner.notice == ""


@EVERY
@pytest.mark.parametrize("epochs", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 2])
def test_a_restored_learner_goes_on_bit_for_bit(method: Method, epochs: int, more: int) -> None:
    learner = start(method)
    run(learner, epochs)
    for x, y in batches(more, seed=7):
        learner.step(x, y)
    value, tensors = flatten_state(learner.state_dict())
    state = unflatten_state(value, tensors)
    expected = run(learner, 2, seed=8)
    restored = start(method)
    run(restored, 3, seed=9)
    restored.load_state_dict(state)
    assert restored.epoch == epochs
    assert run(restored, 2, seed=8) == expected
    assert same(restored.models.network, learner.models.network)
    assert same(restored.models.energy, learner.models.energy)
    x, _ = batches(1)[0]
    assert torch.equal(restored.predict(x), learner.predict(x))


@EVERY
def test_a_state_that_does_not_fit_is_refused_whole(method: Method) -> None:
    learner = start(method)
    run(learner, 2)
    before = learner.state_dict()
    cut = learner.state_dict()
    del cut["progress"]["optimizers"]
    for bad in (cut, start(method, ModelConfig(**{**SIZES, "hidden": (9,)})).state_dict()):
        with pytest.raises(ValueError, match="nothing was loaded"):
            learner.load_state_dict(bad)
    figures = run(learner, 2)
    untouched = start(method)
    untouched.load_state_dict(before)
    assert run(untouched, 2) == figures


@EVERY
def test_models_without_an_energy_are_refused(method: Method) -> None:
    models = build_models(6, 4, DROPPED, seed=0)
    with pytest.raises(ValueError, match="models: found no energy"):
        method.learner(Models(models.space, models.network), steps_per_epoch=1)


@EVERY
def test_predictions_lie_in_the_space_and_leave_all_as_it_was(method: Method) -> None:
    learner = start(method)
    run(learner, 3)
    x, _ = batches(1)[0]
    before = learner.state_dict()["modules"]
    first, second = learner.predict(x), learner.predict(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert bool(((first >= 0) & (first <= 1)).all())
    assert learner.models.network.training
    for name, module in learner.state_dict()["modules"].items():
        assert all(torch.equal(before[name][key], value) for key, value in module.items())
    leaves = [*learner.models.network.parameters(), *_energy(learner).parameters()]
    assert all(leaf.grad is None for leaf in leaves)


def _energy(learner: Learner) -> nn.Module:
    assert learner.models.energy is not None
    return learner.models.energy


def toy(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four half-spaces of three dimensions, with a gap along each border."""
    normals = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4 * rows, 3, generator=torch.Generator().manual_seed(seed + 1))
    scores = x @ (normals / normals.norm(dim=1, keepdim=True)).T
    clear = (scores.abs() > 0.2).all(dim=1)
    return x[clear][:rows], (scores[clear][:rows] > 0).float()


TOY = ModelConfig(hidden=(16,), dropout=0.0, input_dropout=0.0, energy_hidden=(16,), global_size=4)


def score(method: Method, y: Tensor) -> float:
    x, _ = toy(192, 0)
    learner = method.learner(build_models(3, 4, TOY, seed=0), steps_per_epoch=6, seed=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        for rows in torch.randperm(len(x), generator=generator).split(32):
            learner.step(x[rows], y[rows])
        learner.end_epoch()
    held, gold = toy(200, 5)
    return example_f1(learner.models.space.round(learner.predict(held)), gold)


def on_toy(method: Method) -> Method:
    """The same method with stages and rates for a run of twelve epochs."""
    options = {"pretrain_epochs": 8, "joint_epochs": 3, "pretrain_lr": 1e-2}
    options |= {"network_lr": 1e-2, "energy_lr": 1e-2}
    described = to_dict(method)
    return from_dict(described | {name: options[name] for name in options if name in described})


@EVERY
def test_a_separable_task_is_learned_and_shuffled_labels_are_not(method: Method) -> None:
    _, y = toy(192, 0)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]
    learned, control = (score(on_toy(method), gold) for gold in (y, shuffled))
    assert learned > 0.9
    assert learned > control + 0.2


@EVERY
def test_tags_and_masks_are_trained_as_well(method: Method) -> None:
    torch.manual_seed(0)
    tags = Models(Tags(3), BiLSTMTagger(2, 3, hidden=4, dropout=0.2), ChainEnergy(2, 3, hidden=4))
    gold = nn.functional.one_hot(torch.randint(3, (2, 5)), 3).float()
    masks = Models(Mask(8, 8), UNet(1, width=4, depth=1), ConvolutionalEnergy(1, width=4, depth=1))
    cases: list[tuple[Models, Any, Tensor, Tensor]] = [
        (tags, costs.token_error, torch.randn(2, 5, 2), gold),
        (masks, costs.soft_iou, torch.randn(2, 1, 8, 8), (torch.rand(2, 8, 8) < 0.5).float()),
    ]
    for models, cost, x, y in cases:
        fields: dict[str, Any] = {**vars(method), "energy_start": "random"}
        fields |= {name: value for name, value in _free(method).items()}
        learner = type(method)(**{**fields, "cost": cost}).learner(models, steps_per_epoch=1)
        for _ in range(3):
            assert all(math.isfinite(value) for value in learner.step(x, y).values())
            learner.end_epoch()


def _free(method: Method) -> dict[str, Any]:
    """What a random start asks for."""
    return {"freeze_features": False} if isinstance(method, InfNet) else {}
