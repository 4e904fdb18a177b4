"""The optimizers all methods use, and checks of their options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "sgd"]


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[nn.Parameter],
    rate: float,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay, or plain SGD."""
    leaves = list(parameters)
    if name == "sgd":
        return torch.optim.SGD(leaves, lr=rate, weight_decay=weight_decay)
    # One fused pass over memory: on the CPU, too, several times faster for large layers.
    fused = all(leaf.device.type in ("cpu", "cuda") for leaf in leaves)
    return torch.optim.AdamW(leaves, lr=rate, weight_decay=weight_decay, fused=fused)


def descend(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    """Take one step down a 0-d tensor; gradients are cleared on both sides of it."""
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_rate(name: str, value: float, *, zero: bool = False) -> None:
    """Raise ValueError unless `value` is a finite number above (or, if `zero`, at least) 0."""
    least = is_number(value) and (value >= 0 if zero else value > 0)
    if not least or value == math.inf:
        wanted = "at least 0" if zero else "above 0"
        raise ValueError(f"{name}: found {value!r}, wanted a finite number {wanted}")


def check_weights(method: object, *names: str) -> None:
    """Raise ValueError unless these options of a method are finite numbers of at least 0."""
    for name in names:
        check_rate(name, getattr(method, name), zero=True)


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number, of either sign."""
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name}: found {value!r}, wanted a finite number")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: found {value!r}, wanted one of {', '.join(choices)}")


def check_count(name: str, value: int, least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: found {value!r}, wanted an integer of at least {least}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value that users may have written in another way than as a number is one."""
    return isinstance(value, Real) and not isinstance(value, bool)
