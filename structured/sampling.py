"""Samplers: how outputs are drawn from logits, and how a gradient passes through the draw.

The paper draws Bernoulli samples from the inference network and does not say what happens to the
gradient. Here a sampler's name says it: those called ``Detached...`` pass none, all others do
(`Sampler.passes_gradient` says the same to a program).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from structured.spaces import Space


class Sampler(ABC):
    """A way to draw outputs; used through `Space.sample`."""

    passes_gradient: ClassVar[bool]
    """Whether the samples carry a gradient to the logits."""
    needs_noise: ClassVar[bool]
    """Whether `draw` wants noise; if not, all samples are the same point."""

    @abstractmethod
    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return samples, ``[count, *logits.shape]``.

        Args:
            space: whose outputs are drawn.
            logits: of the factorised distribution, ``[..., B, *event]``.
            count: how many samples, K.
            noise: of the shape of the samples, from `Space.noise`; None if `needs_noise` is False.
        """


def _required(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("noise: found None, wanted what `space.noise` returns; use `space.sample`")
    return noise


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of `hard`, exactly, with the gradient of `soft`."""
    return (soft - soft.detach()) + hard


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature}, wanted a positive number")


@dataclass(frozen=True)
class Soft(Sampler):
    """No randomness: every sample is the relaxed point itself, with its exact gradient.

    The copies are one expanded tensor; draw a single one unless the caller needs the dimension.
    """

    passes_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return `count` views of ``relax(logits)``."""
        return space.relax(logits).expand(count, *logits.shape)


@dataclass(frozen=True)
class StraightThrough(Sampler):
    """Hard samples whose gradient is that of the relaxed point (Bengio et al. 2013); biased."""

    passes_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return hard outputs carrying the gradient of ``relax(logits)``."""
        return _straight_through(space.hard(logits + _required(noise)), space.relax(logits))


@dataclass(frozen=True)
class Gumbel(Sampler):
    """Relaxed samples: Gumbel-softmax, and for binary entries Gumbel-sigmoid (Jang et al. 2017).

    Args:
        temperature: near 0 the samples are nearly hard and the gradients large; at 1 they are the
            relaxation of the same distribution.
    """

    temperature: float = 1.0
    passes_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return ``relax((logits + noise) / temperature)``."""
        return space.relax((logits + _required(noise)) / self.temperature)


@dataclass(frozen=True)
class GumbelStraightThrough(Sampler):
    """Exact hard samples whose gradient is that of the `Gumbel` sample under the same noise.

    Args:
        temperature: of the relaxed sample that lends its gradient.
    """

    temperature: float = 1.0
    passes_gradient: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return hard outputs carrying the gradient of the relaxed sample."""
        perturbed = logits + _required(noise)
        return _straight_through(space.hard(perturbed), space.relax(perturbed / self.temperature))


@dataclass(frozen=True)
class DetachedHard(Sampler):
    """Hard Bernoulli or categorical samples. No gradient passes to the logits.

    Files and commands call it ``NoPathHard``.
    """

    passes_gradient: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return hard outputs, detached."""
        return space.hard(logits.detach() + _required(noise))


@dataclass(frozen=True)
class DetachedSoft(Sampler):
    """The relaxed point, detached. No gradient passes to the logits.

    Files and commands call it ``NoPathSoft``.
    """

    passes_gradient: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False

    def draw(self, space: Space, logits: Tensor, count: int, noise: Tensor | None) -> Tensor:
        """Return `count` views of ``relax(logits)``, detached."""
        return space.relax(logits.detach()).expand(count, *logits.shape)
