"""Output spaces: what a relaxed output looks like and what can be done with it.

A network returns *logits*; a space turns them into a point of the relaxed space (`relax`), and a
point into a hard output (`round`). Points of the three spaces:

- `Labels`: the hypercube ``[0, 1]^L``, tensors ``[..., B, L]``;
- `Tags`: a simplex per position, tensors ``[..., B, T, K]``, zero at padded positions;
- `Mask`: ``[0, 1]`` per pixel, tensors ``[..., B, H, W]``.

Leading dimensions before the batch (samples, restarts) are free everywhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from structured._space import Space
from structured.losses.cross_entropy import label_cross_entropy, tag_cross_entropy

__all__ = ["Labels", "Mask", "Space", "Tags"]


def _wrong_shape(name: str, value: Tensor, space: Space, wanted: str) -> ValueError:
    return ValueError(
        f"{name}: found shape {tuple(value.shape)}, wanted {wanted} for {space}; "
        "check the space's size against the network's outputs"
    )


def _check_size(name: str, size: int, least: int = 1) -> None:
    if size < least:
        raise ValueError(f"{name}: found {size}, wanted an integer of at least {least}")


class _Box(Space):
    """``[0, 1]`` per entry: what labels and pixel masks have in common."""

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """The trailing dimensions of a point."""

    @property
    def event_dims(self) -> int:
        return len(self.event_shape)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-self.event_dims, 0))

    def check(self, name: str, value: Tensor) -> None:
        if tuple(value.shape[-self.event_dims :]) != self.event_shape:
            wanted = ", ".join(map(str, self.event_shape))
            raise _wrong_shape(name, value, self, f"[..., {wanted}]")

    def relax(self, logits: Tensor) -> Tensor:
        self.check("logits", logits)
        return torch.sigmoid(logits)

    def dual(self, point: Tensor) -> Tensor:
        return torch.logit(point, eps=torch.finfo(point.dtype).eps)

    def hard(self, logits: Tensor) -> Tensor:
        return (logits >= 0).to(logits.dtype)

    def round(self, point: Tensor) -> Tensor:
        self.check("point", point)
        return (point >= 0.5).to(point.dtype)

    def project(self, point: Tensor) -> Tensor:
        self.check("point", point)
        return point.clamp(0.0, 1.0)

    def linear_minimum(self, gradient: Tensor) -> Tensor:
        return gradient.clamp(max=0.0).sum(dim=self._dims)

    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        # Logistic noise: logits + noise > 0 with probability sigma(logits). torch.rand can return
        # 0, half its grain keeps the logit finite.
        uniform = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=device)
        return torch.logit(uniform.clamp_(min=torch.finfo(uniform.dtype).eps / 4))

    def entropy(self, logits: Tensor) -> Tensor:
        self.check("logits", logits)
        terms = functional.softplus(logits) - logits * torch.sigmoid(logits)
        return terms.sum(dim=self._dims)

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        self.check("logits", logits)
        self.check("y", y)
        return -label_cross_entropy(logits, y, event_dims=self.event_dims)

    def uniform(
        self,
        leading: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.full((*leading, *self.event_shape), 0.5, dtype=dtype, device=device)


@dataclass(frozen=True)
class Labels(_Box):
    """Sets of labels, relaxed to the hypercube.

    Args:
        n: the number of labels, L.

    Example:
        >>> import torch
        >>> Labels(2).round(torch.tensor([[0.2, 0.9]]))
        tensor([[0., 1.]])
    """

    n: int

    def __post_init__(self) -> None:
        _check_size("n", self.n)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(L,)``."""
        return (self.n,)


@dataclass(frozen=True)
class Mask(_Box):
    """Binary images, relaxed to ``[0, 1]`` per pixel.

    Args:
        height: rows of the mask, H.
        width: columns of the mask, W.

    Example:
        >>> Mask(2, 3).uniform((4,)).shape
        torch.Size([4, 2, 3])
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        _check_size("height", self.height)
        _check_size("width", self.width)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(H, W)``."""
        return (self.height, self.width)


@dataclass(frozen=True)
class Tags(Space):
    """Sequences of tags, relaxed to a simplex per position.

    Points are zero at padded positions, so that sums over positions need no second thought.

    Args:
        n_tags: the number of tags, K.
        mask: which positions of the present batch are real, boolean ``[B, T]``; None when all are.

    Example:
        >>> import torch
        >>> space = Tags(2).with_mask(torch.tensor([[True, False]]))
        >>> space.relax(torch.zeros(1, 2, 2))
        tensor([[[0.5000, 0.5000],
                 [0.0000, 0.0000]]])
    """

    n_tags: int
    mask: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_size("n_tags", self.n_tags, least=2)
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(
                f"mask: found {self.mask.dtype}, wanted torch.bool, True at real positions; "
                "convert with `mask.bool()`"
            )

    def with_mask(self, mask: Tensor | None) -> Tags:
        """Return this space for a batch whose real positions are `mask`, boolean ``[B, T]``."""
        return replace(self, mask=mask)

    @property
    def event_dims(self) -> int:
        """Positions and tags: 2."""
        return 2

    def check(self, name: str, value: Tensor) -> None:
        """Raise ValueError unless `value` ends in ``[B, T, K]`` of this space and its mask."""
        wanted = "[..., T, " if self.mask is None else f"[..., {str(list(self.mask.shape))[1:-1]}, "
        fits = value.ndim >= 2 and value.shape[-1] == self.n_tags
        if fits and self.mask is not None:
            fits = tuple(value.shape[-3:-1]) == tuple(self.mask.shape)
        if not fits:
            raise _wrong_shape(name, value, self, f"{wanted}{self.n_tags}]")

    def _real(self, value: Tensor) -> Tensor:
        """Zero the padded positions of ``[..., B, T, K]``."""
        return value if self.mask is None else value.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def relax(self, logits: Tensor) -> Tensor:
        """Apply a softmax per position."""
        self.check("logits", logits)
        return self._real(torch.softmax(logits, dim=-1))

    def dual(self, point: Tensor) -> Tensor:
        """Return logarithms, clamped at the precision of the type."""
        return torch.log(point.clamp(min=torch.finfo(point.dtype).eps))

    def hard(self, logits: Tensor) -> Tensor:
        """Return the one-hot argmax per position."""
        best = functional.one_hot(logits.argmax(dim=-1), self.n_tags)
        return self._real(best.to(logits.dtype))

    def round(self, point: Tensor) -> Tensor:
        """Return the one-hot argmax per position."""
        self.check("point", point)
        return self.hard(point)

    def project(self, point: Tensor) -> Tensor:
        """Project each position onto the simplex (by sorting; Held, Wolfe & Crowder 1974)."""
        self.check("point", point)
        ordered = point.sort(dim=-1, descending=True).values
        rank = torch.arange(1, self.n_tags + 1, dtype=point.dtype, device=point.device)
        excess = (ordered.cumsum(dim=-1) - 1.0) / rank
        support = (ordered > excess).sum(dim=-1, keepdim=True).clamp(min=1)
        return self._real((point - excess.gather(-1, support - 1)).clamp(min=0.0))

    def linear_minimum(self, gradient: Tensor) -> Tensor:
        """Sum the least entries of the real positions."""
        self.check("gradient", gradient)
        least = gradient.amin(dim=-1)
        if self.mask is not None:
            least = least.masked_fill(~self.mask, 0.0)
        return least.sum(dim=-1)

    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw Gumbel noise: the argmax of logits + noise is a categorical sample."""
        draws = torch.empty(tuple(shape), dtype=dtype, device=device)
        return -draws.exponential_(generator=generator).log()

    def entropy(self, logits: Tensor) -> Tensor:
        """Sum the entropies of the real positions."""
        self.check("logits", logits)
        logs = torch.log_softmax(logits, dim=-1)
        terms = -(logs.exp() * logs).sum(dim=-1)
        if self.mask is not None:
            terms = terms.masked_fill(~self.mask, 0.0)
        return terms.sum(dim=-1)

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """Sum the log-probabilities of the real positions' tags; `y` is one-hot."""
        self.check("logits", logits)
        self.check("y", y)
        return -tag_cross_entropy(logits, y, self.mask)

    def uniform(
        self,
        leading: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return ``1 / K`` everywhere real; `leading` ends in the sequence length T."""
        return self._real(
            torch.full((*leading, self.n_tags), 1.0 / self.n_tags, dtype=dtype, device=device)
        )
