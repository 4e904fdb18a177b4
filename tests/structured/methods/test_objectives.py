from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from structured import costs
from structured.methods import ContrastiveDivergence, Implicit
from structured.methods._objectives import Minibatch
from structured.models import Models
from structured.networks import MLP
from structured.sampling import Gumbel

Make = Callable[..., Any]


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[MLP]:
    """Every evaluation of hidden layers from here on, by the network that has them."""
    seen: list[MLP] = []
    features = MLP.features

    def counted(self: MLP, *args: Any, **options: Any) -> Any:
        seen.append(self)
        return features(self, *args, **options)

    monkeypatch.setattr(MLP, "features", counted)
    return seen


def test_the_energys_features_are_computed_once_for_the_gold_output_and_all_samples(
    make_models: Make, make_batch: Make, parameters: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, batch = make_models(), make_batch(samples=20)
    objectives = Implicit(primary=ContrastiveDivergence(20)).objectives(models)
    phi, theta = parameters(models)
    seen = count_calls(monkeypatch)
    objectives.outer(phi, theta, batch)
    assert seen == [models.network, models.energy.unaries]


def test_prediction_costs_one_forward_pass_of_the_network(
    make_models: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make_models()
    learner = Implicit().learner(models, steps_per_epoch=1)
    seen = count_calls(monkeypatch)
    learner.predict(make_batch().x)
    assert seen == [models.network]


def test_the_inner_objective_is_energy_cross_entropy_cost_and_penalty(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models, batch = make_models(), make_batch()
    method = Implicit(ce_weight=0.7, cost_weight=0.4, l2=0.03, cost=costs.hamming)
    phi, theta = parameters(models)
    found = method.objectives(models).inner(phi, theta, batch)
    logits = models.network(batch.x)
    point = torch.sigmoid(logits)
    entropy = torch.nn.functional.binary_cross_entropy(point, batch.y, reduction="none")
    expected = (
        models.energy(batch.x, point) + 0.7 * entropy.sum(dim=-1)
    ).mean() - 0.4 * costs.hamming(point, batch.y).mean()
    expected = expected + 0.03 * sum(leaf.square().sum() for leaf in models.network.parameters())
    torch.testing.assert_close(found, expected.detach())


def test_the_outer_objective_is_the_mean_of_the_primary_loss_at_the_samples(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models, batch = make_models(), make_batch(samples=3)
    primary = ContrastiveDivergence(3)
    objectives = Implicit(primary=primary, sampler=Gumbel(0.5)).objectives(models)
    phi, theta = parameters(models)
    found = objectives.outer(phi, theta, batch)
    samples = torch.sigmoid((models.network(batch.x) + batch.noise) / 0.5)
    gold = models.energy(batch.x, batch.y)
    values = primary.loss(gold, models.energy(batch.x, samples), costs.soft_f1(samples, batch.y))
    torch.testing.assert_close(found, values.mean().detach())


def test_dropout_masks_decide_the_logits_whatever_the_networks_mode(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    models: Models = make_models(dropout=0.5)
    batch, (_, theta) = make_batch(), parameters(models)
    objectives = Implicit().objectives(models)
    assert isinstance(models.network, MLP)
    masks = models.network.dropout_masks(batch.x)
    dropped = Minibatch(batch.x, batch.y, masks)
    first = objectives.logits(theta, dropped)
    models.network.eval()
    assert torch.equal(objectives.logits(theta, dropped), first)
    assert not torch.equal(objectives.logits(theta, batch), first)
