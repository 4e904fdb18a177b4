"""The energy that methods without an inference network share, and descents over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from structured import inference
from structured.energies import MultiLabelEnergy
from structured.inference import SlopedEnergy
from structured.methods._gradient_inference import (
    Descent,
    GlobalTerm,
    build_with_global_term,
    energy_of_points,
    energy_slope,
    joint_energy,
)
from structured.models import ModelConfig, build_models
from structured.spaces import Labels, Tags

CONFIG = ModelConfig(hidden=(5,), energy_hidden=(4,), global_size=3)


@pytest.mark.parametrize("counts", [False, True])
def test_the_built_energy_is_what_couples_labels_in_the_common_one_beside_the_same_network(
    counts: bool,
) -> None:
    own: Any = build_with_global_term(6, 4, CONFIG, 3, counts=counts)
    common: Any = build_models(6, 4, CONFIG, 3)
    kind = type(own.energy)
    assert kind is GlobalTerm
    assert (own.energy.cardinality is not None) == counts
    x, y = torch.randn(2, 6), torch.rand(5, 2, 4)
    if counts:
        values = torch.tensor([3.0, 0.0, 1.0, 1.5, 2.0])
        for energy in (own.energy, common.energy):
            energy.cardinality.values.data = values
    torch.testing.assert_close(own.energy(x, y), common.energy.global_(y))
    torch.testing.assert_close(own.energy.label_hessian(y), common.energy.label_hessian(y))
    assert torch.equal(own.network.eval()(x), common.network.eval()(x))


def test_the_joint_energy_adds_the_weighted_local_term() -> None:
    models = build_with_global_term(6, 4, CONFIG, 0)
    assert models.energy is not None
    x, y, logits = torch.randn(2, 6), torch.rand(5, 2, 4), torch.randn(2, 4)
    found = joint_energy(models, x, logits, weight=0.5)(y)
    torch.testing.assert_close(found, models.energy(x, y) - 0.5 * (y * logits).sum(dim=-1))


@pytest.mark.parametrize("graph", [False, True])
def test_the_joint_energys_formula_is_its_gradient_and_can_be_differentiated(graph: bool) -> None:
    models = build_with_global_term(6, 4, CONFIG, 0)
    energy: Any = models.energy
    x, logits = torch.randn(2, 6), torch.randn(2, 4)
    y = torch.rand(5, 2, 4, requires_grad=True)
    formula = joint_energy(models, x, logits, weight=0.5)
    assert isinstance(formula, SlopedEnergy)
    found = energy_slope(formula, y, graph=graph)
    expected = energy_slope(formula.value, y, graph=graph)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == graph
    if graph:
        leaves = (y, energy.global_matrix, energy.global_weight)
        ours, theirs = (torch.autograd.grad(s.square().sum(), leaves) for s in (found, expected))
        torch.testing.assert_close(ours, theirs)


def test_an_energy_with_kinks_in_the_number_of_labels_has_no_formula() -> None:
    models = build_with_global_term(6, 4, CONFIG, 0, counts=True)
    energy = joint_energy(models, torch.randn(2, 6), torch.randn(2, 4))
    assert not isinstance(energy, SlopedEnergy)


def test_the_features_of_the_input_are_computed_once_for_all_points() -> None:
    calls: list[Tensor] = []

    class Watched(MultiLabelEnergy):
        def features(self, x: Tensor) -> Tensor:
            calls.append(x)
            return super().features(x)

    energy, x = Watched(6, 4, (5,), 3, cardinality=4), torch.randn(2, 6)
    of_points = energy_of_points(energy, x)
    points = torch.rand(3, 2, 4)
    found = [of_points(y) for y in points]
    assert len(calls) == 1
    torch.testing.assert_close(torch.stack(found), energy(x, points))


@pytest.mark.parametrize("entropy", [0.0, 0.7])
@pytest.mark.parametrize("space", [Labels(3), Tags(3)], ids=repr)
def test_mirror_steps_are_those_of_mirror_descent(space: Labels | Tags, entropy: float) -> None:
    torch.manual_seed(0)
    shape = (2, 3) if isinstance(space, Labels) else (2, 4, 3)
    weight, logits = torch.randn(3, 3).double(), torch.randn(shape).double()
    dims = tuple(range(1, len(shape)))

    def energy(y: Tensor) -> Tensor:
        return torch.tanh(y @ weight).sum(dim=dims)

    found = Descent(6, 0.3, "mirror", entropy).end(energy, logits, space)
    expected = inference.mirror_descent(
        energy, space.relax(logits), space, steps=6, rate=0.3, entropy=entropy
    )
    torch.testing.assert_close(found, expected.point)


def test_projected_steps_are_those_of_projected_gradient() -> None:
    torch.manual_seed(0)
    weight, logits, space = torch.randn(3, 3).double(), torch.randn(2, 3).double(), Labels(3)

    def energy(y: Tensor) -> Tensor:
        return torch.sin(3.0 * y @ weight).sum(dim=-1)

    found = Descent(6, 0.3, "projected", 0.0).end(energy, logits, space)
    expected = inference.projected_gradient(energy, space.relax(logits), space, steps=6, rate=0.3)
    torch.testing.assert_close(found, expected.point)


@pytest.mark.parametrize("steps", [1, 4])
def test_steps_on_a_linear_energy_move_exactly_steps_times_rate_times_the_slope(steps: int) -> None:
    slope = torch.tensor([0.3, -0.2], dtype=torch.float64)
    start = torch.full((1, 2), 0.5, dtype=torch.float64)
    for geometry in ("mirror", "projected"):
        *_, end = Descent(steps, 0.1, geometry, 0.0).visit(lambda y: y @ slope, start, Labels(2))
        torch.testing.assert_close(end, start - steps * 0.1 * slope)


def test_the_slope_has_a_graph_only_if_asked_for() -> None:
    y = torch.rand(2, 3, requires_grad=True)
    for graph in (False, True):
        slope = energy_slope(lambda p: p.square().sum(dim=-1), y, graph=graph)
        assert slope.requires_grad == graph
        torch.testing.assert_close(slope.detach(), 2.0 * y.detach())
    with torch.no_grad():
        assert not energy_slope(lambda p: p.square().sum(dim=-1), y).requires_grad
