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

# How far off the solution derivatives are compared, as a share of its largest entry.
_OFF = 0.1

_Slopes = tuple[list[Tensor], list[Tensor]]


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
            if has_tangent(tensor):
                return "carries a forward derivative"
            if not _functorch.is_functorch_wrapped_tensor(tensor):
                return None
            tensor = _functorch.get_unwrapped(tensor)


class Constant:
    """A function that is evaluated again and again at one point, and must give one value there.

    It is to be what it was: what it closes over may have been bound or written anew meanwhile. One
    point is blind to much of that (a penalty on theta where theta is 0), so its derivatives are
    compared too, a little off that point: noted when the solution is attached, and looked at again
    each time :meth:`ask` is called. Each of these costs one more evaluation, and its gradient.

    Args:
        function: ``(phi, x, *args) ->`` the leaves of its value.
        name: what the caller calls it, for messages.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], name: str) -> None:
        self._function, self._name = function, name
        self._first: list[Tensor] | None = None
        self._followed: list[bool] = []
        self._slopes: _Slopes | None = None
        self._asked = False

    def attach(self, *inputs: Tree) -> None:
        """Note the derivatives in x, and in what is followed, if anything is."""
        leaves = pytree.tree_leaves(inputs)
        self._followed = [_is_floating(leaf) and follows(leaf) is not None for leaf in leaves]
        if any(self._followed):
            with ExitStack() as lowered:
                _lower_to(0, lowered)
                self._slopes = self._derivatives(inputs)

    def ask(self) -> None:
        """Have the derivatives compared at the next evaluation."""
        self._asked = self._slopes is not None

    def __call__(self, *inputs: Tree) -> Sequence[Tensor]:
        """The value, refused if it is another than the first one."""
        found = self._function(*inputs)
        now = [_representative(leaf) for leaf in found]
        with ExitStack() as lowered:
            _lower_to(0, lowered)
            if self._first is None:
                self._first = [leaf.clone() for leaf in now]
            self._compare("value", now, self._first, lambda share: self._moved(inputs, share))
            # A NaN at the solution is found by the solve.
            if self._asked and all(bool(leaf.isfinite().all()) for leaf in now):
                self._compare_slopes(inputs)
        return found

    def _compare_slopes(self, inputs: Sequence[Tree]) -> None:
        self._asked = False
        first, now = self._slopes, self._derivatives(inputs)
        if first is None or now is None:
            return
        for part in range(2):

            def moved(share: float, part: int = part) -> Sequence[Tensor]:
                return (self._derivatives(inputs, share) or now)[part]

            self._compare("derivative", now[part], first[part], moved)

    def _compare(
        self,
        what: str,
        now: Sequence[Tensor],
        first: Sequence[Tensor],
        moved: Callable[[float], Sequence[Tensor]],
    ) -> None:
        if all(map(torch.equal, now, first)):
            return
        change = _largest(map(torch.sub, now, first))
        share = max(_CHANGE, *(torch.finfo(leaf.dtype).eps ** 0.5 for leaf in now))
        size = _largest((*now, *first))
        # A value near zero is a difference, of what the function alone knows: a small error of x
        # shows how large. A NaN is no change, and is found by the solve.
        if not change > share * size:
            return
        if change <= _largest(map(torch.sub, now, moved(share))):
            return
        raise InputError(
            f"{self._name} gives another {what} than when the solution was attached, by "
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

    def _derivatives(self, inputs: Sequence[Tree], share: float = 0.0) -> _Slopes | None:
        """Those of one combination of the value, in x and in what is followed, off the solution.

        Args:
            inputs: the solution and what belongs to it.
            share: of the largest entry of x, how much further off.

        Returns:
            None where the function cannot be differentiated there.
        """
        trees = [pytree.tree_map_only(Tensor, _representative, tree) for tree in inputs]
        leaves, spec = pytree.tree_flatten(tuple(trees))
        before = len(pytree.tree_leaves(trees[0]))
        own = range(before, before + len(pytree.tree_leaves(trees[1])))
        size = _largest([leaves[i] for i in own])
        size = size if own and size > torch.finfo(leaves[own[0]].dtype).eps else 1.0
        others = [i for i, followed in enumerate(self._followed) if followed and i not in own]
        chosen = [*own, *others]
        for i in own:
            leaves[i] = _off(leaves[i], (_OFF + share) * size)
        try:
            with torch.enable_grad():
                points = fresh([leaves[i] for i in chosen])
                for i, point in zip(chosen, points, strict=True):
                    leaves[i] = point
                value = [
                    leaf
                    for leaf in self._function(*pytree.tree_unflatten(leaves, spec))
                    if leaf.requires_grad
                ]
                found = torch.autograd.grad(
                    value, points, [_weights(leaf) for leaf in value], materialize_grads=True
                )
        except Exception:
            return None  # what matters of it comes up at the solution
        plain = [_plain(leaf) for leaf in found]
        return plain[: len(own)], plain[len(own) :]


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _weights(like: Tensor) -> Tensor:
    """Fixed numbers between 1/2 and 1, of no pattern that a function might have."""
    counted = torch.arange(like.numel(), device=like.device, dtype=torch.float32)
    return (0.75 + 0.25 * counted.cos()).to(like.dtype).view(like.shape)


def _off(leaf: Tensor, distance: float) -> Tensor:
    """Every entry moved away from zero: what must be positive remains so."""
    return leaf + torch.where(leaf < 0, -distance, distance) * _weights(leaf)


def _plain(slope: Tensor) -> Tensor:
    """Dense, and with one number for all that is no finite one: outside the domain, say."""
    slope = slope.detach().to_dense()
    return torch.where(slope.isfinite(), slope, torch.finfo(slope.dtype).max / 4)


def _largest(leaves: Iterable[Tensor]) -> float:
    """The largest absolute entry of all."""
    return max((float(leaf.abs().max()) for leaf in leaves if leaf.numel()), default=0.0)


def refuse_tangents(name: str, *trees: Any) -> None:
    """Refuse dual tensors of plain forward mode, where the result would lack their tangents."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(leaf, Tensor) and has_tangent(leaf) for leaf in pytree.tree_leaves(trees)):
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


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor carries a forward derivative at its own level; a sparse one cannot."""
    if tensor.layout is not torch.strided:
        return False
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
