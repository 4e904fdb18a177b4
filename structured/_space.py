"""What every output space can do: the abstract `Space`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from structured.sampling import Sampler


class Space(ABC):
    """A relaxed output space, with the factorised distribution that logits define over it.

    A *hard* output has entries 0 and 1; a *point* is anything between, such as a vector of
    probabilities. *Logits* stand for a point and for the distribution whose entries (or positions)
    are independent with that mean. All three have the shape ``[..., B, *event]``: B examples, the
    dimensions of one output last, and any dimensions (samples, restarts) before.
    """

    @property
    @abstractmethod
    def event_dims(self) -> int:
        """How many trailing dimensions make one output."""

    @abstractmethod
    def check(self, name: str, value: Tensor) -> None:
        """Raise ValueError unless the trailing dimensions of a tensor are those of this space.

        Args:
            name: what the error calls the tensor.
            value: the tensor, ``[..., B, *event]``.
        """

    @abstractmethod
    def relax(self, logits: Tensor) -> Tensor:
        """Map logits to a point of the same shape: the mean of the factorised distribution."""

    @abstractmethod
    def dual(self, point: Tensor) -> Tensor:
        """Map a point to finite logits that `relax` maps back, up to saturated entries."""

    @abstractmethod
    def hard(self, logits: Tensor) -> Tensor:
        """Return the likeliest hard output under `logits`; no gradient passes."""

    @abstractmethod
    def round(self, point: Tensor) -> Tensor:
        """Return the nearest hard output to `point`; no gradient passes."""

    @abstractmethod
    def project(self, point: Tensor) -> Tensor:
        """Return the Euclidean projection of any tensor onto the space."""

    @abstractmethod
    def linear_minimum(self, gradient: Tensor) -> Tensor:
        """Return the least ``<gradient, y>`` over the space, one per example ``[..., B]``."""

    @abstractmethod
    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw noise such that ``hard(logits + noise)`` is an exact sample under `logits`.

        Args:
            shape: of the noise, that of the logits with the number of samples in front.
            generator: the source of randomness; None takes torch's default one.
            dtype: of the noise; None takes torch's default.
            device: of the noise.
        """

    @abstractmethod
    def entropy(self, logits: Tensor) -> Tensor:
        """Return the factorised distribution's entropy in nats, one per example ``[..., B]``."""

    @abstractmethod
    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the log-probability of the hard output `y` under `logits`, ``[..., B]``."""

    @abstractmethod
    def uniform(
        self,
        leading: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the centre of the space: one half everywhere, or one over the number of tags.

        Args:
            leading: the dimensions before those of one output, ``(..., B)``; for `Tags` also the
                length, ``(..., B, T)``.
            dtype: of the point; None takes torch's default.
            device: of the point.
        """

    def mirror_step(
        self, point: Tensor, gradient: Tensor, rate: float, entropy: float = 0.0
    ) -> Tensor:
        """Take one entropic mirror-descent step, which stays inside without projecting.

        The new point minimises ``<gradient, y> - entropy * H(y) + KL(y || point) / rate``. With
        ``rate = 2 eta`` this is the update of SPEN (Belanger & McCallum 2016, published code):
        ``y <- sigma((logit y - 2 eta g) / (1 + 2 eta lambda_H))``.

        Args:
            point: the present point.
            gradient: the energy's gradient there, of the same shape.
            rate: the step size, in units of logits per unit of gradient.
            entropy: weight of the entropy that is added to flatten the minimiser.
        """
        return self.relax(mirror_dual_step(self.dual(point), gradient, rate, entropy))

    def gap(self, point: Tensor, gradient: Tensor) -> Tensor:
        """Return the Frank-Wolfe gap ``max_y <gradient, point - y>``, one per example ``[..., B]``.

        It is zero exactly where no feasible direction descends, and where the energy is convex the
        energy at `point` is at most this much above its minimum.

        Args:
            point: in the space, ``[..., B, *event]``.
            gradient: the energy's gradient there, of the same shape.
        """
        inner = (gradient * point).sum(dim=tuple(range(-self.event_dims, 0)))
        return inner - self.linear_minimum(gradient)

    def sample(
        self,
        logits: Tensor,
        count: int,
        sampler: Sampler,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw `count` outputs along a new first dimension.

        Args:
            logits: of the factorised distribution.
            count: how many samples, K.
            sampler: how to draw and how gradients pass, see `structured.sampling`.
            generator: the source of randomness; None takes torch's default one.
            noise: what `noise` returned for ``(count, *logits.shape)``. Given, the samples are a
                deterministic function of `logits`, so that a loss can be evaluated again at the
                same draw, as products with its Hessian need.

        Returns:
            Samples, ``[count, *logits.shape]``.

        Raises:
            ValueError: if `count` is not positive or `noise` has another shape.

        Example:
            >>> import torch
            >>> from structured.sampling import DetachedHard
            >>> from structured.spaces import Labels
            >>> logits = torch.tensor([[30.0, -30.0]])
            >>> Labels(2).sample(logits, 3, DetachedHard(), generator=torch.Generator()).shape
            torch.Size([3, 1, 2])
        """
        self.check("logits", logits)
        if count < 1:
            raise ValueError(f"count: found {count}, wanted at least one sample")
        shape = (count, *logits.shape)
        if noise is None and sampler.needs_noise:
            noise = self.noise(shape, generator=generator, dtype=logits.dtype, device=logits.device)
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(
                f"noise: found shape {tuple(noise.shape)}, wanted {shape}; draw it with "
                f"`space.noise({shape}, ...)`"
            )
        return sampler.draw(self, logits, count, noise)


def mirror_dual_step(dual: Tensor, gradient: Tensor, rate: float, entropy: float = 0.0) -> Tensor:
    """Take the step of `Space.mirror_step` in logits, where nothing saturates."""
    return (dual - rate * gradient) / (1.0 + rate * entropy)
