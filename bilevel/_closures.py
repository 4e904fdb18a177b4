"""What reaches a function behind its arguments: tensors whose derivatives get lost, and changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch._C._functorch as _functorch  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from bilevel import _transforms
from bilevel._autodiff import fresh, leaves_of_graph
from bilevel._tree import Tree
from bilevel.errors import InputError, TransformError

# What a change may come to before it is one: how a function is summed up, or how far a problem
# solved inside of it gets, may differ from time to time.
_CHANGE = 1e-6


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


class Constant:
    """A function that is evaluated again and again at one point, and must give one value there.

    It is to be what it was: what it closes over may have been bound or written anew meanwhile.

    Args:
        function: ``(phi, x, *args) ->`` the leaves of its value.
        name: what the caller calls it, for messages.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], name: str) -> None:
        self._function, self._name = function, name
        self._first: list[Tensor] | None = None

    def __call__(self, *inputs: Tree) -> Sequence[Tensor]:
        """The value, refused if it is another than the first one."""
        found = self._function(*inputs)
        now = [_representative(leaf) for leaf in found]
        if self._first is None:
            with ExitStack() as lowered:
                _lower_to(0, lowered)
                self._first = [leaf.clone() for leaf in now]
        elif not all(map(torch.equal, now, self._first)):
            with ExitStack() as lowered:
                _lower_to(0, lowered)
                self._compare(now, self._first, inputs)
        return found

    def _compare(
        self, now: Sequence[Tensor], first: Sequence[Tensor], inputs: Sequence[Tree]
    ) -> None:
        change = _largest(map(torch.sub, now, first))
        share = max(_CHANGE, *(torch.finfo(leaf.dtype).eps ** 0.5 for leaf in now))
        size = _largest((*now, *first))
        # A value near zero is a difference, of what the function alone knows: a small error of x
        # shows how large. A NaN is no change, and is found by the solve.
        if not change > share * size:
            return
        if change <= _largest(map(torch.sub, now, self._moved(inputs, share))):
            return
        raise InputError(
            f"{self._name} gives another value than when the solution was attached, by "
            f"{change:.2e}: what it closes over has changed since, so this would be the derivative "
            "of another problem. Pass what changes in args=(...), or differentiate before it does. "
            "(A function made in a loop sees what its variables hold when the loop is over.)"
        )

    def _moved(self, inputs: Sequence[Tree], share: float) -> Sequence[Tensor]:
        """The value where x is off by a share of its largest entry."""
        phi, x, *args = (pytree.tree_map_only(Tensor, _representative, tree) for tree in inputs)
        leaves, spec = pytree.tree_flatten(x)
        size = _largest(leaves) or 1.0
        with torch.enable_grad():
            x = pytree.tree_unflatten(fresh([leaf + share * size for leaf in leaves]), spec)
            return [leaf.detach() for leaf in self._function(phi, x, *args)]


def _largest(leaves: Iterable[Tensor]) -> float:
    """The largest absolute entry of all."""
    return max((float(leaf.abs().max()) for leaf in leaves if leaf.numel()), default=0.0)


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
