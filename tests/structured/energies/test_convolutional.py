from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from structured.energies import ConvolutionalEnergy

X = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def energy() -> ConvolutionalEnergy:
    torch.manual_seed(0)
    return ConvolutionalEnergy(2, width=4, depth=1, global_size=3, kernel=3).double()


def test_the_energy_is_the_printed_formula(energy: ConvolutionalEnergy) -> None:
    unaries = energy.unaries(X)
    for k in range(2):
        first = functional.softplus(energy.from_mask(Y[k][:, None]) + energy.from_image(X))
        second = functional.softplus(energy.joint(first))
        local = (Y[k] * unaries).mean(dim=(-2, -1))
        weighted = second * energy.global_weight[:, None, None]
        expected = local + weighted.sum(dim=1).mean(dim=(-2, -1))
        torch.testing.assert_close(energy(X, Y)[k], expected)
        torch.testing.assert_close(energy(X, Y[k]), expected)


def test_neighbouring_pixels_and_the_image_meet_in_the_global_term(
    energy: ConvolutionalEnergy,
) -> None:
    x, y = X.clone().requires_grad_(), Y[0].clone().requires_grad_()
    value = energy.global_(energy.from_image(x), y)
    (slope,) = torch.autograd.grad(value.sum(), y, create_graph=True)
    by_y, by_x = torch.autograd.grad(slope[0, 6, 6], (y, x))
    assert bool((by_y[0, 5:8, 5:8] != 0).all())
    assert bool(by_x[0, :, 5:8, 5:8].any())
    assert not by_y[0, 0, 0]
    assert not by_y[1:].any()


@pytest.mark.parametrize("size", [8, 32, 64])
def test_initial_energies_are_of_order_one_at_every_resolution(size: int) -> None:
    values = []
    for seed in range(6):
        torch.manual_seed(seed)
        energy = ConvolutionalEnergy(3)
        with torch.no_grad():
            values.append(energy(torch.randn(2, 3, size, size), torch.rand(2, size, size)))
    assert 0.05 < float(torch.cat(values).square().mean().sqrt()) < 5.0


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel: found 4, wanted an odd number"):
        ConvolutionalEnergy(3, kernel=4)
