"""Dropout with masks that can be drawn once and used again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Masks = tuple[Tensor | None, ...]


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless `rate` is the probability of dropping an entry, in [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}: found {rate}, wanted a probability in [0, 1)")


def draw_masks(
    leading: Sequence[int],
    sizes: Sequence[int],
    rates: Sequence[float],
    like: Tensor,
    generator: torch.Generator | None,
) -> Masks:
    """Return one scaled mask ``[*leading, size]`` per place, None where nothing is dropped."""
    masks: list[Tensor | None] = []
    for size, rate in zip(sizes, rates, strict=True):
        if rate == 0.0:
            masks.append(None)
            continue
        uniform = torch.rand(
            (*leading, size), generator=generator, dtype=like.dtype, device=like.device
        )
        masks.append((uniform >= rate).to(like.dtype) / (1.0 - rate))
    return tuple(masks)


def check_masks(masks: Masks, places: int) -> Masks:
    """Return `masks`, or raise ValueError unless there is one for each place."""
    if len(masks) != places:
        raise ValueError(
            f"dropout_masks: found {len(masks)} masks, wanted {places}; "
            "draw them with the network's own `dropout_masks(x)`"
        )
    return masks


def drop(value: Tensor, mask: Tensor | None) -> Tensor:
    """Return `value` with the mask applied."""
    return value if mask is None else value * mask
