"""End-to-end SPEN: the gradient through inference, unrolled and implicit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structured.methods import Learner
from structured.methods._gradient_inference import Descent
from structured.methods.spen_e2e import EndToEndSPEN
from structured.models import ModelConfig, Models
from structured.networks import MLP
from structured.spaces import Labels
from tests.structured.methods.toy import FEATURES, LABELS, as_double, central, separable

EXACT = ModelConfig(hidden=(5,), dropout=0.0, input_dropout=0.0, activation="tanh", global_size=3)
Q = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


class Quadratic(nn.Module):
    """``E_phi = 1/2 (y - 1/2)'Q (y - 1/2)``: its gradient steps stay inside the hypercube."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(Q.clone())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        centred = y - 0.5
        return 0.5 * ((centred @ self.matrix) * centred).sum(dim=-1)


class Kinks(nn.Module):
    """An energy piecewise linear in y."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LABELS, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.layer(y)).sum(dim=-1)


def quadratic() -> Models:
    return Models(Labels(3), MLP(FEATURES, 3, (5,), activation=torch.tanh).double(), Quadratic())


def smooth() -> Models:
    return as_double(EndToEndSPEN().build(FEATURES, LABELS, EXACT, 0))


def data(rows: int = 4) -> tuple[Tensor, Tensor]:
    x, y = separable(rows, seed=4)
    return x.double(), y.double()


def joint(models: Models, **options: Any) -> Learner:
    """A learner in its last stage from the start."""
    method = EndToEndSPEN(pretrain_epochs=0, energy_epochs=0, max_norm=None, **options)
    return method.learner(models, steps_per_epoch=1)


def loss_of(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
    learning: Any = learner
    return learning._loss(x, y)[0]


@pytest.mark.parametrize("steps", [1, 5])
def test_unrolled_steps_on_a_quadratic_carry_the_power_of_one_minus_eta_q(steps: int) -> None:
    rate, start = 0.1, torch.tensor([[0.4, 0.6, 0.45]], dtype=torch.float64)
    energy = Quadratic()

    def end(y: Tensor) -> Tensor:
        descent = Descent(steps, rate, "projected", 0.0)
        *_, last = descent.visit(lambda p: energy(start, p), y, Labels(3), graph=True)
        return last

    found: Any = torch.autograd.functional.jacobian(end, start)
    power = torch.linalg.matrix_power(EYE - rate * Q, steps)
    torch.testing.assert_close(found[0, :, 0, :], power)


def test_the_unrolled_prediction_moves_with_the_local_term_as_the_geometric_sum_says() -> None:
    models, steps, rate = quadratic(), 6, 0.1
    method = EndToEndSPEN(steps=steps, rate=rate, geometry="projected", entropy=0.0, start="centre")
    logits = torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64)

    def end(z: Tensor) -> Tensor:
        return torch.sigmoid(method.unroll(models, torch.zeros(1, FEATURES), z)[-1])

    found: Any = torch.autograd.functional.jacobian(end, logits)
    step = EYE - rate * Q
    total = sum((torch.linalg.matrix_power(step, k) for k in range(steps)), torch.zeros_like(Q))
    torch.testing.assert_close(found[0, :, 0, :], rate * total)


def test_the_implicit_derivative_of_a_quadratic_is_its_closed_form() -> None:
    """At ``lam z + Q (relax z - 1/2) - A = 0``: ``dz/dA = (lam I + Q diag(y (1 - y)))^-1``."""
    models, entropy = quadratic(), 0.8
    method = EndToEndSPEN(through="argmin", steps=200, entropy=entropy)
    logits = torch.tensor([[0.5, -1.2, 0.3]], dtype=torch.float64)

    def stationary(z: Tensor) -> Tensor:
        return method.stationary(models, torch.zeros(1, FEATURES), z)

    z = stationary(logits).detach()
    y = torch.sigmoid(z)
    torch.testing.assert_close(entropy * z + (y - 0.5) @ Q, logits)
    found: Any = torch.autograd.functional.jacobian(stationary, logits)
    inverse = torch.linalg.inv(entropy * EYE + Q * (y * (1.0 - y)))
    torch.testing.assert_close(found[0, :, 0, :], inverse)


def test_where_inference_converges_both_ways_agree_on_every_parameter() -> None:
    (x, y), gradients = data(), {}
    for through in ("unrolled", "argmin"):
        models = smooth()
        assert models.energy is not None
        leaves = [*models.network.parameters(), *models.energy.parameters()]
        loss = loss_of(joint(models, through=through, steps=120), x, y)
        gradients[through] = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(gradients["argmin"], gradients["unrolled"])


@pytest.mark.parametrize("iterates", ["last", "all"])
@pytest.mark.parametrize("start", ["network", "centre"])
def test_the_unrolled_gradient_is_that_of_central_differences(iterates: Any, start: Any) -> None:
    models, (x, y) = smooth(), data()
    assert models.energy is not None
    learner = joint(models, iterates=iterates, start=start, steps=4, rate=0.3)
    leaves = [*models.network.parameters(), *models.energy.parameters()]
    found = torch.autograd.grad(loss_of(learner, x, y), leaves)
    for gradient, leaf in zip(found, leaves, strict=True):
        place = (0,) * leaf.ndim
        difference = central(lambda: loss_of(learner, x, y), leaf, place)
        torch.testing.assert_close(float(gradient[place]), difference, atol=1e-8, rtol=1e-5)


def test_later_points_weigh_more_in_the_loss_over_all() -> None:
    models, (x, y) = smooth(), data()
    method = EndToEndSPEN(iterates="all", steps=3)
    visited = method.unroll(models, x, models.network(x))
    losses = torch.stack([-models.space.log_prob(z, y).mean() for z in visited])
    weights = torch.tensor([1 / 3, 1 / 2, 1.0], dtype=torch.float64)
    expected = (weights * losses).sum() / weights.sum()
    torch.testing.assert_close(loss_of(joint(models, iterates="all", steps=3), x, y), expected)


@pytest.mark.parametrize("through", ["unrolled", "argmin"])
def test_what_is_trained_is_what_is_predicted(through: Any) -> None:
    models, (x, y) = smooth(), data()
    learner = joint(models, through=through)
    loss = loss_of(learner, x, y)
    found = learner.predict(x)
    expected = nn.functional.binary_cross_entropy(found, y, reduction="none").sum(dim=-1).mean()
    torch.testing.assert_close(loss.detach(), expected)


def test_unfinished_inference_and_kinks_are_noticed() -> None:
    x, y = data()
    slow = joint(smooth(), through="argmin", steps=1, rate=0.01, start="centre")
    slow.step(x, y)
    assert "Inference has not converged" in slow.notice
    sound = joint(smooth(), through="argmin", steps=60)
    sound.step(x, y)
    assert sound.notice == ""
    models = smooth()
    kinked = joint(Models(models.space, models.network, Kinks().double()))
    kinked.step(x, y)
    assert "no curvature in y" in kinked.notice
