"""``ImplicitProblem``: hypergradients, with a report of what they rest on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel import _transforms
from bilevel._autodiff import copied, filled, uncompiled
from bilevel._checks import check_args, check_function, check_scalar, refuse_unused
from bilevel._closures import refuse_tangents
from bilevel._guard import Guard
from bilevel._point import Arguments, Point, check_depends, refuse_twice
from bilevel._tree import Tree, check_finite, check_same_kind, flatten
from bilevel.curvature import GaussNewton, GaussNewtonOperator, HessianOperator
from bilevel.errors import InputError, TransformError
from bilevel.implicit import argmin
from bilevel.linear import OnFailure, check_options, solve_rows
from bilevel.operators import LinearOperator, check_damping, damped
from bilevel.products import HVP, Products, check_hvp
from bilevel.refine import refine
from bilevel.report import HypergradientInfo, hypergradient_info, name_negative_curvature
from bilevel.solution import State
from bilevel.solvers import Auto, Solver


@dataclass(frozen=True)
class ImplicitProblem:
    """A bilevel problem and how its hypergradients are taken.

    Minimise ``outer(phi, theta*(phi))`` where ``theta*(phi) = argmin_theta inner(phi, theta)``.

    Args:
        outer: ``(phi, theta, *outer_args) -> 0-d tensor``.
        inner: ``(phi, theta, *inner_args) -> 0-d tensor``, twice differentiable in theta.
        solver: of the adjoint system; default :class:`bilevel.Auto`.
        damping: solves with ``H + damping I`` (default 0). Biased towards the direct part, stable
            where H is singular or slightly indefinite.
        curvature: what stands for the Hessian; None (default) for the Hessian itself, or a
            :class:`bilevel.GaussNewton`.
        hvp: how Hessian-vector products are made. ``"auto"`` (default) keeps the gradient's graph
            and falls back to finite differences, with a warning, where the framework refuses to
            differentiate twice; ``"reverse"``, ``"forward_over_reverse"`` and
            ``"finite_difference"`` force one way.
        on_failure: what a failed solve does: ``"warn"`` (default), ``"raise"`` or ``"ignore"``.
        compile: compile the computation on the first call of its kind and use that from then on
            (default False). Pays where calls are many and parameters few. What cannot be compiled
            is computed as without it; the page "The compiled path" says what that is.

    Raises:
        InputError: an option does not fit.

    Example:
        >>> import torch
        >>> problem = ImplicitProblem(
        ...     outer=lambda phi, theta: (theta - 1) ** 2,
        ...     inner=lambda phi, theta: (theta - 2 * phi) ** 2,
        ... )
        >>> problem.implicit_grad(torch.tensor(1.0), torch.tensor(2.0))  # 2 (theta - 1) * 2
        tensor(4.)
    """

    outer: Callable[..., Tensor]
    inner: Callable[..., Tensor]
    solver: Solver | None = None
    damping: float = 0.0
    curvature: GaussNewton | None = None
    hvp: HVP = "auto"
    on_failure: OnFailure = "warn"
    compile: bool = False

    def __post_init__(self) -> None:
        check_function(self.outer, "outer")
        check_function(self.inner, "inner")
        check_options(self.solver, self.on_failure)
        check_damping(self.damping)
        check_hvp(self.hvp)
        if self.curvature is not None and not isinstance(self.curvature, GaussNewton):
            raise InputError(
                f"curvature must be None or a bilevel.GaussNewton, found {self.curvature!r}."
            )
        if self.compile and (self.curvature is not None or self.hvp not in ("auto", "reverse")):
            raise InputError(
                "compile=True compiles products with the Hessian through its kept graph: leave "
                f"curvature and hvp alone (found hvp={self.hvp!r}), or compile=False."
            )

    @overload
    def implicit_grad(
        self,
        phi: Tree,
        theta: Tree,
        *,
        outer_args: Sequence[Any] = (),
        inner_args: Sequence[Any] = (),
        initial: Tree = None,
        state: State | None = None,
        return_info: Literal[False] = False,
    ) -> Tree: ...

    @overload
    def implicit_grad(
        self,
        phi: Tree,
        theta: Tree,
        *,
        outer_args: Sequence[Any] = (),
        inner_args: Sequence[Any] = (),
        initial: Tree = None,
        state: State | None = None,
        return_info: Literal[True],
    ) -> tuple[Tree, HypergradientInfo]: ...

    def implicit_grad(
        self,
        phi: Tree,
        theta: Tree,
        *,
        outer_args: Sequence[Any] = (),
        inner_args: Sequence[Any] = (),
        initial: Tree = None,
        state: State | None = None,
        return_info: bool = False,
    ) -> Tree:
        """The hypergradient at ``(phi, theta)``; see :func:`bilevel.implicit_grad`."""
        if _transforms.active():
            if return_info or initial is not None or state is not None:
                raise TransformError(
                    "return_info, initial and state are not carried by torch.func transforms. "
                    "Leave them out inside vmap, grad and the like."
                )
            return self._transformed(phi, theta, outer_args, inner_args)
        refuse_tangents("implicit_grad", phi, theta, outer_args, inner_args)
        given = Arguments(phi, theta, outer_args, inner_args, initial, state, return_info)
        plain = functools.partial(self._plain, given)
        with torch.inference_mode(False):
            if not self.compile:
                return plain()
            refuse_twice(theta, "theta")  # a program may be there already, made for two tensors
            # Imported here: the compiler's front takes a while, which only this should pay.
            from bilevel._compiling import dispatch

            options = dispatch.Options(
                self.outer, self.inner, self.solver or Auto(), self.damping, self.on_failure
            )
            return dispatch.hypergradient(options, given, plain)

    def _plain(self, given: Arguments) -> Tree:
        point = self._point(given.phi, given.theta, given.outer_args, given.inner_args)
        # Around all of it, for what runs the functions again by itself (a checkpoint).
        with point.inner.guard.replay():
            return self._hypergradient(point, given.initial, given.state, given.return_info)

    def _hypergradient(
        self, point: Point, initial: Tree, state: State | None, return_info: bool
    ) -> Tree:
        guess = None
        if initial is not None:
            leaves = point.theta_layout.matching_leaves(initial, "initial", "theta")
            check_finite(initial, leaves, "initial")
            guess = point.theta_layout.join([leaf.detach() for leaf in leaves]).unsqueeze(0)

        outer_value, direct, slope = point.first_order()
        inner = point.products()
        if not self.damping:
            refuse_unused("inner", inner.unused, point.theta_tree, "theta")
        operator = self._operator(inner, point)
        solution = solve_rows(
            operator,
            slope.unsqueeze(0),
            self.solver,
            guess,
            state,
            self.on_failure,
            full=return_info,
        )
        name_negative_curvature(solution, self.damping, self.on_failure)
        adjoint = solution.value.squeeze(0)
        mixed = inner.mixed(adjoint)
        check_depends(direct, mixed)
        mixed = filled(mixed, point.phi)
        pairs = zip(direct, mixed, strict=True)
        gradient = [-m if d is None else d - m for d, m in pairs]
        tree = point.phi_layout.tree(gradient)
        check_finite(tree, gradient, "the hypergradient in phi")
        if not return_info:
            return tree
        direct = filled(direct, point.phi)
        implicit = [-leaf for leaf in mixed]
        layouts = (point.phi_layout, point.theta_layout)
        return tree, hypergradient_info(
            *layouts, outer_value, direct, implicit, adjoint, inner.gradient, inner.name, solution
        )

    def solution(self, phi: Tree, theta_star: Tree, *, inner_args: Sequence[Any] = ()) -> Tree:
        """``theta_star`` with the implicit derivative attached, for any differentiable code.

        See :func:`bilevel.argmin`, which it calls with this problem's solver and damping.

        Raises:
            InputError: a tree does not fit; or this problem's ``curvature`` or ``hvp`` is one that
                only :meth:`implicit_grad` can use.
        """
        if self.curvature is not None or self.hvp == "finite_difference":
            raise InputError(
                "solution() differentiates to any order through the exact Hessian; Gauss-Newton "
                'curvature and hvp="finite_difference" work with implicit_grad() alone.'
            )
        return argmin(
            self.inner,
            phi,
            theta_star,
            args=inner_args,
            solver=self.solver,
            damping=self.damping,
            on_failure=self.on_failure,
        )

    def operator(self, phi: Tree, theta: Tree, *, inner_args: Sequence[Any] = ()) -> LinearOperator:
        """The curvature that would be inverted at a point, damping included, as an operator.

        It stays that of this point when phi or theta are written to afterwards.
        """
        _transforms.refuse_inside("operator()")
        refuse_tangents("operator()", phi, theta, inner_args)
        with torch.inference_mode(False):
            point = self._point(phi, theta, (), inner_args)
            point = replace(point, phi=copied(point.phi), theta=copied(point.theta))
            return self._operator(point.products(), point)

    def stationarity(self, phi: Tree, theta: Tree, *, inner_args: Sequence[Any] = ()) -> float:
        """The norm of ``d_theta inner``: how far theta is from solving the inner problem."""
        _transforms.refuse_inside("stationarity()")
        with torch.inference_mode(False):
            point = self._point(phi, theta, (), inner_args)
            return float(torch.linalg.vector_norm(point.products().gradient))

    def refine(
        self,
        phi: Tree,
        theta: Tree,
        *,
        inner_args: Sequence[Any] = (),
        tolerance: float | None = None,
        max_steps: int = 100,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    ) -> Tree:
        """Polish theta until ``||d_theta inner|| <= tolerance``.

        Args:
            phi: where.
            theta: the start; not changed.
            inner_args: passed to ``inner``.
            tolerance: on the stationarity; default ``sqrt(eps)`` (1.5e-8 in float64, 3.5e-4 in
                float32) times the scale of the gradient: its norm at the start, or what doubling
                theta would change it by, whichever is larger.
            max_steps: most steps, default 100. Missing the tolerance then warns.
            optimizer: ``leaves -> torch optimizer``, such as ``torch.optim.LBFGS``;
                default Newton's method with CG, a line search and this problem's damping.

        Returns:
            A new tree like theta.

        Raises:
            InputError: a tree or an option does not fit.
            NonFiniteError: the inner objective became NaN or infinite.

        Example:
            >>> import torch
            >>> problem = ImplicitProblem(lambda p, t: t.sum(), lambda p, t: (t - p).pow(4).sum())
            >>> theta = problem.refine(torch.tensor([1.0]), torch.tensor([3.0]), tolerance=1e-3)
            >>> bool((theta - 1).abs() < 0.1)
            True
        """
        _transforms.refuse_inside("refine()")
        with torch.inference_mode(False):
            point = self._point(phi, theta, (), inner_args)
            with point.inner.guard.replay():
                return refine(
                    point.inner,
                    point.phi,
                    point.theta,
                    self.hvp,
                    self.damping,
                    tolerance,
                    max_steps,
                    optimizer,
                )

    def _point(
        self, phi: Tree, theta: Tree, outer_args: Sequence[Any], inner_args: Sequence[Any]
    ) -> Point:
        return Point.of(
            self.outer, self.inner, self.hvp, phi, theta, outer_args, inner_args, self.curvature
        )

    def _operator(self, inner: Products, point: Point) -> LinearOperator:
        if self.curvature is None:
            base: LinearOperator = HessianOperator(inner, point.theta_layout)
        else:
            base = GaussNewtonOperator(
                self.curvature,
                point.phi_layout.tree(point.phi),
                point.theta,
                point.theta_layout,
                point.inner.args,
                point.inner.guard,
                pytree.tree_leaves(point.theta_tree),
            )
        return damped(base, self.damping)

    def _transformed(
        self,
        phi: Tree,
        theta: Tree,
        outer_args: Sequence[Any],
        inner_args: Sequence[Any],
    ) -> Tree:
        """Inside a transform: the gradient of ``outer(phi, argmin(phi))``, which composes."""
        outer_args = check_args(outer_args, "outer_args")
        check_args(inner_args, "inner_args")
        layout = flatten(theta, "theta")[1]
        check_same_kind(layout, "theta", flatten(phi, "phi")[1], "phi")
        refuse_twice(theta, "theta")
        guard = Guard([self.outer], outer_args, layout.device)

        def value(moving: Tree) -> Tensor:
            solved = self.solution(moving, theta, inner_args=inner_args)
            with guard.replay(), uncompiled():
                return check_scalar(self.outer(moving, solved, *outer_args), "outer")

        return torch.func.grad(value)(phi)
