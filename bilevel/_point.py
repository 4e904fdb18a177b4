"""A bilevel problem at one point: trees checked and taken apart, derivatives of both objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._autodiff import filled, fresh
from bilevel._checks import check_args
from bilevel._guard import Guard
from bilevel._tree import Layout, Tree, check_finite, check_same_kind, flatten, leaf_name
from bilevel.errors import InputError, NonFiniteError
from bilevel.products import HVP, Objective, Products, products
from bilevel.solution import State


@dataclass(frozen=True)
class Arguments:
    """What a hypergradient is asked for, as it came; see :func:`bilevel.implicit_grad`."""

    phi: Tree
    theta: Tree
    outer_args: Sequence[Any]
    inner_args: Sequence[Any]
    initial: Tree
    state: State | None
    return_info: bool


@dataclass(frozen=True)
class Point:
    """A problem at a point, its trees checked and taken apart."""

    hvp: HVP
    phi_tree: Tree
    theta_tree: Tree
    phi_layout: Layout
    theta_layout: Layout
    phi: list[Tensor]
    theta: list[Tensor]
    outer: Objective
    inner: Objective

    @classmethod
    def of(
        cls,
        outer: Callable[..., Tensor],
        inner: Callable[..., Tensor],
        hvp: HVP,
        phi: Tree,
        theta: Tree,
        outer_args: Sequence[Any],
        inner_args: Sequence[Any],
        curvature: Any = None,
    ) -> Point:
        phi_leaves, phi_layout = flatten(phi, "phi")
        theta_leaves, theta_layout = flatten(theta, "theta")
        check_same_kind(theta_layout, "theta", phi_layout, "phi")
        refuse_twice(theta, "theta")
        check_finite(phi, phi_leaves, "phi")
        check_finite(theta, theta_leaves, "theta")
        outer_args = usable(check_args(outer_args, "outer_args"))
        inner_args = usable(check_args(inner_args, "inner_args"))
        functions = [outer, inner, curvature]
        originals = [*phi_leaves, *theta_leaves]
        guard = Guard(functions, (outer_args, inner_args), theta_layout.device)
        return cls(
            hvp=hvp,
            phi_tree=phi,
            theta_tree=theta,
            phi_layout=phi_layout,
            theta_layout=theta_layout,
            phi=fresh(phi_leaves),
            theta=fresh(theta_leaves),
            outer=Objective(outer, "outer", phi_layout, theta_layout, outer_args, guard, originals),
            inner=Objective(inner, "inner", phi_layout, theta_layout, inner_args, guard, originals),
        )

    def first_order(self) -> tuple[Tensor, Sequence[Tensor | None], Tensor]:
        """The outer value, its gradient in phi (None where unused), and in theta, flat."""
        with torch.enable_grad():
            value = self.outer(self.phi, self.theta)
        if not value.requires_grad:
            raise InputError(
                "outer depends on neither phi nor theta in a way autograd can see. Use the tensors "
                "it is handed, without torch.no_grad or .detach() on the way."
            )
        found = torch.autograd.grad(value, [*self.phi, *self.theta], allow_unused=True)
        direct, slope = found[: len(self.phi)], found[len(self.phi) :]
        flat = self.theta_layout.join(filled(slope, self.theta))
        if not math.isfinite((value + flat.sum()).item()):
            _raise_non_finite("the value of outer", value)
            _raise_non_finite("the gradient of outer in theta", flat)
        return value.detach(), direct, flat

    def products(self) -> Products:
        """First and second derivatives of the inner objective."""
        made = products(self.hvp, self.inner, self.phi, self.theta)
        if not math.isfinite((made.value + made.gradient.sum()).item()):
            _raise_non_finite("the value of inner", made.value)
            _raise_non_finite("the gradient of inner in theta", made.gradient)
        return made


def refuse_twice(tree: Tree, argument: str) -> None:
    """Refuse a tree that holds one tensor at two places: each leaf is a variable of its own."""
    places: dict[int, int] = {}
    for index, leaf in enumerate(pytree.tree_leaves(tree)):
        first = places.setdefault(id(leaf), index)
        if first != index and isinstance(leaf, Tensor):
            raise InputError(
                f"{leaf_name(tree, index, argument)} is the very tensor of "
                f"{leaf_name(tree, first, argument)}; wanted every leaf of {argument} to be one of "
                "its own, as they are differentiated one apart from the other. Hold it once in the "
                "tree and use it twice in the function."
            )


def usable(tree: Tree) -> Tree:
    """A tree, also of other things, with copies of inference tensors: no backward can save them."""
    leaves, spec = pytree.tree_flatten(tree)
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves):
        return tree
    copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(copies, spec)


def _raise_non_finite(what: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"{what} is NaN or infinite. Look at the objective near theta (overflow, log of zero, "
            "division by zero, a derivative that does not exist there)."
        )


def check_depends(direct: Sequence[Tensor | None], mixed: Sequence[Tensor | None]) -> None:
    """Refuse a phi that nothing depends on: zeros would look like a converged answer."""
    if all(leaf is None for leaf in (*direct, *mixed)):
        raise InputError(
            "neither outer nor the theta-gradient of inner depends on phi in a way autograd can "
            "see, so the hypergradient would be zero. Use the phi the functions are handed, not "
            "one they close over."
        )
