from __future__ import annotations

import pytest
import torch
from torch import Tensor

from structured.energies import MultiLabelEnergy


@pytest.fixture
def energy() -> MultiLabelEnergy:
    torch.manual_seed(0)
    return MultiLabelEnergy(5, 4, hidden=(7, 6), global_size=8).double()


X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_the_energy_is_the_printed_formula(energy: MultiLabelEnergy) -> None:
    f = energy.features(X)
    assert f.shape == (3, 6)
    weight, bias = energy.unaries.output.weight, energy.unaries.output.bias
    c, matrix = energy.global_weight, energy.global_matrix
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(2):
        for b in range(3):
            for i in range(4):
                expected[k, b] += Y[k, b, i] * (weight[i] @ f[b] + bias[i])
            expected[k, b] += c @ torch.log1p(torch.exp(matrix @ Y[k, b]))
    torch.testing.assert_close(energy(X, Y), expected)
    torch.testing.assert_close(energy.local(f, Y) + energy.global_(Y), expected)


def test_low_is_good_so_a_label_with_negative_coefficient_should_be_present(
    energy: MultiLabelEnergy,
) -> None:
    with torch.no_grad():
        energy.global_weight.zero_()
    coefficients = energy.unaries(X)
    best = (coefficients < 0).double()
    for i in range(4):
        flipped = best.clone()
        flipped[:, i] = 1 - flipped[:, i]
        assert bool((energy(X, flipped) > energy(X, best)).all())


def test_the_label_hessian_is_the_mean_second_derivative_of_the_global_term(
    energy: MultiLabelEnergy,
) -> None:
    def hessian(y: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(energy.global_, y)  # type: ignore[return-value]

    points = Y.reshape(-1, 4)
    expected = torch.stack([hessian(y) for y in points])
    torch.testing.assert_close(energy.label_hessian(points[0]), expected[0])
    torch.testing.assert_close(energy.label_hessian(Y), expected.mean(dim=0))
    torch.testing.assert_close(energy.label_hessian(Y), energy.label_hessian(Y).T)


def test_labels_that_favour_each_other_have_a_negative_hessian_entry() -> None:
    energy = MultiLabelEnergy(2, 3, hidden=(4,), global_size=1).double()
    with torch.no_grad():
        energy.global_matrix.copy_(torch.tensor([[1.0, 1.0, 0.0]]))
        energy.global_weight.fill_(-1.0)
    both, one, none = (
        torch.tensor(y, dtype=torch.float64) for y in ([1, 1, 0], [1, 0, 0], [0, 0, 0])
    )
    together = energy.global_(both) + energy.global_(none) - 2 * energy.global_(one)
    hessian = energy.label_hessian(one)
    assert together < 0
    assert hessian[0, 1] < 0
    assert hessian[0, 2] == 0


def test_stacking_gold_and_samples_costs_one_encoding(energy: MultiLabelEnergy) -> None:
    gold, samples = Y[0], Y
    stacked = energy(X, torch.cat([gold[None], samples]))
    torch.testing.assert_close(stacked[0], energy(X, gold))
    torch.testing.assert_close(stacked[1:], energy(X, samples))
