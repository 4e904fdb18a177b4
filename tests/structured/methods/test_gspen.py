"""Runs of graph structured prediction energy networks, and their loss against enumeration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from structured._state import flatten_state, unflatten_state
from structured.data import digit_strips
from structured.methods import Learner
from structured.methods.gspen import GSPEN, energy_of
from structured.model_file import load_models
from structured.models import ModelConfig, Models, build_models
from structured.train_config import TrainConfig
from structured.training import train

CONFIG = ModelConfig(hidden=(8,), global_size=3)
LABELS, STEPS = 5, 3
RATES: dict[str, Any] = {"pretrain_epochs": 1, "lr": 1e-2, "energy_lr": 1e-2}
MODES = {
    "hinge on a tree": GSPEN(margin=1.0, entropy=1.0, **RATES),
    "likelihood on a tree": GSPEN(margin=0.0, **RATES),
    "hinge with cycles": GSPEN(pairs_per_label=1, **RATES),
    "Frank-Wolfe on a tree": GSPEN(inference="frank_wolfe", steps=10, **RATES),
    "Frank-Wolfe with cycles": GSPEN(inference="frank_wolfe", pairs_per_label=1, steps=2, **RATES),
}
modes = pytest.mark.parametrize("method", MODES.values(), ids=MODES)


def batches(count: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Labels of which the first and the last always agree, and the second and third never do."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        y = (torch.rand(20, LABELS, generator=generator) < 0.4).float()
        y[:, 4], y[:, 2] = y[:, 0], 1.0 - y[:, 1]
        found.append((torch.randn(20, 6, generator=generator), y))
    return found


def start(method: GSPEN, config: ModelConfig = CONFIG) -> Learner:
    models = method.build(6, LABELS, config, seed=0)
    return method.learner(models, steps_per_epoch=STEPS, seed=1)


def run(learner: Learner, epochs: int, seed: int = 0) -> list[dict[str, float]]:
    figures = []
    for _ in range(epochs):
        figures += [learner.step(x, y) for x, y in batches(seed=seed)]
        learner.end_epoch()
    return figures


def random_models(method: GSPEN, *, global_weight: float = 0.5) -> Models:
    """Models in double precision whose pairs and global term count."""
    models = method.build(6, LABELS, CONFIG, seed=0)
    energy = energy_of(models)
    energy.connect(method.choose(torch.rand(LABELS, LABELS), 3))
    torch.manual_seed(3)
    with torch.no_grad():
        energy.couplings.normal_()
        energy.global_term.weight.normal_().mul_(global_weight)
    models.network.double().eval()
    energy.double()
    return models


@modes
def test_gspen_pretrains_then_chooses_pairs_and_trains_all_together(method: GSPEN) -> None:
    learner = start(method, replace(CONFIG, dropout=0.0, input_dropout=0.0))
    energy = energy_of(learner.models)
    first = run(learner, 1)
    assert set(first[0]) == {"cross_entropy"}
    assert not energy.couplings.any()
    assert learner.phase == "gspen"
    figures = run(learner, 8)
    assert set(figures[0]) == {"structured_loss", "inner_gap", "largest_gap"}
    assert all(math.isfinite(value) for found in figures for value in found.values())
    before, after = (
        sum(f["structured_loss"] for f in part) for part in (figures[:3], figures[-3:])
    )
    assert after < 0.97 * before
    pairs = energy.graph.pairs.tolist()
    assert [0, 4] in pairs
    assert [1, 2] in pairs
    by_pair = dict(zip(map(tuple, pairs), energy.couplings.tolist(), strict=True))
    assert by_pair[0, 4] > 0 > by_pair[1, 2]
    if method.inference == "mirror":
        assert learner.notice == ""


def test_inference_that_ends_early_is_noticed() -> None:
    learner = start(GSPEN(inference="frank_wolfe", steps=1, pretrain_epochs=1))
    run(learner, 1)
    assert learner.notice == ""
    figures = learner.step(*batches(1)[0])
    assert figures["inner_gap"] > 0.1 * figures["structured_loss"]
    assert "take more steps" in learner.notice
    learner.load_state_dict(learner.state_dict())
    assert learner.notice == ""


@modes
def test_predictions_are_probabilities_without_dropout_or_gradient(method: GSPEN) -> None:
    learner = start(method)
    x, _ = batches(1)[0]
    for _ in range(2):
        found = learner.predict(x)
        assert found.shape == (20, LABELS)
        assert bool(((found >= 0) & (found <= 1)).all())
        assert not found.requires_grad
        assert torch.equal(found, learner.predict(x))
        run(learner, 2)


def test_before_the_energy_has_learned_anything_beliefs_are_the_networks_probabilities() -> None:
    learner = start(GSPEN(pairs_per_label=2, pretrain_epochs=3))
    run(learner, 2)
    x, _ = batches(1)[0]
    expected = torch.sigmoid(learner.models.network.eval()(x)).detach()
    torch.testing.assert_close(learner.predict(x), expected)


def test_on_a_tree_without_a_global_term_the_loss_is_the_likelihood_of_a_random_field() -> None:
    method = GSPEN(margin=0.0, entropy=1.0)
    models = random_models(method, global_weight=0.0)
    x, y = torch.randn(4, 6).double(), (torch.rand(4, LABELS) < 0.5).double()
    logits, energy = models.network(x), energy_of(models)
    bits = ((torch.arange(2**LABELS)[:, None] >> torch.arange(LABELS)) & 1).double()
    scores = logits @ bits.T - energy(x, bits[:, None]).T
    gold = (logits * y).sum(dim=-1) - energy(x, y)
    found = method.infer(models, logits.detach(), y)
    torch.testing.assert_close(found.point[:, :LABELS], torch.softmax(scores, -1) @ bits)
    loss = method.loss(models, logits, y, found.point)
    torch.testing.assert_close(loss, torch.logsumexp(scores, dim=-1) - gold)
    torch.testing.assert_close(method.predict(models, x), torch.softmax(scores, -1) @ bits)
    leaves = [*models.network.parameters(), energy.couplings]
    exact = torch.autograd.grad((torch.logsumexp(scores, dim=-1) - gold).sum(), leaves)
    torch.testing.assert_close(
        torch.autograd.grad(method.loss(models, models.network(x), y, found.point).sum(), leaves),
        exact,
    )


@pytest.mark.parametrize("pairs_per_label", [None, 2])
def test_the_hinge_is_at_least_zero_and_that_of_the_worst_label_set(
    pairs_per_label: int | None,
) -> None:
    method = GSPEN(pairs_per_label, margin=2.0, entropy=0.01, iterations=2000, steps=1)
    models = random_models(method, global_weight=0.0)
    x, y = torch.randn(4, 6).double(), (torch.rand(4, LABELS) < 0.5).double()
    logits, energy = models.network(x), energy_of(models)
    bits = ((torch.arange(2**LABELS)[:, None] >> torch.arange(LABELS)) & 1).double()
    scores = 0.01 * (logits @ bits.T - energy(x, bits[:, None]).T)
    wrong = (bits != y[:, None]).sum(dim=-1)
    worst = (scores + 2.0 * wrong).amax(dim=-1)
    gold = 0.01 * ((logits * y).sum(dim=-1) - energy(x, y))
    found = method.infer(models, logits.detach(), y)
    loss = method.loss(models, logits, y, found.point)
    assert bool((loss >= worst - gold - 1e-9).all())
    if pairs_per_label is None:
        # The entropy adds no more than 5 log 2 / 100.
        torch.testing.assert_close(loss, worst - gold, atol=0.035, rtol=0.0)


@pytest.mark.parametrize("pairs_per_label", [None, 2])
def test_the_gradient_is_that_of_the_loss_solved_anew_by_central_differences(
    pairs_per_label: int | None,
) -> None:
    method = GSPEN(pairs_per_label, margin=0.5, entropy=0.5, steps=60, rate=0.5, iterations=300)
    models = random_models(method)
    energy = energy_of(models)
    x, y = torch.randn(4, 6).double(), (torch.rand(4, LABELS) < 0.5).double()

    def value() -> Tensor:
        logits = models.network(x)
        found = method.infer(models, logits, y)
        assert bool((found.gap < 1e-9).all())
        return method.loss(models, logits, y, found.point).sum()

    leaves = [*models.network.parameters(), *energy.parameters()]
    gradients = torch.autograd.grad(value(), leaves)
    starts = [leaf.detach().clone() for leaf in leaves]
    directions = [torch.randn_like(leaf) for leaf in leaves]
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            for leaf, before, direction in zip(leaves, starts, directions, strict=True):
                leaf.copy_(before + step * direction)
            values.append(float(value()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("pairs_per_label", [None, 2])
@pytest.mark.parametrize("inference", ["mirror", "frank_wolfe"])
def test_beliefs_are_inside_the_local_polytope(pairs_per_label: Any, inference: Any) -> None:
    method = GSPEN(pairs_per_label, inference=inference, steps=3)
    models = random_models(method)
    x, y = torch.randn(4, 6).double(), (torch.rand(4, LABELS) < 0.5).double()
    graph = energy_of(models).graph
    for gold in (None, y):
        found = method.infer(models, models.network(x), gold)
        assert bool((graph.violation(found.point) < 1e-12).all())


@pytest.mark.parametrize(("epochs", "more"), [(0, 1), (0, 0), (1, 0), (1, 2), (2, 1)])
def test_a_restored_learner_goes_on_bit_for_bit(epochs: int, more: int) -> None:
    method = GSPEN(pairs_per_label=1, pretrain_epochs=1, weight_decay=0.1)
    learner = start(method)
    run(learner, epochs)
    for x, y in batches(more, seed=7):
        learner.step(x, y)
    state = unflatten_state(*flatten_state(learner.state_dict()))
    expected = run(learner, 2, seed=8)
    restored = start(method)
    run(restored, 2, seed=9)
    restored.load_state_dict(state)
    assert run(restored, 2, seed=8) == expected
    for mine, its in zip(
        restored.state_dict()["modules"].values(),
        learner.state_dict()["modules"].values(),
        strict=True,
    ):
        assert all(torch.equal(value, its[name]) for name, value in mine.items())


def test_a_run_with_averaged_weights_is_read_again_from_its_folder(tmp_path: Path) -> None:
    parts = digit_strips(64, 16, 16).split("disjoint_images")
    method = GSPEN(pretrain_epochs=1)
    config = TrainConfig(epochs=3, device="cpu", average=0.9, last_phase_only=True)
    result = train(
        method, parts["train"], parts["validation"], config, model=CONFIG, run_dir=tmp_path / "run"
    )
    loaded, _ = load_models(tmp_path / "run" / "model.safetensors")
    assert torch.equal(energy_of(loaded).pairs, energy_of(result.models).pairs)
    assert bool(energy_of(loaded).couplings.any())
    x = torch.from_numpy(parts["test"].dense()[0]).float()
    again = method.predict(Models(loaded.space, loaded.network.eval(), loaded.energy), x)
    torch.testing.assert_close(again, result.predict(parts["test"].X))


def test_no_more_pairs_are_asked_for_than_there_are_and_one_label_has_none() -> None:
    models = GSPEN(pairs_per_label=50).build(6, 4, CONFIG, seed=0)
    assert len(energy_of(models).pairs) == 6
    alone = GSPEN(pretrain_epochs=1)
    learner = alone.learner(alone.build(6, 1, CONFIG, seed=0), steps_per_epoch=1)
    for _ in range(2):
        figures = learner.step(torch.randn(4, 6), torch.ones(4, 1))
        learner.end_epoch()
    assert math.isfinite(figures["structured_loss"])
    assert learner.predict(torch.randn(2, 6)).shape == (2, 1)


def test_options_and_models_that_do_not_fit_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"inference": "annealing"}, "inference: found 'annealing'"),
        ({"pairs_per_label": 0}, "pairs_per_label: found 0"),
        ({"pretrain_epochs": 0}, "pretrain_epochs: found 0"),
        ({"steps": 0}, "steps: found 0"),
        ({"iterations": 0}, "iterations: found 0"),
        ({"entropy": 0.0}, "entropy: found 0.0"),
        ({"margin": -1.0}, "margin: found -1.0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            GSPEN(**options)
    with pytest.raises(ValueError, match="wanted a GraphEnergy"):
        GSPEN().learner(build_models(6, 4, CONFIG, seed=0), steps_per_epoch=1)
