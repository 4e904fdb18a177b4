"""Small models in double precision, and minibatches for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from structured.energies import MultiLabelEnergy
from structured.methods._objectives import Minibatch
from structured.models import Models
from structured.networks import MLP
from structured.spaces import Labels

FEATURES, LABELS = 4, 3


@pytest.fixture
def make_models() -> Callable[..., Models]:
    """Models of 4 features and 3 labels, float64 and smooth, the same for the same seed."""

    def make(seed: int = 0, *, dropout: float = 0.0, hidden: tuple[int, ...] = (5,)) -> Models:
        torch.manual_seed(seed)
        network = MLP(FEATURES, LABELS, hidden, dropout=dropout, activation=torch.tanh)
        energy = MultiLabelEnergy(FEATURES, LABELS, (5,), global_size=3, activation=torch.tanh)
        return Models(Labels(LABELS), network.double(), energy.double())

    return make


@pytest.fixture
def make_batch() -> Callable[..., Minibatch]:
    """A minibatch of random inputs and labels, with noise for `samples` candidates."""

    def make(seed: int = 0, *, rows: int = 6, samples: int = 0) -> Minibatch:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
        y = (torch.rand(rows, LABELS, generator=generator) < 0.5).double()
        noise = None
        if samples:
            shape = (samples, rows, LABELS)
            noise = Labels(LABELS).noise(shape, generator=generator, dtype=torch.float64)
        return Minibatch(x, y, None, noise)

    return make


@pytest.fixture
def parameters() -> Callable[[Models], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The trees phi and theta of some models, detached."""

    def split(models: Models) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert models.energy is not None
        modules = (models.energy, models.network)
        phi, theta = (
            {name: leaf.detach() for name, leaf in module.named_parameters()} for module in modules
        )
        return phi, theta

    return split
