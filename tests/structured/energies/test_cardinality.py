from __future__ import annotations

import pytest
import torch

from structured.energies import Cardinality, MultiLabelEnergy
from structured.models import ModelConfig, build_models


def potential() -> Cardinality:
    found = Cardinality(3).double()
    with torch.no_grad():
        found.values.copy_(torch.tensor([4.0, -1.0, 0.5, 2.0]))
    return found


def test_the_term_has_its_own_value_at_every_number_and_is_linear_in_between() -> None:
    counts = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.25, 2.5], dtype=torch.float64)
    y = torch.stack([counts / 5] * 5, dim=-1)
    wanted = torch.tensor([4.0, -1.0, 0.5, 2.0, 2.75, 1.25], dtype=torch.float64)
    torch.testing.assert_close(potential()(y), wanted)


def test_beyond_the_last_number_the_term_stays_what_it_is() -> None:
    y = torch.ones(2, 7, dtype=torch.float64)
    assert potential()(y).tolist() == [2.0, 2.0]


def test_derivatives_of_the_term_are_right_between_the_kinks() -> None:
    y = torch.tensor([[0.3, 0.9, 0.2], [0.1, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    found = potential()
    assert torch.autograd.gradcheck(
        lambda p, v: torch.func.functional_call(found, {"values": v}, p), (y, found.values)
    )


def test_the_term_starts_at_zero_and_refuses_to_count_no_labels() -> None:
    assert not Cardinality(2).values.any()
    with pytest.raises(ValueError, match="most: found 0"):
        Cardinality(0)


def test_the_energy_adds_the_term_to_its_global_term() -> None:
    torch.manual_seed(0)
    energy = MultiLabelEnergy(2, 3, (4,), 2, cardinality=3).double()
    assert energy.cardinality is not None
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    before = energy(x, y)
    with torch.no_grad():
        energy.cardinality.values.copy_(potential().values)
    torch.testing.assert_close(energy(x, y), before + potential()(y))


def test_a_configuration_never_counts_further_than_there_are_labels() -> None:
    energy = build_models(2, 3, ModelConfig(hidden=(2,)), seed=0).energy
    assert isinstance(energy, MultiLabelEnergy)
    assert energy.cardinality is not None
    assert len(energy.cardinality.values) == 4
    none = build_models(2, 3, ModelConfig(hidden=(2,), cardinality=0), seed=0).energy
    assert isinstance(none, MultiLabelEnergy)
    assert none.cardinality is None
    with pytest.raises(ValueError, match="cardinality: found -1"):
        ModelConfig(cardinality=-1)
