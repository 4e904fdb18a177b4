"""NCE: what the losses do not see, and importance-weighted marginals against enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured.inference import brute_force
from structured.methods import Learner
from structured.methods.nce import NCE
from structured.models import ModelConfig, Models
from structured.spaces import Labels
from tests.structured.methods.toy import FEATURES, LABELS, as_double, central, separable

EXACT = ModelConfig(hidden=(5,), dropout=0.0, input_dropout=0.0, activation="tanh", global_size=3)


class Shifted(nn.Module):
    """An energy plus a function of x alone."""

    def __init__(self, inner: nn.Module, shift: float) -> None:
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y) + self.shift * x.sum(dim=-1)


class Coupling(nn.Module):
    """``E_phi = w (y_1 - 1/2)(y_2 - 1/2)``: what independent labels cannot say."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight * (y[..., 0] - 0.5) * (y[..., 1] - 0.5)


class Fixed(nn.Module):
    """A network whose logits do not depend on x."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def models_of(method: NCE | None = None) -> Models:
    return as_double((method or NCE()).build(FEATURES, LABELS, EXACT, 0))


def data(rows: int = 5) -> tuple[Tensor, Tensor]:
    x, y = separable(rows, seed=4)
    return x.double(), y.double()


def loss_of(method: NCE, models: Models, x: Tensor, y: Tensor) -> Tensor:
    learner: Any = contrasting(method, models)
    return learner._loss(x, y)[0]


def contrasting(method: NCE, models: Models) -> Learner:
    """A learner in its last stage from the start."""
    options = {**vars(method), "pretrain_epochs": 0}
    return NCE(**options).learner(models, steps_per_epoch=1, seed=3)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("noise", ["network", "frequency"])
def test_ranking_does_not_see_a_shift_of_the_energy_by_a_function_of_x_and_binary_does(
    residual: bool, noise: Any
) -> None:
    (x, y), shares = data(), {}
    for loss in ("ranking", "binary"):
        method = NCE(loss=loss, noise=noise, residual=residual)
        models = models_of(method)
        assert models.energy is not None
        shifted = Models(models.space, models.network, Shifted(models.energy, 2.0))
        values = [loss_of(method, each, x, y) for each in (models, shifted)]
        shares[loss] = float((values[1] - values[0]).detach().abs())
    assert shares["ranking"] < 1e-12
    assert shares["binary"] > 1e-2


def test_with_the_network_as_noise_only_what_is_beyond_it_counts() -> None:
    """``-E - log p_N = -E_phi``: the network's logits cancel."""
    models, (x, y) = models_of(), data()
    assert models.energy is not None
    learner: Any = contrasting(NCE(samples=7), models)
    loss, figures = learner._loss(x, y)
    other: Any = contrasting(NCE(samples=7), models)
    space = models.space
    noise = space.noise((7, *y.shape), generator=other.generator, dtype=y.dtype)
    drawn = space.hard(models.network(x) + noise)
    exponents = -models.energy(x, torch.cat([y[None], drawn]))
    expected = -torch.log_softmax(exponents, dim=0)[0]
    torch.testing.assert_close(loss, expected.mean())
    assert figures["gold_share"] == pytest.approx(float(expected.neg().exp().mean().detach()))
    assert 1.0 <= figures["effective_samples"] <= 7.0


@pytest.mark.parametrize("loss", ["ranking", "binary"])
def test_the_gradient_is_that_of_central_differences_under_the_same_noise(loss: Any) -> None:
    method = NCE(loss=loss, samples=5)
    models, (x, y) = models_of(method), data()
    assert models.energy is not None
    leaves = list(models.energy.parameters())
    found = torch.autograd.grad(loss_of(method, models, x, y), leaves)
    for gradient, leaf in zip(found, leaves, strict=True):
        place = (0,) * leaf.ndim
        difference = central(lambda: loss_of(method, models, x, y), leaf, place)
        torch.testing.assert_close(float(gradient[place]), difference, atol=1e-8, rtol=1e-5)


def enumerated(models: Models, method: NCE, x: Tensor) -> Tensor:
    """The exact label probabilities under p, ``[B, L]``."""
    space = models.space
    assert isinstance(space, Labels)
    logits = models.network(x).detach()
    found = brute_force(
        lambda y: method.energies(models, x, logits, y), space.n, batch=len(x), dtype=torch.float64
    )
    weights = torch.softmax(-found.energies, dim=0)
    return weights.T @ found.points


@pytest.mark.parametrize("residual", [True, False])
def test_with_many_candidates_predictions_are_the_exact_marginals(residual: bool) -> None:
    method = NCE(candidates=40_000, residual=residual)
    models, (x, _) = models_of(method), data(3)
    if residual:  # a strong coupling, far from independent labels
        models = Models(models.space, models.network, Coupling(-4.0))
    exact = enumerated(models, method, x)
    torch.testing.assert_close(method.predict(models, x), exact, atol=0.012, rtol=0.0)
    assert float((exact - torch.sigmoid(models.network(x))).detach().abs().max()) > 0.04


@pytest.mark.parametrize("prediction", ["marginals", "gradient"])
def test_where_the_energy_is_constant_predictions_are_the_network_s_own(prediction: Any) -> None:
    models, (x, _) = models_of(), data()
    idle = Models(models.space, models.network, Coupling(0.0))
    found = NCE(prediction=prediction, candidates=3).predict(idle, x)
    torch.testing.assert_close(found, torch.sigmoid(models.network(x)).detach())


def test_mean_field_predictions_are_stationary() -> None:
    models, (x, _) = models_of(), data()
    coupled = Models(models.space, models.network, Coupling(-1.5))
    found = NCE(prediction="gradient", steps=100).predict(coupled, x)
    other = torch.tensor([[0, 1], [1, 0]])
    tilt = 1.5 * (found[:, other[0]] - 0.5)
    expected = torch.sigmoid(models.network(x)[:, :2] + tilt.flip(-1))
    torch.testing.assert_close(found[:, :2], expected.detach())


@pytest.mark.parametrize(
    ("loss", "noise"),
    [("ranking", "network"), ("binary", "network"), ("ranking", "frequency")],
)
def test_nce_recovers_the_coupling_of_two_fair_coins(loss: Any, noise: Any) -> None:
    """Equal with probability 3/4: the log odds ratio is ``log 9 = -w``; marginals say nothing."""
    y = torch.tensor([[0, 0], [1, 1]] * 3 + [[0, 1], [1, 0]], dtype=torch.float64).repeat(16, 1)
    x = torch.zeros(len(y), 1, dtype=torch.float64)
    models = Models(Labels(2), Fixed([0.0, 0.0]), Coupling())
    method = NCE(loss=loss, noise=noise, pretrain_epochs=0, lr=0.05, samples=20)
    learner = method.learner(models, steps_per_epoch=1, seed=0)
    for _ in range(150):
        learner.step(x, y)
    assert isinstance(models.energy, Coupling)
    # A normalised energy exists only up to a constant that this one lacks: binary is near.
    tolerance = 0.6 if loss == "binary" else 0.3
    assert float(models.energy.weight.detach()) == pytest.approx(-2.197, abs=tolerance)
    torch.testing.assert_close(learner.predict(x), torch.full_like(y, 0.5), atol=0.12, rtol=0.0)


def test_frequencies_are_counted_from_the_first_step_on() -> None:
    models, (x, y) = models_of(), data(8)
    learner: Any = NCE(noise="frequency", pretrain_epochs=1).learner(models, steps_per_epoch=1)
    learner.step(x, y)
    learner.step(x, y)
    rates = (2.0 * y.sum(dim=0) + 1.0) / (2.0 * len(y) + 2.0)
    torch.testing.assert_close(learner._frequencies(y), torch.logit(rates).expand_as(y))
