"""Finds tensors that reach a function behind its arguments, where derivatives would lose them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch._C._functorch as _functorch  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from bilevel import _transforms
from bilevel._autodiff import leaves_of_graph
from bilevel.errors import TransformError


def behind(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> str | None:
    """What follows a tensor that the function uses besides its inputs, as a verb phrase; or None.

    The function is evaluated on inputs that nothing follows: what follows its value all the same
    came in another way.
    """
    if _transforms.active():
        return follows(_value(function, [_representative(tensor) for tensor in inputs]))
    # The function may differentiate by itself, so its inputs require grad, and tensors that it
    # makes for itself may too; only those that come up in two evaluations were there before.
    first, second = _leaves(function, inputs), []
    if first:
        second = _leaves(function, inputs)
    if {id(leaf) for leaf in first} & {id(leaf) for leaf in second}:
        return "requires grad"
    if forward_ad._current_level >= 0:
        return follows(_value(function, [tensor.detach() for tensor in inputs]))
    return None


def follows(tensor: Tensor) -> str | None:
    """What follows a tensor, at whatever level of the transforms, as a verb phrase; or None."""
    with ExitStack() as lowered:
        while True:
            _lower_to(_functorch.maybe_get_level(tensor), lowered)
            if _functorch.is_batchedtensor(tensor):
                return "is being vmapped"
            if tensor.requires_grad:
                return "requires grad"
            if _has_tangent(tensor):
                return "carries a forward derivative"
            if not _functorch.is_functorch_wrapped_tensor(tensor):
                return None
            tensor = _functorch.get_unwrapped(tensor)


def refuse_tangents(name: str, *trees: Any) -> None:
    """Refuse dual tensors of plain forward mode, where the result would lack their tangents."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(leaf, Tensor) and _has_tangent(leaf) for leaf in pytree.tree_leaves(trees)):
        raise TransformError(
            f"{name} drops the tangents of torch.autograd.forward_ad. Use torch.func.jvp."
        )


def _leaves(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves a value was computed from, its inputs left out."""
    fresh = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    with torch.enable_grad():
        found = leaves_of_graph(function(*fresh))
    return [leaf for leaf in found if not any(leaf is tensor for tensor in fresh)]


def _value(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """The function's value under a ``vjp`` of its own, for functions that differentiate."""
    floating = [i for i, tensor in enumerate(inputs) if tensor.is_floating_point()]

    def restricted(*moving: Tensor) -> Tensor:
        everything = list(inputs)
        for index, tensor in zip(floating, moving, strict=True):
            everything[index] = tensor
        return function(*everything)

    return torch.func.vjp(restricted, *(inputs[i] for i in floating))[0]


def _has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor carries a forward derivative at its own level."""
    with forward_ad._set_fwd_grad_enabled(True):
        return forward_ad.unpack_dual(tensor, level=0).tangent is not None


def _representative(tensor: Tensor) -> Tensor:
    """A plain tensor of the same shape that nothing follows: the first example of every batch."""
    dims = []
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            dims.append(_functorch.maybe_get_bdim(tensor))
        tensor = _functorch.get_unwrapped(tensor)
    with ExitStack() as lowered:
        _lower_to(0, lowered)
        for dim in reversed(dims):
            tensor = tensor.select(dim, 0)
        return tensor.detach()


def _lower_to(level: int, lowered: ExitStack) -> None:
    """Leave the transforms above a level until ``lowered`` is closed."""
    while (top := _functorch.peek_interpreter_stack()) is not None and top.level() > level:
        lowered.enter_context(temporarily_pop_interpreter_stack())
