"""ALEN and iALEN: what refining does, in training and prediction, and what no gradient sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured import costs
from structured.methods import CrossEntropy
from structured.methods.alen import ALEN, IALEN, LocalizedLearner
from structured.models import ModelConfig, Models, build_models, evaluating
from structured.spaces import Labels

Make = Callable[..., Any]
CONFIG = ModelConfig(hidden=(8,), energy_hidden=(6,), global_size=3, cardinality=0)
PLAIN = ModelConfig((8,), 0.0, 0.0, energy_hidden=(6,), global_size=3, cardinality=0)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator)
    return x, (torch.rand(5, 4, generator=generator) < 0.4).float()


def start(
    kind: type[ALEN] | type[IALEN] = ALEN, config: ModelConfig = CONFIG, **options: Any
) -> LocalizedLearner:
    method = kind(**{"pretrain_epochs": 0, **options})
    return method.learner(build_models(6, 4, config, seed=0), steps_per_epoch=1, seed=1)


def weights(learner: LocalizedLearner) -> list[Tensor]:
    modules = (learner.models.network, learner._energy)
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left: LocalizedLearner, right: LocalizedLearner) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


@pytest.mark.parametrize("energy_start", ["random", "cross_entropy"])
def test_without_refinement_steps_alen_is_ialen_step_for_step_bit_for_bit(
    energy_start: str,
) -> None:
    options: dict[str, Any] = {"pretrain_epochs": 1, "energy_start": energy_start}
    options |= {"network_steps": 2, "energy_weight": 0.7}
    alen, ialen = start(ALEN, refine_steps=0, **options), start(IALEN, **options)
    refined = start(ALEN, refine_steps=1, **options)
    for epoch in range(4):
        for seed in range(3):
            figures = alen.step(*data(seed))
            assert figures == ialen.step(*data(seed))
            refined.step(*data(seed))
            assert same(alen, ialen)
            assert same(alen, refined) == (epoch == 0)
        x, _ = data(9)
        assert torch.equal(alen.predict(x), ialen.predict(x))
        assert torch.equal(alen.generator.get_state(), ialen.generator.get_state())
        for learner in (alen, ialen, refined):
            learner.end_epoch()


class Linear(nn.Module):
    """``E(x, y) = <slope, y>``."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y @ self.slope


def test_steps_down_a_linear_energy_move_the_logits_by_exactly_their_size() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    models = Models(Labels(3), nn.Linear(2, 3).double(), Linear(slope))
    x = torch.randn(4, 2, dtype=torch.float64)
    logits = models.network(x)
    method = ALEN(refine_steps=7, refine_rate=0.3)
    expected = torch.sigmoid(logits - 7 * 0.3 * slope).detach()
    torch.testing.assert_close(method.refine(models, x, logits), expected)
    torch.testing.assert_close(method.predict(models, x), expected)
    assert torch.equal(IALEN().predict(models, x), torch.sigmoid(logits).detach())


def test_each_example_is_refined_by_itself_and_to_a_lower_energy(make_models: Make) -> None:
    models = make_models()
    x = torch.randn(6, 4, dtype=torch.float64)
    method = ALEN(refine_steps=5, refine_rate=0.2)
    found = method.predict(models, x)
    for row in range(6):
        alone = method.predict(models, x[row : row + 1])
        torch.testing.assert_close(alone, found[row : row + 1])
    with torch.no_grad():
        proposed = torch.sigmoid(models.network(x))
        assert bool((models.energy(x, found) < models.energy(x, proposed)).all())


def test_predicting_takes_its_own_gradient_and_leaves_none_behind() -> None:
    learner = start(refine_steps=3, refine_rate=1.0)
    learner.step(*data())
    x, _ = data()
    with torch.no_grad():
        found = learner.predict(x)
    assert torch.equal(learner.predict(x), found)
    assert not found.requires_grad
    with evaluating(learner.models), torch.no_grad():
        assert not torch.allclose(found, torch.sigmoid(learner.models.network(x)), atol=1e-3)
    leaves = [*learner.models.network.parameters(), *learner._energy.parameters()]
    assert all(leaf.grad is None for leaf in leaves)


def test_the_energy_is_compared_at_the_refined_point(make_models: Make, make_batch: Make) -> None:
    models: Any = make_models()
    batch = make_batch()
    method = ALEN(refine_steps=4, refine_rate=0.5)
    objectives, phi = method.objectives(models), dict(models.energy.named_parameters())
    with torch.no_grad():
        logits = models.network(batch.x)
        point = method.refine(models, batch.x, logits)
        found = objectives.compare(phi, batch.x, batch.y, logits, point[None])
        gap = models.energy(batch.x, batch.y) - models.energy(batch.x, point)
        expected = (costs.soft_f1(point, batch.y) + gap).relu().mean()
    assert expected > 0
    torch.testing.assert_close(objectives.energy(found).detach(), expected)


def directional(
    value: Callable[[], Tensor], leaves: list[nn.Parameter], step: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """A derivative by autograd, and by central differences."""
    torch.manual_seed(0)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    slopes = torch.autograd.grad(value(), leaves)
    found = torch.stack([(s * d).sum() for s, d in zip(slopes, directions, strict=True)]).sum()
    ends = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(direction, alpha=sign * step)
            ends.append(value())
    return found, (ends[0] - ends[1]) / (2 * step)


def test_the_energy_takes_the_gradient_at_a_fixed_point_and_drops_that_through_the_steps(
    make_models: Make, make_batch: Make
) -> None:
    models: Any = make_models()
    batch = make_batch()
    method = ALEN(refine_steps=4, refine_rate=0.5)
    objectives = method.objectives(models)
    logits = models.network(batch.x).detach()
    held = method.refine(models, batch.x, logits)

    def value(point: Tensor) -> Tensor:
        phi = dict(models.energy.named_parameters())
        return objectives.energy(objectives.compare(phi, batch.x, batch.y, logits, point[None]))

    leaves = list(models.energy.parameters())
    found, expected = directional(lambda: value(held), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    found, whole = directional(lambda: value(method.refine(models, batch.x, logits)), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert abs(whole - expected) > 1e-3


def test_the_network_takes_the_gradient_of_the_energy_at_its_own_proposal(
    make_models: Make, make_batch: Make
) -> None:
    models: Any = make_models()
    batch = make_batch()
    objectives = ALEN(energy_weight=0.6, ce_weight=0.4).objectives(models)
    phi = dict(models.energy.named_parameters())

    def value() -> Tensor:
        return objectives.network(phi, batch.x, batch.y, models.network(batch.x))

    found, expected = directional(value, list(models.network.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        logits = models.network(batch.x)
        energy = models.energy(batch.x, torch.sigmoid(logits)).mean()
        entropy = -models.space.log_prob(logits, batch.y).mean()
        torch.testing.assert_close(value(), 0.6 * energy + 0.4 * entropy)


def test_without_the_energy_the_network_takes_the_steps_of_cross_entropy() -> None:
    learner = start(config=PLAIN, energy_weight=0.0)
    plain = CrossEntropy().learner(build_models(6, 4, PLAIN, seed=0), steps_per_epoch=1, seed=1)
    for seed in range(4):
        learner.step(*data(seed))
        plain.step(*data(seed))
    pairs = zip(learner.models.network.parameters(), plain.models.network.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-7)


def test_where_the_hinge_is_inactive_the_energy_stays_bit_for_bit() -> None:
    learner = start()
    unaries: Any = learner._energy.unaries
    with torch.no_grad():
        unaries.output.bias.fill_(-1e3)
    before = [leaf.detach().clone() for leaf in learner._energy.parameters()]
    x, _ = data()
    network = [leaf.detach().clone() for leaf in learner.models.network.parameters()]
    assert learner.step(x, torch.ones(5, 4))["active_hinges"] == 0.0
    pairs = zip(before, learner._energy.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    moves = zip(network, learner.models.network.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in moves)


def test_each_side_lowers_its_own_loss_on_a_minibatch_seen_again() -> None:
    for name, rates in {"auxiliary": (1e-2, 1e-12), "primary": (1e-12, 1e-2)}.items():
        learner = start(config=PLAIN, network_lr=rates[0], energy_lr=rates[1])
        figures = [learner.step(*data())[name] for _ in range(20)]
        assert figures[-1] < figures[0] - 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine_steps": -1}, "refine_steps: found -1, wanted an integer of at least 0"),
        ({"refine_rate": 0.0}, "refine_rate: found 0.0"),
        ({"energy_weight": -1.0}, "energy_weight: found -1.0"),
        ({"ce_weight": -1.0}, "ce_weight: found -1.0"),
        ({"network_steps": 0}, "network_steps: found 0"),
        ({"energy_start": "zero"}, "energy_start: found 'zero'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALEN(**options)


def test_both_say_that_they_are_reconstructions() -> None:
    for method in (ALEN, IALEN):
        assert "RECONSTRUCTION" in (method.__doc__ or "")
