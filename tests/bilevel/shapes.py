"""Shapes of trees to put a problem's vectors in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A way to lay a vector out as a tree, and back."""

    name: str
    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any], Tensor]


class Pair(NamedTuple):
    first: Any
    second: Any


def strided(vector: Tensor) -> Tensor:
    """The same numbers, every other one in memory."""
    return torch.stack([vector, vector], dim=1)[:, 0]


def _nest(vector: Tensor) -> dict[str, Any]:
    return {
        "scalar": vector[0],
        "deep": {"empty": vector[:0], "strided": [strided(vector[1:])]},
        "void": vector.new_zeros(3, 0),
    }


SHAPES = [
    Shape("tensor", lambda v: v, lambda t: t),
    Shape("column", lambda v: v.unsqueeze(1), lambda t: t.squeeze(1)),
    Shape("list", lambda v: [v[:1], v[1:]], torch.cat),
    Shape("tuple", lambda v: (v[1:], v[0]), lambda t: torch.cat([t[1].reshape(1), t[0]])),
    Shape("namedtuple", lambda v: Pair(v[:2], v[2:]), lambda t: torch.cat([t.first, t.second])),
    Shape(
        "nested dict",
        _nest,
        lambda t: torch.cat([t["scalar"].reshape(1), t["deep"]["strided"][0]]),
    ),
]
