"""What holds for every energy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from structured.energies import (
    ChainEnergy,
    ConvolutionalEnergy,
    MultiLabelEnergy,
    PairwiseEnergy,
    unaries_from_network,
)
from structured.networks import MLP, BiLSTMTagger, UNet
from structured.spaces import Labels, Mask, Space, Tags


@dataclass(frozen=True)
class Case:
    energy: nn.Module
    x: Tensor
    space: Space
    leading: tuple[int, ...]
    network: nn.Module

    def points(self, *samples: int, seed: int = 0) -> Tensor:
        shape = (*samples, *self.space.uniform(self.leading).shape)
        generator = torch.Generator().manual_seed(seed)
        return self.space.relax(torch.randn(shape, generator=generator, dtype=torch.float64))


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64)
    tokens = torch.randn(3, 4, 5, dtype=torch.float64)
    images = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    labels, tags, masks = Labels(4), Tags(3), Mask(4, 6)
    mlp, relu = MLP(5, 4, (7,), activation=nn.functional.softplus), MLP(5, 4, (7,))
    return {
        "multi-label": Case(MultiLabelEnergy(5, 4, (7,), 6).double(), x, labels, (3,), mlp),
        "multi-label ReLU": Case(
            MultiLabelEnergy(5, 4, (7,), activation=torch.relu).double(), x, labels, (3,), relu
        ),
        "pairwise": Case(PairwiseEnergy(5, 4, (7,)).double(), x, labels, (3,), mlp),
        "low rank": Case(PairwiseEnergy(5, 4, (7,), rank=2).double(), x, labels, (3,), mlp),
        "chain": Case(
            ChainEnergy(5, 3, hidden=4).double(), tokens, tags, (3, 4), BiLSTMTagger(5, 3, 4)
        ),
        "convolutional": Case(
            ConvolutionalEnergy(2, width=4, depth=1, global_size=3).double(),
            images, masks, (3,), UNet(2, width=4, depth=1),
        ),
    }  # fmt: skip


CASES = cases()
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every
def test_leading_dimensions_of_the_points_lead_the_energies(case: Case) -> None:
    y = case.points(2, 5)
    energies = case.energy(case.x, y)
    assert energies.shape == (2, 5, 3)
    torch.testing.assert_close(energies[1, 2], case.energy(case.x, y[1, 2]))


@every
def test_an_examples_energy_depends_on_that_example_alone(case: Case) -> None:
    y = case.points(5)
    together = case.energy(case.x, y)
    for b in range(3):
        alone = case.energy(case.x[b : b + 1], y[:, b : b + 1])
        torch.testing.assert_close(together[:, b : b + 1], alone)


@every
def test_the_input_is_encoded_once_however_many_points(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = case.energy.unaries
    name = "features" if hasattr(encoder, "features") else "forward"
    original, calls = getattr(encoder, name), []

    def counted(x: Tensor, *rest: Tensor) -> Tensor:
        calls.append(len(x))
        return original(x, *rest)

    monkeypatch.setattr(encoder, name, counted)
    case.energy(case.x, case.points(50))
    assert calls == [3]


@every
def test_every_entry_of_the_input_and_of_the_point_matters(case: Case) -> None:
    x, y = case.x.clone().requires_grad_(), case.points().requires_grad_()
    by_x, by_y = torch.autograd.grad(case.energy(x, y).sum(), (x, y))
    assert bool((by_x != 0).all())
    assert bool((by_y != 0).all())


@every
def test_mixed_and_second_derivatives_agree_with_differences(case: Case) -> None:
    y = case.points().requires_grad_()
    parameters = tuple(case.energy.parameters())

    def slope(point: Tensor) -> Tensor:
        return torch.func.grad(lambda z: case.energy(case.x, z).sum())(point)

    assert torch.autograd.gradcheck(slope, (y,))
    mixed = torch.autograd.grad(slope(y).square().sum(), parameters, allow_unused=True)
    step, direction = 1e-5, [torch.randn_like(p) for p in parameters]
    values = []
    for sign in (1, -1):
        moved = {
            name: value + sign * step * part
            for (name, value), part in zip(case.energy.named_parameters(), direction, strict=True)
        }
        gradient = torch.func.grad(
            lambda z, phi=moved: torch.func.functional_call(case.energy, phi, (case.x, z)).sum()
        )(y)
        values.append(gradient.square().sum())
    product = sum(
        (part * d).sum() for part, d in zip(mixed, direction, strict=True) if part is not None
    )
    torch.testing.assert_close(product, (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-6)


@every
def test_functional_call_with_the_named_parameters_is_the_energy(case: Case) -> None:
    phi: dict[str, Tensor] = dict(case.energy.named_parameters())
    y = case.points(2)
    called = torch.func.functional_call(case.energy, phi, (case.x, y))
    torch.testing.assert_close(called, case.energy(case.x, y))


@every
def test_the_local_term_starts_as_minus_the_logits_of_a_network(case: Case) -> None:
    network = case.network.double()
    before = case.energy(case.x, case.points(2))
    logits = network(case.x)
    unaries_from_network(case.energy, network)  # type: ignore[arg-type]
    torch.testing.assert_close(case.energy.unaries(case.x), -logits)  # type: ignore[operator]
    after = case.energy(case.x, case.points(2))
    assert not torch.allclose(before, after)
    # The network itself is left as it was.
    torch.testing.assert_close(network(case.x), logits)


@every
def test_a_copied_network_puts_the_least_local_energy_at_its_own_prediction(case: Case) -> None:
    network = case.network.double()
    unaries_from_network(case.energy, network)  # type: ignore[arg-type]
    unaries = case.energy.unaries(case.x)  # type: ignore[operator]
    dims = tuple(range(-case.space.event_dims, 0))
    predicted = case.space.hard(network(case.x))
    torch.testing.assert_close(
        (unaries * predicted).sum(dim=dims), case.space.linear_minimum(unaries)
    )


def test_a_network_of_another_kind_size_or_activation_is_refused() -> None:
    energy = MultiLabelEnergy(5, 4, (7,))
    softplus = nn.functional.softplus
    for wrong in (
        MLP(5, 4, (8,), activation=softplus),
        MLP(5, 4, (7, 7), activation=softplus),
        MLP(5, 3, (7,), activation=softplus),
        nn.Linear(5, 4),
    ):
        with pytest.raises(ValueError, match=r"network: found .* wanted MLP with .*same sizes"):
            unaries_from_network(energy, wrong)
    with pytest.raises(ValueError, match="same activation"):
        unaries_from_network(energy, MLP(5, 4, (7,), activation=torch.relu))


@pytest.mark.parametrize(("features", "labels"), [(10, 5), (1836, 159), (500, 983)])
@pytest.mark.parametrize(
    "build",
    [
        MultiLabelEnergy,
        PairwiseEnergy,
        lambda features, labels: PairwiseEnergy(features, labels, rank=16),
    ],
    ids=["multi-label", "pairwise", "low rank"],
)
def test_initial_energies_are_of_order_one_whatever_the_sizes(
    build, features: int, labels: int
) -> None:
    sizes = []
    for seed in range(5):
        torch.manual_seed(seed)
        energy = build(features, labels)
        with torch.no_grad():
            for y in (torch.rand(32, labels), torch.randint(2, (32, labels)).float()):
                sizes.append(energy(torch.randn(32, features), y).square().mean().sqrt())
    size = float(torch.stack(sizes).square().mean().sqrt())
    assert 0.1 < size < 5.0
