"""One flat vector for the user's pytree of tensors, and checks that name the offending leaf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel.errors import InputError, NonFiniteError

Tree = Any
"""A pytree of floating tensors: a tensor, or nested lists, tuples and dicts of them."""


@dataclass(frozen=True)
class Layout:
    """How a tree's leaves lie in one flat vector.

    Attributes:
        spec: the tree's structure.
        shapes: shape of each leaf, in flattening order.
        sizes: number of elements of each leaf.
        dtype: the one dtype of all leaves.
        device: the one device of all leaves.
    """

    spec: pytree.TreeSpec
    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def join(self, leaves: Sequence[Tensor]) -> Tensor:
        """Leaves to one flat vector ``[n]``, sparse gradients of embeddings included."""
        if any(leaf.layout is not torch.strided for leaf in leaves):
            leaves = [leaf.to_dense() for leaf in leaves]
        if len(leaves) == 1:
            return leaves[0].reshape(-1)
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector ``[n]`` to leaves, as views of it."""
        # One by one: views that come from one call cannot be written to in a graph.
        starts = accumulate(self.sizes, initial=0)
        parts = zip(starts, self.sizes, self.shapes, strict=False)
        return [vector.narrow(0, at, size).view(shape) for at, size, shape in parts]

    def tree(self, leaves: Sequence[Any]) -> Tree:
        """Leaves to the user's tree."""
        return pytree.tree_unflatten(list(leaves), self.spec)

    def unflatten(self, vector: Tensor) -> Tree:
        """A flat vector ``[n]`` to the user's tree, as views of it."""
        return self.tree(self.split(vector))

    def empty(self) -> Layout:
        """The layout of a tree without leaves, of the same dtype and device."""
        return Layout(pytree.tree_structure(()), (), (), self.dtype, self.device)

    def matching_leaves(self, tree: Tree, argument: str, like: str) -> list[Tensor]:
        """The leaves of ``tree``, refused unless structure, shapes, dtype and device match."""
        leaves, other = flatten(tree, argument)
        if other.spec != self.spec:
            tree = _reordered(tree, self.tree(range(len(self.shapes))))
            leaves, other = flatten(tree, argument)
        if other.spec != self.spec:
            raise InputError(
                f"{argument} has another tree structure than {like}: "
                f"{other.spec} found, {self.spec} wanted."
            )
        for index, (found, wanted) in enumerate(zip(other.shapes, self.shapes, strict=True)):
            if found != wanted:
                raise InputError(
                    f"{leaf_name(tree, index, argument)} has shape {tuple(found)}, but {like} has "
                    f"{tuple(wanted)} there."
                )
        if (other.dtype, other.device) != (self.dtype, self.device):
            raise InputError(
                f"{argument} is {other.dtype} on {other.device}, but {like} is {self.dtype} on "
                f"{self.device}. Convert it first."
            )
        return leaves


def flatten(tree: Tree, argument: str) -> tuple[list[Tensor], Layout]:
    """Check a tree and take it apart.

    Args:
        tree: a pytree of floating tensors, all of one dtype and on one device.
        argument: what the caller named it, for messages.

    Returns:
        The leaves as they are, and their layout.

    Raises:
        InputError: no leaf, or one that is no dense floating tensor, or mixed dtypes or devices.
    """
    if isinstance(tree, torch.nn.Module):
        raise InputError(
            f"{argument} is a module ({type(tree).__name__}); pass its parameters instead: "
            "dict(module.named_parameters())."
        )
    leaves, spec = pytree.tree_flatten(tree)
    if not leaves:
        raise InputError(f"{argument} has no leaves; wanted at least one floating tensor.")
    first = leaves[0]
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{leaf_name(tree, index, argument)} is a {type(leaf).__name__}; "
                "wanted a floating tensor (torch.as_tensor makes one)."
            )
        if not leaf.is_floating_point():
            raise InputError(
                f"{leaf_name(tree, index, argument)} has dtype {leaf.dtype}; wanted a floating "
                "dtype. Integers have no derivative: pass them through inner_args and outer_args."
            )
        if leaf.layout is not torch.strided:
            raise InputError(
                f"{leaf_name(tree, index, argument)} has layout {leaf.layout}; wanted a dense "
                "tensor (.to_dense())."
            )
        if leaf.dtype != first.dtype or leaf.device != first.device:
            raise InputError(
                f"{leaf_name(tree, index, argument)} is {leaf.dtype} on {leaf.device}, but "
                f"{leaf_name(tree, 0, argument)} is {first.dtype} on {first.device}. "
                "All leaves need one dtype and one device."
            )
    shapes = tuple(leaf.shape for leaf in leaves)
    sizes = tuple(math.prod(shape) for shape in shapes)
    return leaves, Layout(spec, shapes, sizes, first.dtype, first.device)


def _reordered(tree: Tree, like: Tree) -> Tree:
    """The same tree with the keys of its dicts in the order of another's, if they agree."""
    if isinstance(like, dict) and type(tree) is type(like) and tree.keys() == like.keys():
        return type(like)((key, _reordered(tree[key], like[key])) for key in like)
    if isinstance(like, list | tuple) and type(tree) is type(like) and len(tree) == len(like):
        items = [_reordered(item, other) for item, other in zip(tree, like, strict=True)]
        return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)
    return tree


def refuse_sparse(gradient: Sequence[Tensor | None], name: str) -> None:
    """Refuse a gradient that is to be differentiated again and is sparse."""
    if any(leaf is not None and leaf.layout is not torch.strided for leaf in gradient):
        raise InputError(
            f"{name} has a sparse gradient (an embedding with sparse=True), which cannot be "
            "differentiated again. Use sparse=False."
        )


def leaf_name(tree: Tree, index: int, argument: str) -> str:
    """The name of the leaf at a flattening index, as one would write it: ``theta['weight'][0]``."""
    paths = pytree.tree_flatten_with_path(tree)[0]
    return argument + pytree.keystr(paths[index][0])


def check_same_kind(layout: Layout, argument: str, other: Layout, other_argument: str) -> None:
    """Refuse two trees of different dtype or device."""
    if (layout.dtype, layout.device) != (other.dtype, other.device):
        raise InputError(
            f"{argument} is {layout.dtype} on {layout.device}, but {other_argument} is "
            f"{other.dtype} on {other.device}. Convert one of them."
        )


def check_finite(tree: Tree, leaves: Sequence[Tensor], argument: str) -> None:
    """Refuse a tree that holds a NaN or an infinity, naming the leaf.

    One synchronisation when all is well: a sum over finite numbers that is itself finite clears
    the whole tree, and only a suspicious sum is looked into leaf by leaf.
    """
    with torch.no_grad():
        total = torch.stack([leaf.sum() for leaf in leaves]).sum()
    if math.isfinite(total.item()):
        return
    for index, leaf in enumerate(leaves):
        bad = int((~torch.isfinite(leaf)).sum())
        if bad:
            raise NonFiniteError(
                f"{leaf_name(tree, index, argument)} holds {bad} non-finite value(s) of "
                f"{leaf.numel()}. They would spread to the whole gradient; look at the step that "
                "made them (learning rate, log of zero, overflow)."
            )


def natural_scales(leaves: Sequence[Tensor]) -> Tensor:
    """The root mean square of its leaf for every entry of the flat vector ``[n]``.

    For a leaf of zeros that of all leaves, or 1.
    """
    squares = [leaf.square().mean() if leaf.numel() else leaf.new_zeros(()) for leaf in leaves]
    total = torch.cat([leaf.reshape(-1) for leaf in leaves]).square().sum()
    overall = (total / max(1, sum(leaf.numel() for leaf in leaves))).sqrt()
    overall = torch.where(overall > 0, overall, 1.0)
    scales = [torch.where(square > 0, square.sqrt(), overall) for square in squares]
    return torch.cat([s.expand(leaf.numel()) for s, leaf in zip(scales, leaves, strict=True)])
