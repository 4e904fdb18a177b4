"""SEAL: an energy as a loss; who is fixed when, and what each loss compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from structured import costs
from structured.losses import nce_ranking, value_cross_entropy
from structured.methods.seal import SEAL, SEALLearner, SEALLoss
from structured.models import ModelConfig, build_models

Make = Callable[..., Any]
LOSSES: tuple[SEALLoss, ...] = get_args(SEALLoss)
CONFIG = ModelConfig(hidden=(8,), energy_hidden=(6,), global_size=3, cardinality=0)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator)
    return x, (torch.rand(5, 4, generator=generator) < 0.4).float()


def start(**options: Any) -> SEALLearner:
    method = SEAL(**{"pretrain_epochs": 0, "samples": 6, **options})
    return method.learner(build_models(6, 4, CONFIG, seed=0), steps_per_epoch=1, seed=1)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def steps_taken(learner: SEALLearner) -> dict[str, set[int]]:
    return {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for name, optimizer in learner._optimizers.items()
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_the_static_energy_learns_alone_and_then_never_moves(loss: SEALLoss) -> None:
    learner = start(mode="static", energy_loss=loss, pretrain_epochs=1, energy_epochs=2)
    network, energy = learner.models.network, learner._energy
    for epoch in range(6):
        before, energy_before = weights(network), weights(energy)
        for seed in range(3):
            figures = learner.step(*data(seed))
        assert bool(moved(network, before)) == (epoch not in (1, 2))
        assert moved(energy, energy_before) == (set(energy_before) if epoch in (1, 2) else set())
        assert learner.phase == ("pretraining" if epoch < 3 else "static")
        assert ("primary" in figures) == (epoch in (1, 2))
        learner.end_epoch()


def test_the_dynamic_energy_and_the_network_move_on_each_minibatch() -> None:
    learner = start()
    network, energy = learner.models.network, learner._energy
    assert learner.phase == "dynamic"
    for seed in range(3):
        before, energy_before = weights(network), weights(energy)
        learner.step(*data(seed))
        assert moved(network, before) == set(before)
        assert moved(energy, energy_before) == set(energy_before)


def test_steps_on_the_energy_are_nested_in_those_on_the_network() -> None:
    learner = start(network_steps=3, energy_steps=4)
    learner.step(*data())
    assert steps_taken(learner) == {"network": {3}, "energy": {12}}
    alone = start(mode="static", energy_epochs=1, network_steps=3, energy_steps=4)
    alone.step(*data())
    assert steps_taken(alone) == {"energy": {4}}
    alone.end_epoch()
    alone.step(*data())
    assert steps_taken(alone) == {"network": {3}}


def test_the_network_descends_cross_entropy_plus_the_weighted_energy_of_its_output(
    make_models: Make, make_batch: Make
) -> None:
    models, batch = make_models(), make_batch()
    logits = models.network(batch.x)
    phi = dict(models.energy.named_parameters())
    value = SEAL(energy_weight=0.3).objectives(models).network(phi, batch.x, batch.y, logits)
    point = torch.sigmoid(logits)
    entropy = nn.functional.binary_cross_entropy(point, batch.y, reduction="sum") / len(batch.x)
    expected = entropy + 0.3 * models.energy(batch.x, point).mean()
    torch.testing.assert_close(value, expected)
    pure = SEAL(energy_weight=0.0).objectives(models).network(phi, batch.x, batch.y, logits)
    torch.testing.assert_close(pure, entropy)


def test_each_loss_of_the_energy_is_the_one_it_is_called(
    make_models: Make, make_batch: Make
) -> None:
    models: Any = make_models()
    batch = make_batch(samples=7)
    x, y = batch.x, batch.y
    with torch.no_grad():
        logits, phi = models.network(x), dict(models.energy.named_parameters())
        point, gold = torch.sigmoid(logits), models.energy(x, y)
        drawn = models.space.hard(logits + batch.noise)
        chances = torch.where(drawn == 1, point, 1 - point).log().sum(dim=-1)
        gold_chance = torch.where(y == 1, point, 1 - point).log().sum(dim=-1)
        cost = costs.soft_f1(point, y)
        expected = {
            "ranking": nce_ranking(gold, models.energy(x, drawn), gold_chance, chances),
            "margin": (cost - models.energy(x, point) + gold).relu(),
            "value": value_cross_entropy(models.energy(x, point), 1 - cost)
            + value_cross_entropy(gold, torch.ones(())),
        }
        for loss in LOSSES:
            objectives = SEAL(energy_loss=loss, samples=7).objectives(models)
            candidates = objectives.candidates(logits, batch.noise if loss == "ranking" else None)
            found = objectives.compare(phi, x, y, logits, candidates)
            torch.testing.assert_close(
                objectives.energy(found, y, candidates), expected[loss].mean()
            )


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_the_energy_are_those_of_central_differences_and_none_reaches_the_network(
    loss: SEALLoss, make_models: Make, make_batch: Make
) -> None:
    models: Any = make_models()
    batch = make_batch(samples=4)
    objectives = SEAL(energy_loss=loss, samples=4).objectives(models)
    noise = batch.noise if loss == "ranking" else None
    leaves = list(models.energy.parameters())

    def value() -> Tensor:
        logits = models.network(batch.x)
        candidates = objectives.candidates(logits, noise)
        phi = dict(models.energy.named_parameters())
        found = objectives.compare(phi, batch.x, batch.y, logits, candidates)
        return objectives.energy(found, batch.y, candidates)

    reached = torch.autograd.grad(value(), list(models.network.parameters()), allow_unused=True)
    assert reached == (None,) * len(reached)
    slopes = torch.autograd.grad(value(), leaves)
    torch.manual_seed(0)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    found = torch.stack([(s * d).sum() for s, d in zip(slopes, directions, strict=True)]).sum()
    step, ends = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(direction, alpha=sign * step)
            ends.append(value())
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_ranking_separates_the_gold_output_from_samples_of_the_network() -> None:
    learner = start(mode="static", energy_epochs=1, energy_lr=1e-2)
    figures = [learner.step(*data()) for _ in range(60)]
    assert figures[-1]["primary"] < 0.5 * figures[0]["primary"]
    assert figures[-1]["energy_gap"] > figures[0]["energy_gap"] + 0.5


def test_a_heavier_energy_pulls_the_output_to_lower_energies() -> None:
    """Away from the labels: they are what the energy, here untrained, knows nothing of."""
    ends = {}
    for weight in (0.0, 5.0):
        learner = start(mode="static", energy_epochs=0, energy_weight=weight, network_lr=1e-2)
        for _ in range(40):
            figures = learner.step(*data())
        x, _ = data()
        point = learner.predict(x)
        ends[weight] = float(learner._energy(x, point).mean().detach()), figures["cross_entropy"]
    assert ends[5.0][0] < ends[0.0][0] - 0.1
    assert ends[5.0][1] > ends[0.0][1]


def test_an_energy_may_start_from_the_network_in_both_modes() -> None:
    equal = ModelConfig(hidden=(8,), energy_hidden=None, energy_activation=None)
    for mode in ("static", "dynamic"):
        method = SEAL(mode, pretrain_epochs=0, energy_start="network", energy_lr=1e-12)
        learner = method.learner(build_models(6, 4, equal, seed=0), steps_per_epoch=1)
        x, _ = data()
        before = learner.predict(x).logit()
        learner.step(*data())
        unaries: Any = learner._energy.unaries
        torch.testing.assert_close(unaries(x).detach(), -before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "frozen"}, "mode: found 'frozen', wanted one of dynamic, static"),
        ({"energy_loss": "nce"}, "energy_loss: found 'nce', wanted one of ranking"),
        ({"samples": 0}, "samples: found 0"),
        ({"energy_steps": 0}, "energy_steps: found 0"),
        ({"energy_weight": -1.0}, "energy_weight: found -1.0"),
        ({"energy_epochs": -1}, "energy_epochs: found -1"),
        ({"energy_lr": 0.0}, "energy_lr: found 0.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEAL(**options)


def test_names_tell_the_losses_and_modes_apart() -> None:
    assert SEAL().name == "seal-dynamic-ranking"
    assert SEAL("static", "value").name == "seal-static-value"
