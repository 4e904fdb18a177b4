"""Checks of what users hand in, besides trees: functions, their arguments, what they return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._tree import Tree, leaf_name
from bilevel.errors import InputError


def check_function(function: Any, name: str) -> None:
    """Refuse what cannot be called."""
    if not callable(function):
        raise InputError(f"{name} must be a function of (phi, theta, *args), found {function!r}.")


def check_args(args: Any, argument: str) -> tuple[Any, ...]:
    """Refuse arguments that are no sequence of them: a batch by itself would be taken apart."""
    if not isinstance(args, list | tuple):
        raise InputError(f"{argument} is a {type(args).__name__}; wanted a tuple, such as (x,).")
    return tuple(args)


def refuse_unused(name: str, unused: Sequence[int], tree: Tree, argument: str) -> None:
    """Refuse leaves an objective does not depend on, unless there is nothing in them."""
    if not unused:
        return
    sizes = [leaf.numel() for leaf in pytree.tree_leaves(tree)]
    names = [leaf_name(tree, index, argument) for index in unused if sizes[index]]
    if names:
        raise InputError(
            f"{name} does not depend on {', '.join(names)}: its Hessian is singular there. Leave "
            f"the leaf out of {argument}, add a penalty on it to {name}, or set damping > 0."
        )


def check_scalar(value: Any, name: str) -> Tensor:
    """Refuse anything but a 0-d floating tensor."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} returned a {type(value).__name__}; wanted a 0-d tensor.")
    if value.ndim != 0:
        raise InputError(
            f"{name} returned a tensor of shape {tuple(value.shape)}; wanted a 0-d tensor. Reduce "
            "it with .mean() or .sum()."
        )
    if not value.is_floating_point():
        raise InputError(f"{name} returned {value.dtype}; wanted a floating 0-d tensor.")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_positive(owner: str, name: str, value: Any) -> None:
    """Refuse what is not a finite number above 0."""
    if not is_number(value) or not 0.0 < value < math.inf:
        raise InputError(f"{owner}: {name} must be finite and above 0, found {value!r}.")


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Refuse a count that is not an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{owner}: {name} must be an integer of at least {least}, found {value!r}."
        )
