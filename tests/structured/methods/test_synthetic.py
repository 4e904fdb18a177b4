"""Tasks whose best answers are known: where an energy must win, and where it must not.

In the first two, labels are coupled by x but their marginals do not depend on x, or only by a label
that says which coupling holds. Whoever sees marginals alone is capped, however well it learns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured import costs
from structured.decoding import ExpectedF1, SampledExpectedF1, Threshold, TunedThreshold
from structured.inference import brute_force
from structured.methods import (
    ContrastiveDivergence,
    CrossEntropy,
    Implicit,
    Margin,
    Method,
    Value,
)
from structured.metrics import example_f1, subset_accuracy
from structured.models import ModelConfig, Models, build_models
from structured.networks import MLP
from structured.spaces import Labels

Data = tuple[Tensor, Tensor]
DECODERS = (Threshold(), TunedThreshold(), ExpectedF1())
CONFIG = ModelConfig(
    hidden=(16,),
    dropout=0.0,
    input_dropout=0.0,
    energy_hidden=(8,),
    energy_activation="softplus",
    global_size=8,
)


def inputs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``[rows, 3]`` and the side of a plane they lie on, with a gap between the sides."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += 0.3 * torch.sign(x[:, 0])
    return x, (x[:, 0] > 0).long()


def spread(rows: int, seed: int, outcomes: Sequence[Tensor]) -> Data:
    """Each x with all the equally likely outcomes of its side: no accident of the draw remains."""
    x, side = inputs(rows, seed)
    y = torch.stack(list(outcomes))[side]
    return x.repeat_interleave(y.shape[1], dim=0), y.flatten(end_dim=1)


def implicit(**options: Any) -> Implicit:
    """The method with a step on the energy on every minibatch."""
    defaults = {"outer_every": 1, "pretrain_lr": 1e-2, "energy_start": "cross_entropy"}
    return Implicit(**{**defaults, **options})


def fit(method: Method, models: Models, data: Data, epochs: int) -> Models:
    x, y = data
    learner = method.learner(models, steps_per_epoch=-(-len(x) // 64), seed=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            learner.step(x[rows], y[rows])
        learner.end_epoch()
    return models


def probabilities(models: Models, x: Tensor) -> Tensor:
    with torch.no_grad():
        return models.space.relax(models.network(x))


def least_energy(models: Models, x: Tensor) -> Tensor:
    energy = models.energy
    assert energy is not None
    return brute_force(lambda y: energy(x, y), 3, batch=len(x)).point


def best_joint_f1(models: Models, x: Tensor) -> Tensor:
    """Decode for F1 under ``p(y|x)`` proportional to the network's times ``e^{-E}``, enumerated.

    With samples of the network as candidates and no costs, contrastive divergence learns what the
    network's independent labels lack.
    """
    energy, space = models.energy, models.space
    assert energy is not None
    assert isinstance(space, Labels)
    found = brute_force(lambda y: energy(x, y), space.n, batch=len(x))
    sets = found.points[:, None].repeat(1, len(x), 1)
    with torch.no_grad():
        logs = space.log_prob(models.network(x).expand(len(sets), -1, -1), sets)
    return SampledExpectedF1().decode(sets, torch.softmax(logs - found.energies, dim=0))


# The third label says whether the first two differ; each of these is a fair coin given x.
XOR = (
    torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]),
)
XOR_CAP, XOR_BAYES = 0.25, 0.5


def test_the_cap_of_xor_holds_for_every_decoder_of_the_true_marginals() -> None:
    """Equal probabilities get equal decisions, which are right for one outcome of one side."""
    marginals = torch.stack([side.mean(dim=0) for side in XOR])
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.1):
        for decode in (Threshold(threshold).decode, ExpectedF1().decode):
            right = [
                (decode(marginals)[i] == outcome).all().float()
                for i, side in enumerate(XOR)
                for outcome in side
            ]
            assert torch.stack(right).mean() <= XOR_CAP


@pytest.fixture(scope="module")
def xor_data() -> tuple[Data, Data]:
    return spread(256, 0, XOR), spread(500, 1, XOR)


def test_cross_entropy_stays_at_the_cap_of_xor(xor_data: tuple[Data, Data]) -> None:
    training, (x, y) = xor_data
    models = fit(CrossEntropy(lr=1e-2), build_models(3, 3, CONFIG, seed=1), training, 30)
    found = probabilities(models, x)
    torch.testing.assert_close(found[:, :2], torch.full_like(found[:, :2], 0.5), atol=0.1, rtol=0)
    assert subset_accuracy(ExpectedF1().decode(found), y) <= XOR_CAP + 0.02


@pytest.mark.parametrize("gradient", ["implicit", "direct"])
def test_an_energy_passes_the_cap_of_xor_and_nears_the_best_possible(
    gradient: Any, xor_data: tuple[Data, Data]
) -> None:
    training, (x, y) = xor_data
    method = implicit(
        primary=ContrastiveDivergence(16),
        gradient=gradient,
        cost=costs.zero_one,
        ce_weight=4.0,
        pretrain_epochs=10,
        outer_lr=2e-2,
    )
    models = fit(method, build_models(3, 3, CONFIG, seed=1), training, 50)
    assert subset_accuracy(least_energy(models, x), y) >= XOR_BAYES - 0.02


# Both labels have probability 0.4 on either side: together or not at all, or never together.
COUPLED = (
    torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
    torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
)


class CoupledEnergy(nn.Module):
    """``E = u_1(x) y_1 + u_2(x) y_2 + w(x) y_1 y_2``: the coupling may depend on x."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = MLP(3, 3, (8,), activation=torch.tanh)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        terms = self.terms(x)
        return (y * terms[:, :2]).sum(dim=-1) + terms[:, 2] * y[..., 0] * y[..., 1]


def no_cost(candidate: Tensor, gold: Tensor) -> Tensor:
    return candidate.new_zeros(candidate.shape[:-1])


def best_f1(outcomes: Tensor) -> float:
    """The most that any one set can expect against equally likely outcomes."""
    sets = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
    return max(example_f1(one.expand_as(outcomes), outcomes) for one in sets)


def test_an_energy_passes_what_any_decoder_of_marginals_can_expect_in_f1() -> None:
    cap = best_f1(torch.cat(COUPLED))  # one set for all x: nothing else can be told from marginals
    bayes = sum(best_f1(side) for side in COUPLED) / 2
    assert cap == pytest.approx(0.4667, abs=1e-4)
    assert bayes == pytest.approx(0.5667, abs=1e-4)
    training, (x, y) = spread(128, 0, COUPLED), spread(400, 1, COUPLED)

    def models() -> Models:
        torch.manual_seed(0)
        return Models(Labels(2), MLP(3, 2, (16,)), CoupledEnergy())

    found = probabilities(fit(CrossEntropy(lr=1e-2), models(), training, 20), x)
    for decoder in DECODERS:
        assert example_f1(decoder.fit(found, y).decode(found), y) <= cap + 0.02
    method = implicit(
        primary=ContrastiveDivergence(16),
        cost=no_cost,
        ce_weight=4.0,
        pretrain_epochs=10,
        outer_lr=2e-2,
        energy_start="random",
    )
    trained = fit(method, models(), training, 30)
    assert example_f1(best_joint_f1(trained, x), y) >= bayes - 0.02


@pytest.mark.parametrize(
    "primary", [Margin(), ContrastiveDivergence(8), Value()], ids=lambda primary: primary.name
)
@pytest.mark.parametrize("gradient", ["implicit", "direct"])
def test_where_labels_are_independent_no_energy_beats_cross_entropy(
    primary: Any, gradient: Any, independent: tuple[Data, Data, Tensor, Tensor]
) -> None:
    training, (x, y), baseline, best = independent
    assert baseline.mean() > best.mean() - 0.02  # nothing is left to be won
    method = implicit(primary=primary, gradient=gradient, pretrain_epochs=15, inner_lr=1e-3)
    models = fit(method, build_models(3, 5, CONFIG, seed=1), training, 20)
    for decoded in (ExpectedF1().decode(probabilities(models, x)), best_joint_f1(models, x)):
        gain = (1.0 - costs.soft_f1(decoded, y)) - baseline
        noise = gain.std() / len(gain) ** 0.5
        assert gain.mean() <= 3.0 * noise


@pytest.fixture(scope="module")
def independent() -> tuple[Data, Data, Tensor, Tensor]:
    """Logistic labels; each example's F1 by cross-entropy, and by the true probabilities."""

    def draw(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        x, _ = inputs(rows, seed)
        weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))
        true = torch.sigmoid(x @ weights - 0.5)
        drawn = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed + 100))
        return x, (drawn < true).float(), true

    (*training, _), (x, y, true) = draw(1024, 0), draw(4000, 1)
    models = build_models(3, 5, CONFIG, seed=1)
    fit(CrossEntropy(lr=1e-2), models, (training[0], training[1]), 20)
    scores = [
        1.0 - costs.soft_f1(ExpectedF1().decode(found), y)
        for found in (probabilities(models, x), true)
    ]
    return (training[0], training[1]), (x, y), scores[0], scores[1]
