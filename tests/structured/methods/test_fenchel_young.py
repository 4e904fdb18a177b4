"""Runs of the generalized Fenchel-Young method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured import costs
from structured._state import flatten_state, unflatten_state
from structured.data import digit_strips
from structured.fenchel_young import InnerGapError, PairwiseCoupling
from structured.methods import CrossEntropy, Learner
from structured.methods.fenchel_young import FenchelYoung, coupling_of
from structured.model_file import load_models
from structured.models import ModelConfig, Models, build_models
from structured.train_config import TrainConfig
from structured.training import train

CONFIG = ModelConfig(hidden=(8,), global_size=3)
ENERGIES = ("unary", "pairwise", "spen", "concave_spen", "linear_concave")
energies = pytest.mark.parametrize("energy", ENERGIES)
regularizers = pytest.mark.parametrize("regularizer", ["entropy", "squared_norm"])
STEPS = 3


def batches(count: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(5, 6, generator=generator),
            (torch.rand(5, 4, generator=generator) < 0.4).float(),
        )
        for _ in range(count)
    ]


def start(method: FenchelYoung, config: ModelConfig = CONFIG) -> Learner:
    return method.learner(method.build(6, 4, config, seed=0), steps_per_epoch=STEPS, seed=1)


def run(learner: Learner, epochs: int, seed: int = 0) -> list[dict[str, float]]:
    figures = []
    for _ in range(epochs):
        figures += [learner.step(x, y) for x, y in batches(seed=seed)]
        learner.end_epoch()
    return figures


def strongly_coupled(method: FenchelYoung) -> Models:
    """Couplings so strong that a step or two do not solve the inner problem."""
    models = method.build(6, 4, CONFIG, seed=0)
    with torch.no_grad():
        for leaf in coupling_of(models).parameters():
            leaf.mul_(10.0)
    return models


@energies
@regularizers
def test_the_loss_falls_and_the_inner_problem_is_solved(energy: Any, regularizer: Any) -> None:
    learner = start(FenchelYoung(energy, regularizer, lr=1e-2, energy_lr=1e-2))
    figures = run(learner, 20)
    assert set(figures[0]) == {"fenchel_young", "inner_gap", "largest_gap"}
    assert all(math.isfinite(value) for found in figures for value in found.values())
    first, last = (sum(f["fenchel_young"] for f in part) for part in (figures[:3], figures[-3:]))
    assert last < 0.97 * first
    assert figures[-1]["inner_gap"] < 1e-2
    assert learner.phase == "fenchel-young"
    assert learner.notice == ""


@energies
@regularizers
def test_predictions_are_probabilities_without_dropout_or_gradient(
    energy: Any, regularizer: Any
) -> None:
    learner = start(FenchelYoung(energy, regularizer))
    x, _ = batches(1)[0]
    found = learner.predict(x)
    assert found.shape == (5, 4)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert not found.requires_grad
    assert torch.equal(found, learner.predict(x))
    assert learner.models.network.training


def test_without_a_coupling_and_with_the_entropy_it_is_cross_entropy_training() -> None:
    method, plain = FenchelYoung("unary", lr=1e-2), CrossEntropy(lr=1e-2)
    learners = [
        one.learner(models, steps_per_epoch=STEPS, seed=1)
        for one, models in (
            (method, method.build(6, 4, CONFIG, seed=0)),
            (plain, build_models(6, 4, CONFIG, seed=0)),
        )
    ]
    for x, y in batches(6):
        mine, its = (learner.step(x, y) for learner in learners)
        assert mine["fenchel_young"] == pytest.approx(its["cross_entropy"], rel=1e-4)
    predictions = [learner.predict(batches(1)[0][0]) for learner in learners]
    torch.testing.assert_close(*predictions, atol=1e-4, rtol=0.0)


def test_the_prediction_takes_the_coupling_into_account() -> None:
    method = FenchelYoung()
    models = strongly_coupled(method)
    x, _ = batches(1)[0]
    learner = method.learner(models, steps_per_epoch=1)
    coupled = learner.predict(x)
    with torch.no_grad():
        for leaf in coupling_of(models).parameters():
            leaf.zero_()
    alone = learner.predict(x)
    torch.testing.assert_close(alone, torch.sigmoid(models.network.eval()(x)).detach())
    assert not torch.allclose(coupled, alone, atol=0.05)


def test_a_network_starts_as_that_of_every_other_method() -> None:
    mine, its = FenchelYoung().build(6, 4, CONFIG, 7), build_models(6, 4, CONFIG, 7)
    pairs = zip(mine.network.parameters(), its.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert isinstance(mine.energy, PairwiseCoupling)
    again = FenchelYoung().build(6, 4, CONFIG, 7).energy
    assert isinstance(again, PairwiseCoupling)
    assert torch.equal(mine.energy.factors, again.factors)


def test_a_cost_makes_the_loss_larger_and_its_weight_counts() -> None:
    values = [
        start(FenchelYoung(cost=costs.hamming, cost_weight=weight)).step(*batches(1)[0])
        for weight in (0.0, 1.0, 4.0)
    ]
    losses = [figures["fenchel_young"] for figures in values]
    assert losses == sorted(losses)
    assert losses[2] > losses[1] + 0.5


def test_a_gap_past_the_tolerance_ends_the_run() -> None:
    method = FenchelYoung(steps=1, tolerance=1e-3)
    learner = method.learner(strongly_coupled(method), steps_per_epoch=1)
    with pytest.raises(InnerGapError, match="gap: found"):
        learner.step(*batches(1)[0])


def test_an_inner_problem_that_is_not_solved_is_noticed() -> None:
    method = FenchelYoung(steps=1)
    learner = method.learner(strongly_coupled(method), steps_per_epoch=1)
    figures = learner.step(*batches(1)[0])
    assert figures["inner_gap"] > 0.1 * figures["fenchel_young"]
    assert "take more steps" in learner.notice
    learner.load_state_dict(learner.state_dict())
    assert learner.notice == ""


@pytest.mark.parametrize("more", [0, 2])
@energies
def test_a_restored_learner_goes_on_bit_for_bit(energy: Any, more: int) -> None:
    method = FenchelYoung(energy, weight_decay=0.1)
    learner = start(method)
    run(learner, 1)
    for x, y in batches(more, seed=7):
        learner.step(x, y)
    state = unflatten_state(*flatten_state(learner.state_dict()))
    expected = run(learner, 2, seed=8)
    restored = start(method)
    run(restored, 1, seed=9)
    restored.load_state_dict(state)
    assert run(restored, 2, seed=8) == expected
    for mine, its in zip(
        restored.state_dict()["modules"].values(),
        learner.state_dict()["modules"].values(),
        strict=True,
    ):
        assert all(torch.equal(value, its[name]) for name, value in mine.items())


def test_a_run_is_read_again_from_its_folder(tmp_path: Path) -> None:
    parts = digit_strips(64, 16, 16).split("disjoint_images")
    method = FenchelYoung("linear_concave")
    result = train(
        method,
        parts["train"],
        parts["validation"],
        TrainConfig(epochs=1, device="cpu"),
        model=CONFIG,
        run_dir=tmp_path / "run",
    )
    loaded, _ = load_models(tmp_path / "run" / "model.safetensors")
    x = torch.from_numpy(parts["test"].dense()[0]).float()
    again = method.predict(Models(loaded.space, loaded.network.eval(), loaded.energy), x)
    torch.testing.assert_close(again, result.predict(parts["test"].X))


def test_names_tell_energies_apart() -> None:
    names = [FenchelYoung(energy).name for energy in ENERGIES]  # type: ignore[arg-type]
    assert names[0] == "fenchel-young-unary"
    assert len(set(names)) == len(ENERGIES)


def test_options_and_models_that_do_not_fit_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"energy": "tree"}, "energy: found 'tree', wanted one of unary, pairwise"),
        ({"regularizer": "l1"}, "regularizer: found 'l1'"),
        ({"steps": 0}, "steps: found 0"),
        ({"weight": 0.0}, "weight: found 0.0"),
        ({"energy_lr": 0.0}, "energy_lr: found 0.0"),
        ({"cost_weight": -1.0}, "cost_weight: found -1.0"),
        ({"tolerance": 0.0}, "tolerance: found 0.0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            FenchelYoung(**options)
    models = build_models(6, 4, CONFIG, seed=0)
    for wrong in (models, Models(models.space, models.network)):
        with pytest.raises(ValueError, match="wanted a coupling"):
            FenchelYoung().learner(wrong, steps_per_epoch=1)
    other = Models(models.space, nn.Linear(6, 4), PairwiseCoupling(4, rank=1))
    assert FenchelYoung().learner(other, steps_per_epoch=1).step(*batches(1)[0])
