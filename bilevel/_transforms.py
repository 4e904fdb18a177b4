"""Whether ``torch.func`` transforms are at work, and what to say when they may not be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._C._functorch as _functorch  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from bilevel.errors import TransformError


def active() -> bool:
    """True inside ``torch.func.vmap``, ``grad``, ``vjp``, ``jvp`` and their kin."""
    return _functorch.peek_interpreter_stack() is not None


def differentiating() -> bool:
    """Whether anything could be recording derivatives: autograd, a dual level, a transform."""
    return torch.is_grad_enabled() or pushing() or active()


def pushing() -> bool:
    """Whether a dual level of ``torch.autograd.forward_ad`` is open."""
    return forward_ad._current_level >= 0


def unwrapped(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as they are once the transform that wrapped them has ended.

    The function that ``torch.func.vjp`` returns runs after it; what a rule has saved then still
    wears a wrapper that no longer records, and every derivative taken through it would be zero.
    """
    return [_inside(tensor) for tensor in tensors]


def _inside(tensor: Tensor) -> Tensor:
    while (inside := _functorch.unwrap_if_dead(tensor)) is not tensor:
        tensor = inside
    return tensor


@contextmanager
def naming_ended() -> Iterator[None]:
    """Say what the framework's internal assertion on a wrapper of an ended transform means."""
    try:
        yield
    except RuntimeError as error:
        if "INTERNAL ASSERT" not in str(error) or "level" not in str(error):
            raise
        raise TransformError(
            "a function that defines a solution closes over a tensor that was made inside a "
            "torch.func transform and has ended with it. Pass that tensor in args=(...) "
            "(inner_args of a problem), or make it outside the transform."
        ) from error


def wrapped(*trees: Any) -> bool:
    """Whether a transform at work has wrapped a tensor of these trees."""
    return active() and any(
        isinstance(leaf, Tensor) and _functorch.is_functorch_wrapped_tensor(leaf)
        for leaf in pytree.tree_leaves(trees)
    )


def refuse_inside(name: str) -> None:
    """Refuse any transform, for functions that build a graph of their own."""
    if active():
        raise TransformError(
            f"{name} cannot be used inside torch.func transforms: it differentiates by itself. "
            "Call it outside; bilevel.argmin, root, fixed_point and implicit_grad work inside."
        )


def refuse_legacy_vmap(tensor: Tensor) -> None:
    """Refuse the older ``vmap`` of ``torch.autograd``, which custom functions cannot enter."""
    if _functorch.is_legacy_batchedtensor(tensor):
        raise TransformError(
            "is_grads_batched=True and torch.autograd.functional with vectorize=True are not "
            "carried by implicit functions. Use torch.func: vmap, jacrev, jacfwd, hessian."
        )


def refuse_forward_over_forward() -> None:
    """Refuse a forward derivative of a forward derivative.

    ``torch.autograd.Function`` drops the outer tangent there without a word (seen in torch 2.13:
    the second derivative of a cube comes out as 0), so a wrong number would be returned.
    """
    stack = _functorch.get_interpreter_stack() or []
    forward = [level for level in stack if level.key() == _functorch.TransformType.Jvp]
    if len(forward) > 1:
        raise TransformError(
            "a forward derivative of a forward derivative of an implicit function is not carried "
            "by torch.autograd.Function. Use torch.func.jacrev(jacrev(f)). torch.func.hessian and "
            "jacfwd(jacrev(f)), which are forward once, do as well, but not where one implicit "
            "function is solved inside another."
        )
