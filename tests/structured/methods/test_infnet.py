"""InfNet: who climbs the margin, who descends it, what holds the network, what never moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from structured.methods._objectives import Minibatch
from structured.methods.infnet import InfNet, InfNetLearner, InfNetObjectives
from structured.models import ModelConfig, Models, build_models

Make = Callable[..., Any]
CONFIG = ModelConfig(hidden=(8,), energy_hidden=(6,), global_size=3)
EQUAL = ModelConfig(hidden=(8,), energy_hidden=None, energy_activation=None, global_size=3)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator)
    return x, (torch.rand(5, 4, generator=generator) < 0.4).float()


def start(config: ModelConfig = CONFIG, **options: Any) -> InfNetLearner:
    method = InfNet(**{"pretrain_epochs": 0, "joint_epochs": 1, **options})
    return method.learner(build_models(6, 4, config, seed=0), steps_per_epoch=1, seed=1)


def weights(learner: InfNetLearner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    assert learner.models.energy is not None
    modules = (learner.models.energy, learner.models.network)
    phi, theta = ({k: v.clone() for k, v in module.state_dict().items()} for module in modules)
    return phi, theta


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def values(objectives: InfNetObjectives, phi: Any, theta: Any, batch: Minibatch) -> Tensor:
    """Delta(F, y) - E(F) + E(y), by hand."""
    models, cost = objectives.margin.models, objectives.margin.cost
    assert models.energy is not None
    point = models.space.relax(objectives.margin.logits(theta, batch))
    gap = objectives.margin.energies(phi, batch.x, point)
    return cost(point, batch.y) - gap + objectives.margin.energies(phi, batch.x, batch.y)


def test_the_network_descends_minus_the_margin_that_the_energy_descends(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models, batch = make_models(), make_batch()
    phi, theta = parameters(models)
    objectives = InfNet(ce_weight=0.0).objectives(models)
    by_hand = values(objectives, phi, theta, batch).relu().mean()
    assert by_hand > 0
    torch.testing.assert_close(objectives.margin.outer(phi, theta, batch), by_hand)
    torch.testing.assert_close(objectives.network(phi, theta, theta, batch), -by_hand)


def test_a_step_of_the_network_raises_the_margin_and_one_of_the_energy_lowers_it() -> None:
    x, y = data()
    config = ModelConfig(**{**CONFIG.to_dict(), "dropout": 0.0, "input_dropout": 0.0})
    rates = {"network": (1e-3, 1e-12), "energy": (1e-12, 1e-3)}
    change = {}
    for who, (network_lr, energy_lr) in rates.items():
        learner = start(config, network_lr=network_lr, energy_lr=energy_lr, ce_weight=0.0)
        objectives, batch = learner._objectives, Minibatch(x, y)

        def margin(learner: Any = learner, objectives: Any = objectives, at: Any = batch) -> float:
            return float(objectives.margin.outer(*weights(learner), at))

        before = margin()
        learner.step(x, y)
        change[who] = margin() - before
    assert change["network"] > 0 > change["energy"]


def test_the_penalised_gradient_of_the_network_is_that_of_central_differences(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models, batch = make_models(), make_batch()
    phi, theta = parameters(models)
    pretrained = {name: leaf + 0.1 for name, leaf in theta.items()}
    method = InfNet(anchor=3.0, entropy=0.7, l2=0.2, ce_weight=0.5)
    objectives = method.objectives(models)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    value = objectives.network(phi, leaves, pretrained, batch)
    gradient = torch.autograd.grad(value, list(leaves.values()))
    torch.manual_seed(0)
    direction = {name: torch.randn_like(leaf) for name, leaf in theta.items()}
    step = 1e-6

    def at(sign: int) -> Tensor:
        point = {name: leaf + sign * step * direction[name] for name, leaf in theta.items()}
        return objectives.network(phi, point, pretrained, batch)

    expected = (at(1) - at(-1)) / (2 * step)
    slopes = zip(gradient, direction.values(), strict=True)
    found = torch.stack([(one * other).sum() for one, other in slopes]).sum()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    # and the penalties are what the docstring says they are
    plain = InfNet(ce_weight=0.0).objectives(models).network(phi, theta, theta, batch)
    logits = objectives.margin.logits(theta, batch)
    penalties = 0.7 * models.space.entropy(logits) - 0.5 * models.space.log_prob(logits, batch.y)
    count = sum(leaf.numel() for leaf in theta.values())
    norm = torch.stack([leaf.square().sum() for leaf in theta.values()]).sum()
    torch.testing.assert_close(
        value.detach(), plain + penalties.mean() + 3.0 * 0.01 * count + 0.2 * norm
    )


def satisfied(learner: InfNetLearner) -> None:
    """Make an energy that no output violates: gold outputs, all labels present, lie far lower."""
    unaries: Any = learner._energy.unaries
    with torch.no_grad():
        unaries.output.bias.fill_(-1e3)


def test_where_no_hinge_is_active_only_the_penalties_move_the_network() -> None:
    x, _ = data()
    y = torch.ones(5, 4)
    for anchor in (0.0, 10.0):
        learner = start(ce_weight=0.0, anchor=anchor)
        satisfied(learner)
        phi, theta = weights(learner)
        figures = learner.step(x, y)
        assert figures["active_hinges"] == figures["primary"] == figures["distance"] == 0.0
        after = weights(learner)
        assert not moved(phi, after[0])
        assert not moved(theta, after[1])
    learner = start(ce_weight=0.0, entropy=1.0)
    satisfied(learner)
    phi, theta = weights(learner)
    learner.step(x, y)
    assert not moved(phi, weights(learner)[0])
    assert moved(theta, weights(learner)[1]) == set(theta)


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_features_stay_bit_for_bit_while_the_rest_of_the_energy_learns(freeze: bool) -> None:
    learner = start(freeze_features=freeze)
    phi, theta = weights(learner)
    for seed in range(3):
        learner.step(*data(seed))
    features = {name for name in phi if name.startswith("unaries.hidden")}
    assert len(features) == 2
    changed = moved(phi, weights(learner)[0])
    assert changed >= set(phi) - features - {"cardinality.values"}
    assert bool(changed & features) != freeze
    assert moved(theta, weights(learner)[1]) == set(theta)


def test_retuning_lowers_the_energy_of_the_output_and_never_moves_the_energy() -> None:
    learner = start(joint_epochs=1, retune_lr=1e-2)
    learner.step(*data())
    learner.end_epoch()
    phi, theta = weights(learner)
    assert learner.phase == "retuning"
    found = [learner.step(*data())["auxiliary"] for _ in range(20)]
    assert found[-1] < found[0] - 0.1
    after = weights(learner)
    assert not moved(phi, after[0])
    assert moved(theta, after[1]) == set(theta)


def test_retuning_minimises_the_mean_energy_and_nothing_else(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models: Models = make_models()
    batch = make_batch()
    assert models.energy is not None
    expected = models.energy(batch.x, models.space.relax(models.network(batch.x))).mean()
    phi, theta = parameters(models)
    objectives = InfNet(anchor=10.0, entropy=1.0, l2=1.0).objectives(models)
    torch.testing.assert_close(objectives.retuning(phi, theta, batch), expected.detach())


def test_stages_follow_one_another_and_retuning_has_no_end() -> None:
    learner, seen = start(pretrain_epochs=2, joint_epochs=1), []
    for _ in range(6):
        seen.append(learner.phase)
        learner.step(*data())
        learner.end_epoch()
    assert seen == ["pretraining"] * 2 + ["joint"] + ["retuning"] * 3
    assert start(joint_epochs=0).phase == "retuning"


def test_an_energy_may_start_with_minus_the_pretrained_logits_and_only_once() -> None:
    learner = start(EQUAL, pretrain_epochs=1, energy_start="network", energy_lr=1e-12)
    learner.step(*data())
    learner.end_epoch()
    pretrained = copy.deepcopy(learner.models.network).eval()
    learner.step(*data())
    x, _ = data()
    unaries: Any = learner._energy.unaries
    torch.testing.assert_close(unaries(x), -pretrained(x))
    start_of_phi, _ = weights(learner)
    restored = start(EQUAL, pretrain_epochs=1, energy_start="network", energy_lr=1e-12)
    restored.load_state_dict(learner.state_dict())
    restored.step(*data())
    restored.end_epoch()
    restored.step(*data())
    torch.testing.assert_close(weights(restored)[0], start_of_phi)
    with pytest.raises(ValueError, match="give energy and network the same sizes"):
        start(energy_start="network").step(*data())


def test_several_steps_of_the_network_go_with_one_of_the_energy() -> None:
    learner = start(network_steps=3)
    learner.step(*data())
    counts = {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for name, optimizer in learner._optimizers.items()
    }
    assert counts == {"network": {3}, "energy": {1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain_epochs": -1}, "pretrain_epochs: found -1"),
        ({"joint_epochs": 1.5}, "joint_epochs: found 1.5, wanted an integer"),
        ({"network_steps": 0}, "network_steps: found 0"),
        ({"anchor": -1.0}, "anchor: found -1.0"),
        ({"entropy": float("nan")}, "entropy: found nan, wanted a finite number"),
        ({"retune_lr": 0.0}, "retune_lr: found 0.0"),
        ({"energy_start": "zero"}, "energy_start: found 'zero', wanted one of network, cross_ent"),
        ({"energy_start": "random"}, "freeze_features: found True with energy_start="),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfNet(**options)
