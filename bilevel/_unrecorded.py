"""Calling a function without recording derivatives, underneath the transforms that would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel import _transforms
from bilevel.errors import InputError, TransformError

OnTensors = Callable[..., tuple[Tensor, ...]]

Batched = Callable[[OnTensors, Sequence[int | None], str], OnTensors]
"""A function for a batch, made of one for an example, from ``in_dims`` and a randomness."""


def vectorized(function: OnTensors, in_dims: Sequence[int | None], randomness: str) -> OnTensors:
    """All examples at once, for functions that ``torch.func.vmap`` can carry."""
    return torch.func.vmap(function, in_dims=tuple(in_dims), randomness=randomness)


def one_by_one(function: OnTensors, in_dims: Sequence[int | None], randomness: str) -> OnTensors:
    """One example after the other, for functions that read numbers off."""

    def loop(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(tensors, in_dims, strict=True))
        size = next(tensor.shape[dim] for tensor, dim in pairs if dim is not None)
        if not size:
            raise InputError("torch.func.vmap over an empty batch: there is no example to solve.")
        found = [
            function(*(one if dim is None else one.select(dim, i) for one, dim in pairs))
            for i in range(size)
        ]
        return tuple(torch.stack(column) for column in zip(*found, strict=True))

    return loop


def unrecorded(
    function: Callable[..., Any], inputs: tuple[Any, ...], name: str, batched: Batched = vectorized
) -> Any:
    """``function(*inputs)``, called once, on detached tensors and with its own tensors detached.

    Inside ``torch.func`` transforms it is called underneath them, on plain tensors: it may use
    ``backward``, ``torch.optim`` and numbers where the same code may not. Only what ``vmap`` has
    batched remains a batch, in the way that is asked for.

    Args:
        function: of trees, which returns a tree that holds a tensor.
        inputs: the trees; what is no tensor is passed through.
        name: what the caller calls it, for messages.
        batched: how it is called for a batch.

    Raises:
        InputError: it has written to a tensor of its inputs.
        TransformError: it closes over a tensor that ``vmap`` has batched.
    """
    call = _OnTensors(function, inputs, name)
    with _explained(name):
        if not _transforms.active():
            return call.tree(call(*call.tensors))
        return call.tree(_Underneath.apply(call, batched, *call.tensors))


class _OnTensors:
    """A function of trees as one of their tensors, which keeps what else it returns."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...], name: str) -> None:
        self._function, self._name = function, name
        self._leaves, self._spec = pytree.tree_flatten(inputs)
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.tensors = [self._leaves[i].detach() for i in self._places]
        self._found: tuple[list[Any], Any] = ([], None)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        before = [_version(tensor) for tensor in tensors]
        with torch.no_grad():
            found = self._function(*pytree.tree_unflatten(leaves, self._spec))
        if before != [_version(tensor) for tensor in tensors]:
            raise InputError(
                f"{self._name} has written to a tensor that it was given, which is the caller's. "
                "Clone it first (x = x.clone()), or write the operation out of place."
            )
        leaves, spec = pytree.tree_flatten(found)
        # Without the tensors, which inside a transform are those of a level that ends.
        self._found = ([_PLACE if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        return tuple(_detached(leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def tree(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returned, with these tensors in it."""
        leaves, spec = self._found
        pending = iter(tensors)
        return pytree.tree_unflatten([next(pending) if x is _PLACE else x for x in leaves], spec)


_PLACE = object()


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; an inference tensor does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _detached(tensor: Tensor) -> Tensor:
    # No derivative can be attached to an inference tensor; to its copy made outside, it can.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


class _Underneath(torch.autograd.Function):
    """The way of ``torch.func`` to reach plain tensors; nothing is differentiated."""

    @staticmethod
    def forward(call: OnTensors, batched: Batched, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        call: OnTensors,
        batched: Batched,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        dims = in_dims[2:]
        if all(dim is None for dim in dims):  # batched is something else, such as a tangent
            found = _Underneath.apply(call, batched, *tensors)
            return found, (None,) * len(found)
        found = _Underneath.apply(batched(call, dims, info.randomness), batched, *tensors)
        return found, (0,) * len(found)


_NOT_CARRIED = (
    "calling .item()",
    "data-dependent control flow",
    "inplace arithmetic",
    "backward() called",
    "functorch transform",
)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say what the framework's errors mean for a function that is called in this way."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "escaped from inside a function being vmapped" in text:
            raise TransformError(
                f"{name} closes over a tensor that torch.func.vmap has batched. Pass it as an "
                "argument."
            ) from error
        if "does not require grad" in text:
            error.add_note(
                f"{name} is called without recording derivatives, on detached tensors. Where it "
                "differentiates by itself, put `with torch.enable_grad():` around that, or use "
                "torch.func.grad."
            )
        elif _transforms.active() and any(words in text for words in _NOT_CARRIED):
            error.add_note(
                f"Under torch.func.vmap, {name} has to be one that vmap can carry: with "
                "torch.func.grad in place of backward, and without .item() or a branch on a tensor."
            )
        raise
