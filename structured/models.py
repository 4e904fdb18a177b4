"""The parts a method trains: an output space, an inference network, an energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from structured._space import Space
from structured.energies import MultiLabelEnergy
from structured.networks import MLP
from structured.spaces import Labels

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}
"""The activations a configuration can name."""


@dataclass(frozen=True)
class Models:
    """What a method trains.

    Attributes:
        space: the relaxed output space.
        network: the inference network A, ``x -> logits``. If it has a method ``dropout_masks(x,
            generator=...)``, what that returns is passed back as ``dropout_masks=...``.
        energy: E, ``(x, y) -> [..., B]``, low is good; None for methods without one.
    """

    space: Space
    network: nn.Module
    energy: nn.Module | None = None


@contextmanager
def evaluating(models: Models) -> Iterator[None]:
    """Put all modules into evaluation mode, and back into the modes they were in.

    Example:
        >>> models = build_models(2, 1, ModelConfig(hidden=()), seed=0)
        >>> with evaluating(models):
        ...     print(models.network.training)
        False
        >>> models.network.training
        True
    """
    parts = [module for module in (models.network, models.energy) if module is not None]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the multi-label models; plain values only, so that it can be written as JSON.

    The defaults are the paper's energy (two layers of 150 units, Belanger & McCallum 2016) with a
    term on the number of labels, and the network that is a strong baseline on bibtex.

    Args:
        hidden: hidden layers of the inference network.
        dropout: the probability of dropping a hidden unit of the network in training.
        input_dropout: the probability of dropping an input of the network in training.
        activation: of the network, a name in `ACTIVATIONS`.
        energy_hidden: hidden layers of the energy's f(x); None for those of the network.
        energy_activation: of f; None for that of the network.
        global_size: rows of the energy's global term.
        cardinality: the largest number of labels that has a value of its own in the energy's term
            on how many there are (never above L); 0 leaves that term out.
        standardize: scale every feature to mean 0 and deviation 1 over the training rows, inside
            the models; for dense features of different units.

    Raises:
        ValueError: if a size, a rate or an activation is out of range.

    Example:
        >>> ModelConfig(hidden=(64,)).to_dict()["hidden"]
        [64]
        >>> ModelConfig.from_dict({"hidden": [64]}) == ModelConfig(hidden=(64,))
        True
    """

    hidden: tuple[int, ...] = (1024,)
    dropout: float = 0.5
    input_dropout: float = 0.5
    activation: str = "relu"
    energy_hidden: tuple[int, ...] | None = (150, 150)
    energy_activation: str | None = "relu"
    global_size: int = 16
    cardinality: int = 64
    standardize: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "energy_hidden"):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            object.__setattr__(self, name, tuple(sizes))
            if not all(type(size) is int and size > 0 for size in sizes):
                raise ValueError(f"{name}: found {sizes!r}, wanted positive integers")
        for name in ("dropout", "input_dropout"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name}: found {rate}, wanted a probability in [0, 1)")
        for name in ("activation", "energy_activation"):
            found = getattr(self, name)
            if found not in ACTIVATIONS and not (found is None and name == "energy_activation"):
                raise ValueError(f"{name}: found {found!r}, wanted one of {', '.join(ACTIVATIONS)}")
        if type(self.cardinality) is not int or self.cardinality < 0:
            raise ValueError(
                f"cardinality: found {self.cardinality!r}, wanted an integer of at least 0"
            )
        if type(self.standardize) is not bool:
            raise ValueError(f"standardize: found {self.standardize!r}, wanted True or False")
        if self.global_size < 1:
            raise ValueError(f"global_size: found {self.global_size}, wanted at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` undoes it."""
        items = dataclasses.asdict(self).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Make a configuration of what `to_dict` returned; missing keys take their defaults.

        Raises:
            ValueError: if a key is unknown or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(
                f"model configuration: found unknown {', '.join(map(repr, unknown))}, wanted "
                f"{', '.join(known)}"
            )
        return cls(**values)


def build_models(n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
    """Make the multi-label models, freshly initialised.

    Args:
        n_features: the size of x, D.
        n_labels: how many labels, L.
        config: their sizes.
        seed: decides the initial parameters, and nothing else does; torch's own random state is
            left as it was.

    Returns:
        `Labels`, an `MLP` and a `MultiLabelEnergy`.

    Example:
        >>> import torch
        >>> models = build_models(5, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> models.network(torch.zeros(2, 5)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = MLP(
            n_features,
            n_labels,
            config.hidden,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            activation=ACTIVATIONS[config.activation],
            standardize=config.standardize,
        )
        energy = MultiLabelEnergy(
            n_features,
            n_labels,
            config.hidden if config.energy_hidden is None else config.energy_hidden,
            config.global_size,
            cardinality=min(config.cardinality, n_labels),
            activation=ACTIVATIONS[config.energy_activation or config.activation],
            standardize=config.standardize,
        )
    return Models(Labels(n_labels), network, energy)
