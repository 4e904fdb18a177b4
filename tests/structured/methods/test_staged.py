"""What SPEN, end-to-end SPEN, DVN and NCE have in common: stages, states, ranges, learning."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from structured import costs
from structured._state import flatten_state, unflatten_state
from structured.energies import ChainEnergy, ConvolutionalEnergy
from structured.methods import CrossEntropy, Method, from_dict, to_dict
from structured.methods.dvn import DVN
from structured.methods.nce import NCE
from structured.methods.spen import SPEN
from structured.methods.spen_e2e import EndToEndSPEN
from structured.models import Models, build_models
from structured.networks import BiLSTMTagger, UNet
from structured.spaces import Mask, Tags
from tests.structured.methods.toy import (
    CONFIG,
    FEATURES,
    LABELS,
    held_out_f1,
    run,
    same,
    separable,
    start,
)

SHORT: dict[str, Any] = {"pretrain_epochs": 1, "energy_epochs": 1}
METHODS: dict[str, Any] = {
    "spen": SPEN(**SHORT, steps=5),
    "spen, published": SPEN(
        **SHORT, steps=5, entropy=0.0, geometry="projected", rate=0.1, start="centre"
    ),
    "e2e": EndToEndSPEN(**SHORT, steps=5, iterates="all"),
    "e2e, projected": EndToEndSPEN(**SHORT, steps=5, entropy=0.0, geometry="projected", rate=0.05),
    "e2e, argmin": EndToEndSPEN(**SHORT, steps=8, through="argmin", start="centre"),
    "dvn": DVN(pretrain_epochs=1, drop_after=1, steps=5),
    "dvn, published": DVN(
        pretrain_epochs=0, steps=5, gold=False, optimizer="sgd", lr=0.1, local_weight=1.0
    ),
    "nce": NCE(pretrain_epochs=1, samples=5, candidates=20),
    "nce, published": NCE(
        pretrain_epochs=1, samples=5, candidates=20, loss="binary", noise="frequency",
        residual=False, prediction="gradient", max_norm=1.0,
    ),
}  # fmt: skip
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@each_method
def test_every_method_survives_json(method: Method) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method


@each_method
def test_every_figure_is_finite_and_no_gradient_is_left(method: Method) -> None:
    learner = start(method)
    for figures in run(learner, 3):
        assert all(math.isfinite(value) for value in figures.values())
    assert learner.models.energy is not None
    for module in (learner.models.network, learner.models.energy):
        assert all(leaf.grad is None for leaf in module.parameters())


@each_method
def test_in_each_stage_what_is_to_move_moves_and_nothing_else_does(method: Any) -> None:
    learner = start(method)
    expected = {stage.name: set(stage.moves) for stage in method.stages if stage.epochs != 0}
    seen = set()
    for _ in range(4):
        before = copy.deepcopy(learner.models)
        phase = learner.phase
        run(learner, 1)
        moved = {
            part
            for part in ("network", "energy")
            if not same(getattr(before, part), getattr(learner.models, part))
        }
        assert moved == expected[phase], phase
        seen.add(phase)
    assert seen == set(expected)


@each_method
def test_pretraining_is_cross_entropy_training_step_for_step(method: Any) -> None:
    learner, plain = start(replace(method, pretrain_epochs=2)), start(CrossEntropy())
    expected = [figures["cross_entropy"] for figures in run(plain, 2)]
    assert [figures["cross_entropy"] for figures in run(learner, 2)] == expected
    assert same(learner.models.network, plain.models.network)


@pytest.mark.parametrize("epochs", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 2])
@each_method
def test_a_restored_learner_goes_on_bit_for_bit(method: Method, epochs: int, more: int) -> None:
    learner = start(method)
    run(learner, epochs)
    x, y = separable(16, seed=7)
    for _ in range(more):
        learner.step(x, y)
    state = unflatten_state(*flatten_state(learner.state_dict()))
    expected = run(learner, 2, seed=8)
    restored = start(method)
    run(restored, 1, seed=9)
    restored.load_state_dict(state)
    assert restored.epoch == epochs
    assert run(restored, 2, seed=8) == expected
    assert same(restored.models.network, learner.models.network)
    assert same(restored.models.energy, learner.models.energy)


@each_method
def test_a_state_of_other_sizes_is_refused_whole(method: Method) -> None:
    learner = start(method)
    run(learner, 2)
    before = learner.state_dict()
    other = method.learner(
        method.build(FEATURES, LABELS + 1, CONFIG, 0), steps_per_epoch=4
    ).state_dict()
    with pytest.raises(ValueError, match="nothing was loaded"):
        learner.load_state_dict(other)
    expected = run(learner, 1)
    learner.load_state_dict(before)
    assert run(learner, 1) == expected


@each_method
def test_a_prediction_is_a_point_of_the_hypercube_and_depends_on_its_row_alone(
    method: Method,
) -> None:
    learner = start(method, double=True)
    x = separable(9, seed=3)[0].double()
    found = learner.predict(x)
    assert found.shape == (9, LABELS)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert not found.requires_grad
    assert learner.models.network.training
    assert torch.equal(found, learner.predict(x))
    torch.testing.assert_close(learner.predict(x[4:5]), found[4:5])
    torch.testing.assert_close(learner.predict(x.flip(0)), found.flip(0))


LONG: dict[str, Any] = {"pretrain_epochs": 8, "pretrain_lr": 1e-2}
LEARNING = {
    "spen": SPEN(**LONG, energy_epochs=2, lr=3e-3, steps=8),
    "spen, published": SPEN(
        **LONG, energy_epochs=2, lr=3e-3, entropy=0.0, geometry="projected", rate=0.1
    ),
    "spen, margin alone": SPEN(pretrain_epochs=0, energy_epochs=0, lr=1e-2, steps=8),
    "e2e": EndToEndSPEN(pretrain_epochs=0, energy_epochs=0, lr=1e-2, steps=8, max_norm=None),
    "e2e, argmin": EndToEndSPEN(
        pretrain_epochs=0, energy_epochs=0, lr=1e-2, steps=8, max_norm=None, through="argmin"
    ),
    "dvn": DVN(**LONG, lr=1e-2, steps=10),
    "dvn, values alone": DVN(pretrain_epochs=0, lr=1e-2, steps=10, local_weight=1.0),
    "nce, ranking": NCE(**LONG, lr=1e-2),
    "nce, binary": NCE(**LONG, lr=1e-2, loss="binary", prediction="gradient"),
    "nce, frequencies": NCE(**LONG, lr=1e-2, noise="frequency", residual=False),
}


@pytest.mark.parametrize("method", LEARNING.values(), ids=LEARNING)
def test_every_method_learns_labels_far_beyond_the_control(method: Method) -> None:
    learner, control = start(method), start(method)
    run(learner, 20)
    run(control, 20, shuffled=True)
    assert held_out_f1(learner) > held_out_f1(control) + 0.15
    assert held_out_f1(learner) > 0.7


@each_method
def test_tags_and_masks_are_trained_as_well(method: Any) -> None:
    torch.manual_seed(0)
    tags = Models(Tags(3), BiLSTMTagger(2, 3, hidden=4, dropout=0.2), ChainEnergy(2, 3, hidden=4))
    gold = torch.nn.functional.one_hot(torch.randint(3, (2, 5)), 3).float()
    masks = Models(Mask(8, 8), UNet(1, width=4, depth=1), ConvolutionalEnergy(1, width=4, depth=1))
    cases: list[tuple[Models, Any, Tensor, Tensor]] = [
        (tags, costs.token_error, torch.randn(2, 5, 2), gold),
        (masks, costs.soft_iou, torch.randn(2, 1, 8, 8), (torch.rand(2, 8, 8) < 0.5).float()),
    ]
    for models, cost, x, y in cases:
        values = {key: value for key, value in vars(method).items() if key != "cost"}
        suited = type(method)(**values, **({"cost": cost} if hasattr(method, "cost") else {}))
        learner = suited.learner(models, steps_per_epoch=1)
        for _ in range(3):
            figures = learner.step(x, y)
            learner.end_epoch()
            assert all(math.isfinite(value) for value in figures.values())
        found = learner.predict(x)
        assert found.shape == y.shape
        assert bool(((found >= 0) & (found <= 1 + 1e-6)).all())


@each_method
def test_models_without_an_energy_are_refused(method: Method) -> None:
    models = build_models(FEATURES, LABELS, CONFIG, 0)
    with pytest.raises(ValueError, match="models: found no energy"):
        method.learner(Models(models.space, models.network), steps_per_epoch=1)


def test_every_variant_has_a_name_of_its_own() -> None:
    names = [SPEN().name, EndToEndSPEN().name, EndToEndSPEN(through="argmin").name, DVN().name]
    names += [NCE().name, NCE(loss="binary").name]
    assert len(set(names)) == len(names)


def test_an_energy_that_holds_the_network_reweights_its_distribution() -> None:
    """By definition ``e^{-E}`` is then the network's distribution times ``e^{-E_phi}``."""
    assert all(method.reweights for method in (SPEN(), EndToEndSPEN(), NCE()))
    assert not any(method.reweights for method in (DVN(), NCE(residual=False)))


BAD: list[tuple[type, dict[str, Any], str]] = [
    (SPEN, {"steps": 0}, "steps: found 0"),
    (SPEN, {"rate": 0.0}, "rate: found 0.0"),
    (SPEN, {"geometry": "polar"}, "geometry: found 'polar'"),
    (SPEN, {"geometry": "projected"}, "entropy: found 1.0 with projected steps"),
    (SPEN, {"start": "gold"}, "start: found 'gold'"),
    (SPEN, {"cost_weight": -1.0}, "cost_weight: found -1.0"),
    (SPEN, {"max_norm": 0.0}, "max_norm: found 0.0"),
    (EndToEndSPEN, {"through": "magic"}, "through: found 'magic'"),
    (EndToEndSPEN, {"through": "argmin", "entropy": 0.0}, "entropy: found 0"),
    (EndToEndSPEN, {"through": "argmin", "iterates": "all"}, "iterates: found"),
    (DVN, {"adversarial": 1.5}, "adversarial: found 1.5, wanted a probability"),
    (DVN, {"optimizer": "rmsprop"}, "optimizer: found 'rmsprop'"),
    (DVN, {"kind": "cubed"}, "kind: found 'cubed'"),
    (DVN, {"drop_after": 0}, "drop_after: found 0"),
    (NCE, {"loss": "margin"}, "loss: found 'margin'"),
    (NCE, {"samples": 0}, "samples: found 0"),
    (NCE, {"candidates": 0}, "candidates: found 0"),
    (NCE, {"weight_decay": -1.0}, "weight_decay: found -1.0"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_options_that_do_not_fit_are_refused(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
