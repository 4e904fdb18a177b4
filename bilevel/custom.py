"""Solve and attach in one call: decorators for solvers of one's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._checks import check_function
from bilevel._closures import follows
from bilevel._tree import Tree, flatten
from bilevel._unrecorded import unrecorded
from bilevel.errors import InputError
from bilevel.implicit import argmin, fixed_point, root
from bilevel.linear import OnFailure, check_options
from bilevel.operators import check_damping
from bilevel.solvers import Solver

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def custom_argmin(
    inner: Callable[..., Tensor],
    *,
    solver: Solver | None = None,
    damping: float = 0.0,
    has_aux: bool = False,
    on_failure: OnFailure = "warn",
) -> Decorator:
    """A decorator: your ``solve(phi, *args) -> theta_star`` becomes differentiable.

    A call runs your solver once, without recording derivatives, and attaches the derivative of the
    implicit function theorem to what it returns, as :func:`argmin` does: in phi and in the tensors
    of ``args``. It is right to the extent that the solver has arrived.

    The solver gets detached tensors. Where it differentiates by itself it may use ``torch.func``,
    the closures of ``torch.optim``, or ``torch.enable_grad()``. It is called underneath
    ``torch.func.grad``, ``vjp``, ``jvp`` and ``hessian``, on plain tensors, so that none of these
    is in its way; ``torch.func.vmap`` over what it is given needs a solver that it can carry.

    Args:
        inner: ``(phi, theta, *args) -> 0-d tensor``, twice differentiable.
        solver: for the adjoint; default :class:`bilevel.Auto`.
        damping: solves with ``H + damping I`` instead (biased, but stable); default 0.
        has_aux: whether your solver returns ``(theta_star, aux)``; the tensors of ``aux``, any
            tree, are detached. Default False.
        on_failure: see :func:`bilevel.solve`.

    Returns:
        What makes of ``solve(phi, *args, **options) -> theta_star`` a function of the same
        arguments. ``args`` reach ``inner`` too; keyword options reach your solver alone and are
        not differentiated, such as a first guess or a number of steps. One that requires grad is
        refused, and so is one named like an argument of ``inner``, which would not get it. Your
        solver may write to phi, of which it gets a copy, but not to ``args``.

    Raises:
        InputError: an option does not fit; when called, what the solver returned is no tree of
            floating tensors, or with ``has_aux`` no pair, and all that :func:`argmin` raises.
        TransformError: when called, the solver closes over a tensor that a ``vmap`` has batched;
            and as for :func:`argmin`.

    Example:
        >>> import torch
        >>> @custom_argmin(lambda phi, theta: (theta - phi**2) ** 2)
        ... def square(phi, steps=30):
        ...     theta = torch.zeros_like(phi)
        ...     for _ in range(steps):
        ...         theta = theta - 0.25 * 2 * (theta - phi**2)
        ...     return theta
        >>> torch.func.grad(square)(torch.tensor(3.0))
        tensor(6.)

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
    """
    check_function(inner, "inner")
    check_damping(damping)
    options: dict[str, Any] = {"solver": check_options(solver, on_failure), "damping": damping}
    attach = functools.partial(argmin, inner, on_failure=on_failure, **options)
    return _decorator("custom_argmin", "inner", inner, attach, has_aux)


def custom_root(
    condition: Callable[..., Tree],
    *,
    solver: Solver | None = None,
    symmetric: bool = False,
    has_aux: bool = False,
    on_failure: OnFailure = "warn",
) -> Decorator:
    """A decorator: your ``solve(phi, *args) -> x_star`` becomes differentiable.

    As :func:`custom_argmin`, for a solution of ``condition(phi, x, *args) = 0``; see :func:`root`.

    Args:
        condition: ``(phi, x, *args) ->`` a tree like x, zero at the solution.
        solver: default :class:`bilevel.Auto` (GMRES when large).
        symmetric: whether the Jacobian in x equals its transpose; default False.
        has_aux: whether your solver returns ``(x_star, aux)``; default False.
        on_failure: see :func:`bilevel.solve`.

    Returns:
        What makes of ``solve(phi, *args, **options) -> x_star`` a function of the same arguments.

    Raises:
        InputError: as for :func:`custom_argmin`, and :func:`root`.
        TransformError: as for :func:`custom_argmin`.

    Example:
        >>> import torch
        >>> @custom_root(lambda phi, x, power: x**power - phi)
        ... def power_root(phi, power):
        ...     x = torch.ones_like(phi)
        ...     for _ in range(20):
        ...         x = x - (x**power - phi) / (power * x ** (power - 1))
        ...     return x
        >>> torch.func.grad(power_root)(torch.tensor(8.0), 3)  # 1 / (3 x^2)
        tensor(0.0833)

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
    """
    check_function(condition, "condition")
    options: dict[str, Any] = {"solver": check_options(solver, on_failure), "symmetric": symmetric}
    attach = functools.partial(root, condition, on_failure=on_failure, **options)
    return _decorator("custom_root", "condition", condition, attach, has_aux)


def custom_fixed_point(
    map: Callable[..., Tree],
    *,
    solver: Solver | None = None,
    has_aux: bool = False,
    on_failure: OnFailure = "warn",
) -> Decorator:
    """A decorator: your ``solve(phi, *args) -> x_star`` becomes differentiable.

    As :func:`custom_argmin`, for a solution of ``x = map(phi, x, *args)``; see
    :func:`fixed_point`.

    Args:
        map: ``(phi, x, *args) ->`` a tree like x.
        solver: default :class:`bilevel.Auto` (GMRES when large).
        has_aux: whether your solver returns ``(x_star, aux)``; default False.
        on_failure: see :func:`bilevel.solve`.

    Returns:
        What makes of ``solve(phi, *args, **options) -> x_star`` a function of the same arguments.

    Raises:
        InputError: as for :func:`custom_argmin`, and :func:`fixed_point`.
        TransformError: as for :func:`custom_argmin`.

    Example:
        >>> import torch
        >>> @custom_fixed_point(lambda phi, z: z / 2 + phi)
        ... def settle(phi):
        ...     z = torch.zeros_like(phi)
        ...     for _ in range(40):
        ...         z = z / 2 + phi
        ...     return z
        >>> torch.func.grad(settle)(torch.tensor(1.0))
        tensor(2.)

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
    """
    check_function(map, "map")
    solver = check_options(solver, on_failure)
    attach = functools.partial(fixed_point, map, solver=solver, on_failure=on_failure)
    return _decorator("custom_fixed_point", "map", map, attach, has_aux)


def _decorator(
    name: str,
    argument: str,
    function: Callable[..., Any],
    attach: Callable[..., Tree],
    has_aux: bool,
) -> Decorator:
    parameters = _parameters(function)

    def decorate(solve: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(solve):
            raise InputError(
                f"@{name}({argument}) decorates a solver, solve(phi, *args, **options), but was "
                f"given {type(solve).__name__}. The decorator takes its function first: "
                f"@{name}({argument})."
            )
        called = getattr(solve, "__name__", type(solve).__name__)

        def checked(phi: Tree, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Tree, Any]:
            # A copy: theta = phi; theta -= ... is a natural way to begin.
            found = solve(pytree.tree_map_only(Tensor, torch.clone, phi), *args, **options)
            return _solution(found, f"what {called} returned", has_aux)

        @functools.wraps(solve)
        def attached(phi: Tree, *args: Any, **options: Any) -> Any:
            _refuse_recorded(options)
            _refuse_meant_for_both(options, parameters, called, argument)
            flatten(phi, "phi")
            x_star, aux = unrecorded(checked, (phi, args, options), called)
            x_star = attach(phi, x_star, args=args)
            return (x_star, aux) if has_aux else x_star

        return attached

    return decorate


def _refuse_recorded(options: dict[str, Any]) -> None:
    """Refuse options whose derivative somebody waits for: it would be lost without a word."""
    for name, option in options.items():
        tensors = [leaf for leaf in pytree.tree_leaves(option) if isinstance(leaf, Tensor)]
        # A batch of options is none of these: each example has its own.
        if any(x.requires_grad or follows(x) not in (None, "is being vmapped") for x in tensors):
            raise InputError(
                f"{name} is an option and requires grad (or is tracked by a transform), but "
                "options are not differentiated. Pass it as one of args, which reach the condition "
                "too, or detach it."
            )


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's arguments after phi and theta, as far as they can be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that is not written in Python
        return frozenset()
    in_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [one.name for one in parameters if one.kind in in_place]
    by_name = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    return frozenset(positional[2:] + by_name)


def _refuse_meant_for_both(
    options: dict[str, Any], parameters: frozenset[str], called: str, defined: str
) -> None:
    """Refuse options that the derivative would take another value of, its default."""
    for name in options:
        if name in parameters:
            raise InputError(
                f"{name} is given by keyword, which reaches {called} alone, but {defined} has an "
                f"argument {name} too: the derivative would be taken without the one given. Pass "
                f"it by position (args reach {called} and {defined}), or give the option of "
                f"{called} another name."
            )


def _solution(found: Any, what: str, has_aux: bool) -> tuple[Tree, Any]:
    """The solution and what comes with it, checked before a transform takes them apart."""
    if not has_aux:
        try:
            flatten(found, what)
        except InputError as error:
            hint = " With has_aux=True, a solver returns (x_star, aux)."
            raise InputError(f"{error}{hint if isinstance(found, tuple) else ''}") from None
        return found, None
    if not isinstance(found, tuple) or len(found) != 2:
        size = f" of {len(found)}" if isinstance(found, tuple) else ""
        raise InputError(
            f"{what} is a {type(found).__name__}{size}; with has_aux=True wanted (x_star, aux)."
        )
    flatten(found[0], f"{what}[0]")
    return found
