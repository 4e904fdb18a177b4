"""Solutions as differentiable functions of their parameters: argmin, root and fixed point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel import _autodiff, _transforms
from bilevel._checks import check_args, check_function, check_scalar, refuse_unused
from bilevel._closures import Constant, behind, has_tangent
from bilevel._guard import Guard
from bilevel._implicit_function import Attach, Condition
from bilevel._point import refuse_twice, usable
from bilevel._tree import Layout, Tree, check_same_kind, flatten, refuse_sparse
from bilevel.errors import InputError, TransformError
from bilevel.linear import OnFailure, check_options
from bilevel.operators import check_damping
from bilevel.solvers import Solver


def argmin(
    inner: Callable[..., Tensor],
    phi: Tree,
    theta_star: Tree,
    *,
    args: Sequence[Any] = (),
    solver: Solver | None = None,
    damping: float = 0.0,
    on_failure: OnFailure = "warn",
) -> Tree:
    """``theta_star``, as a differentiable function of phi: ``argmin_theta inner(phi, theta)``.

    The value is ``theta_star`` as given; it is not improved (:meth:`bilevel.ImplicitProblem.refine`
    does that). Its derivative is ``-H^-1 d_theta d_phi inner``, right to the extent that theta_star
    is stationary. Composes with ``torch.autograd`` and ``torch.func`` (vjp, jvp, vmap, hessian) to
    any order. Tensors in ``args`` are differentiated like phi; a tensor that requires grad and
    reaches ``inner`` in any other way is refused, because its derivative would be lost.

    So is an ``inner`` that has changed by the time it is differentiated (a variable of a loop, a
    buffer written anew). To find that out, ``inner`` is evaluated twice when the solution is
    attached and once more for each linear solve: at theta_star, and with its gradient a tenth of
    its size off, where what it raises is passed over. A curvature that has changed by less than
    1e-5 of it (in float32, 4e-3) may go unnoticed.

    Args:
        inner: ``(phi, theta, *args) -> 0-d tensor``, twice differentiable.
        phi: pytree of floating tensors.
        theta_star: pytree of floating tensors, the minimiser for this phi.
        args: passed through; batches, targets, modules.
        solver: for the adjoint; default :class:`bilevel.Auto`.
        damping: solves with ``H + damping I`` instead (biased, but stable); default 0.
        on_failure: see :func:`bilevel.solve`.

    Returns:
        A tree like ``theta_star``.

    Raises:
        InputError: a tree, the objective's value or an option does not fit; when differentiated,
            ``inner`` is found to have changed since.
        TransformError: ``inner`` closes over a tensor that a transform tracks.

    Example:
        >>> import torch
        >>> phi = torch.tensor(3.0, requires_grad=True)
        >>> theta = argmin(lambda p, t: (t - p**2) ** 2, phi, torch.tensor(9.0))
        >>> torch.autograd.grad(theta, phi)[0]  # d phi^2 / d phi
        tensor(6.)

    Reference:
        Krantz and Parks, The implicit function theorem, 2002; Blondel et al., Efficient and modular
        implicit differentiation, 2022.
    """
    check_damping(damping)

    names = ("inner", "theta_star")
    return _attach(inner, phi, theta_star, args, names, solver, on_failure, damping, scalar=True)


def root(
    condition: Callable[..., Tree],
    phi: Tree,
    x_star: Tree,
    *,
    args: Sequence[Any] = (),
    solver: Solver | None = None,
    symmetric: bool = False,
    on_failure: OnFailure = "warn",
) -> Tree:
    """``x_star``, as a differentiable function of phi: the root of ``condition(phi, x) = 0``.

    As :func:`argmin`, with any optimality condition in place of a gradient: KKT systems,
    equilibria, stationarity of a game. The Jacobian ``A = d_x condition`` need not be symmetric:
    the vjp solves with its transpose, the jvp with itself.

    Args:
        condition: ``(phi, x, *args) ->`` a tree like x, zero at the solution.
        phi: pytree of floating tensors.
        x_star: pytree of floating tensors, the root for this phi.
        args: passed through; differentiated like phi where they are floating tensors.
        solver: default :class:`bilevel.Auto` (GMRES when large).
        symmetric: whether A equals its transpose, as for KKT systems; CG and MINRES need it said.
        on_failure: see :func:`bilevel.solve`.

    Returns:
        A tree like ``x_star``.

    Raises:
        InputError: a tree or an option does not fit, or the condition returns another tree; when
            differentiated, ``condition`` is found to have changed since, as for :func:`argmin`.
        TransformError: ``condition`` closes over a tensor that a transform tracks.

    Example:
        >>> import torch
        >>> phi = torch.tensor(4.0, requires_grad=True)
        >>> x = root(lambda p, x: x**2 - p, phi, torch.tensor(2.0))
        >>> torch.autograd.grad(x, phi)[0]  # 1 / (2 sqrt(phi))
        tensor(0.2500)

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, 2022.
    """
    names = ("condition", "x_star")
    return _attach(condition, phi, x_star, args, names, solver, on_failure, symmetric=symmetric)


def fixed_point(
    map: Callable[..., Tree],
    phi: Tree,
    x_star: Tree,
    *,
    args: Sequence[Any] = (),
    solver: Solver | None = None,
    on_failure: OnFailure = "warn",
) -> Tree:
    """``x_star``, as a differentiable function of phi: the fixed point ``x = map(phi, x)``.

    The root of ``x - map(phi, x)``; see :func:`root`. With a contraction, ``Neumann(terms,
    step=1.0)`` is the classical truncated series and needs no transposed solve beyond products.

    Args:
        map: ``(phi, x, *args) ->`` a tree like x.
        phi: pytree of floating tensors.
        x_star: pytree of floating tensors, the fixed point for this phi.
        args: passed through; differentiated like phi where they are floating tensors.
        solver: default :class:`bilevel.Auto` (GMRES when large).
        on_failure: see :func:`bilevel.solve`.

    Returns:
        A tree like ``x_star``.

    Raises:
        InputError: a tree or an option does not fit, or the map returns another tree; when
            differentiated, ``map`` is found to have changed since, as for :func:`argmin`.
        TransformError: ``map`` closes over a tensor that a transform tracks.

    Example:
        >>> import torch
        >>> phi = torch.tensor(1.0, requires_grad=True)
        >>> z = fixed_point(lambda p, z: z / 2 + p, phi, torch.tensor(2.0))
        >>> torch.autograd.grad(z, phi)[0]
        tensor(2.)

    Reference:
        Bai, Kolter and Koltun, Deep equilibrium models, 2019, theorem 1.
    """
    check_function(map, "map")

    def condition(p: Tree, x: Tree, *rest: Any) -> Tree:
        leaves, layout = flatten(x, "x_star")
        image = layout.matching_leaves(map(p, x, *rest), "what map returned", "x_star")
        return layout.tree([a - b for a, b in zip(leaves, image, strict=True)])

    names = ("map", "x_star")
    return _attach(condition, phi, x_star, args, names, solver, on_failure)


def _attach(
    function: Callable[..., Any],
    phi: Tree,
    x_star: Tree,
    args: Sequence[Any],
    names: tuple[str, str],
    solver: Solver | None,
    on_failure: OnFailure,
    damping: float = 0.0,
    scalar: bool = False,
    symmetric: bool = False,
) -> Tree:
    """``x_star`` as the root of a function, or of the gradient of a scalar one."""
    check_function(function, names[0])
    solver = check_options(solver, on_failure)
    symmetric = symmetric or scalar
    if solver.needs_symmetric and not symmetric:
        raise InputError(
            f"{type(solver).__name__} needs a symmetric Jacobian, and that of {names[0]} is not "
            "known to be. Use GMRES or BiCGStab, or root(..., symmetric=True) where it is."
        )
    x_leaves, layout = flatten(x_star, names[1])
    refuse_twice(x_star, names[1])
    given = _Parameters.of(phi, args)
    check_same_kind(layout, names[1], given.phi, "phi")
    guard = Guard([function], args, layout.device)

    def evaluated(p: Tree, x: Tree, *rest: Any) -> list[Tensor]:
        with guard.replay(), _autodiff.uncompiled():
            found = function(p, x, *rest)
        if scalar:
            return [check_scalar(found, names[0])]
        return layout.matching_leaves(found, f"what {names[0]} returned", names[1])

    # All derivatives, whenever they are asked for, are taken at the solution.
    value = Constant(evaluated, names[0])

    def trees(x: Tensor, params: Sequence[Tensor]) -> tuple[Any, ...]:
        phi, args = given.trees(params)
        return phi, layout.unflatten(x), *args

    def field(x: Tensor, *params: Tensor) -> Tensor:
        at = trees(x, params)
        return layout.join(_slope(value, damping, *at) if scalar else value(*at))

    def probe(x: Tensor, *params: Tensor) -> Tensor:
        found = value(*trees(x, params))
        if scalar and _transforms.active():
            # Inside a transform nobody else would see a function that cuts its second derivative.
            _autodiff.gradient(found[0], [x], names[0], create_graph=True)
        return torch.cat([leaf.reshape(-1) for leaf in found])

    x = layout.join([leaf.detach() for leaf in x_leaves])
    if _transforms.differentiating():
        state = behind(probe, [x, *given.tensors])
        if state is not None:
            raise _lost(names[0], state)
        with guard.replay():
            value.attach(*trees(x, given.tensors))
    made = Condition(field, symmetric, solver, damping, on_failure, guard, value.ask)
    # A copy, which may be written to: what is attached is needed for the derivative.
    return layout.unflatten(Attach.apply(made, x, *given.tensors).clone())


_TENSOR = object()
"""Marks where a tensor stood."""


@dataclass(frozen=True)
class _Parameters:
    """phi and args taken apart into tensors, which derivatives are taken in, and all else.

    Attributes:
        phi: layout of phi.
        tensors: the leaves of phi, then the tensors among those of args.
        others: the leaves of args, a mark in place of each tensor.
        spec: the tree of args.
    """

    phi: Layout
    tensors: list[Tensor]
    others: list[Any]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, phi: Tree, args: Sequence[Any]) -> _Parameters:
        phi_leaves, layout = flatten(usable(phi), "phi")
        leaves, spec = pytree.tree_flatten(usable(check_args(args, "args")))
        tensors = [*phi_leaves, *(leaf for leaf in leaves if isinstance(leaf, Tensor))]
        if any(tensor.is_complex() and _is_followed(tensor) for tensor in tensors):
            raise InputError(
                "args holds a complex tensor that requires grad, or carries a forward derivative; "
                "only real ones may."
            )
        others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(layout, tensors, others, spec)

    def trees(self, tensors: Sequence[Tensor]) -> tuple[Tree, tuple[Any, ...]]:
        """Both with other tensors in them."""
        pending = iter(tensors)
        phi = self.phi.tree([next(pending) for _ in self.phi.sizes])
        leaves = [next(pending) if leaf is _TENSOR else leaf for leaf in self.others]
        return phi, pytree.tree_unflatten(leaves, self.spec)


def _is_followed(tensor: Tensor) -> bool:
    plain = _transforms.pushing() and not _transforms.active()
    return tensor.requires_grad or (plain and has_tangent(tensor))


def _slope(
    value: Callable[..., Sequence[Tensor]], damping: float, p: Tree, t: Tree, *rest: Any
) -> list[Tensor]:
    """The leaves of ``d_theta inner``, differentiable again."""
    if _transforms.active():
        return pytree.tree_leaves(torch.func.grad(lambda moving: value(p, moving, *rest)[0])(t))
    leaves, spec = pytree.tree_flatten(t)
    with torch.enable_grad():
        leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in leaves]
        (objective,) = value(p, pytree.tree_unflatten(leaves, spec), *rest)
        found = _autodiff.gradient(objective, leaves, "inner", create_graph=True)
        refuse_sparse(found, "inner")
        if not damping:
            unused = [index for index, leaf in enumerate(found) if leaf is None]
            refuse_unused("inner", unused, t, "theta_star")
        return _autodiff.filled(found, leaves)


def _lost(name: str, state: str) -> InputError | TransformError:
    kind = TransformError if _transforms.active() else InputError
    return kind(
        f"{name} uses a tensor that {state} but is part of neither phi nor args: its part in the "
        "derivative would be lost without a word. Pass it in phi or args=(...), or detach it "
        "(requires_grad_(False) for frozen parameters)."
    )
