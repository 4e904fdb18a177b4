"""The implicit function theorem, attached to autograd: argmin, root and fixed point.

``x*(params)`` solves ``G(x, params) = 0``. With ``A = d_x G`` at the solution

    jvp:  dx = -A^-1 (d_params G) dparams         vjp:  dparams = -(d_params G)' A^-T dx

Two autograd functions carry this. ``_Attach`` is the identity on ``x*`` with these derivatives;
``_LinearSolve`` is ``A^-1 b`` (or ``A^-T b``), whose own derivatives are again linear solves. Each
is written in terms of the other and of differentiable products, so every order, ``vmap`` and any
nesting of transforms follow. Only ``_LinearSolve.forward`` iterates, and it always sees plain
tensors: its ``vmap`` rule turns a batch of problems into one block-diagonal problem.

Reference: Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel import _transforms
from bilevel._autodiff import jvp, vjp
from bilevel._guard import Guard
from bilevel._tree import Tree, check_same_kind, flatten
from bilevel.curvature import JacobianOperator
from bilevel.errors import InputError, TransformError
from bilevel.linear import OnFailure, check_options, solve_rows
from bilevel.operators import check_damping, damped
from bilevel.products import check_scalar
from bilevel.solvers import Solver

Field = Callable[..., Tensor]
"""``(x, *params) -> G(x, params)``: flat x ``[*batch, n]`` to ``[*batch, n]``."""


@dataclass(frozen=True, eq=False)
class _Condition:
    """``G(x, params) = 0`` and how to solve with its Jacobian.

    ``depth`` counts the batch dimensions that ``vmap`` has put in front of x.
    """

    field: Field
    symmetric: bool
    solver: Solver
    damping: float
    on_failure: OnFailure
    depth: int = 0

    def batched(self, in_dims: Sequence[int | None]) -> _Condition:
        """The same condition for a batch, one more leading dimension on x and G."""
        field = torch.func.vmap(self.field, in_dims=tuple(in_dims), randomness="same")
        return replace(self, field=field, depth=self.depth + 1)

    def solve(self, transposed: bool, b: Tensor, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        """``A^-1 b`` or ``A^-T b``, on plain tensors.

        Args:
            transposed: which of the two.
            b: ``[*batch, *columns, n]``, several right-hand sides for each x.
            x: ``[*batch, n]``.
            params: what else the field depends on.
        """
        n = x.shape[-1]

        def field(point: Tensor) -> Tensor:
            return self.field(point.view(x.shape), *params).reshape(point.shape)

        point = x.detach().reshape(-1, n) if self.depth else x.detach()
        operator = damped(JacobianOperator(field, point, symmetric=self.symmetric), self.damping)
        operator = operator.T if transposed else operator
        if not self.depth:
            rows = b.detach().reshape(-1, n)
            return solve_rows(operator, rows, self.solver, on_failure=self.on_failure).value.view(
                b.shape
            )
        # A batched operator takes one right-hand side per matrix at a time.
        columns = b.detach().reshape(point.shape[0], -1, n).unbind(1)
        state, values = None, []
        for rows in columns:
            solution = solve_rows(
                operator, rows, self.solver, state=state, on_failure=self.on_failure
            )
            state = solution.state
            values.append(solution.value)
        return torch.stack(values, dim=1).view(b.shape)


class _LinearSolve(torch.autograd.Function):
    """``y = A^-1 b`` (``A^-T b`` if transposed), A the Jacobian of a condition at ``x, params``."""

    @staticmethod
    def forward(
        condition: _Condition, transposed: bool, b: Tensor, x: Tensor, *params: Tensor
    ) -> Tensor:
        return condition.solve(transposed, b, x, params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.condition, ctx.transposed, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, x, *params = ctx.saved_tensors
        condition = ctx.condition
        b_bar = _LinearSolve.apply(condition, not ctx.transposed, gradient, x, *params)
        left, right = (y, b_bar) if ctx.transposed else (b_bar, y)

        # A y = b moves by b_bar' dA y: differentiate left' A(x, params) right in its point.
        def pulled(point: Tensor, *moving: Tensor) -> Tensor:
            at = lambda p: condition.field(p, *moving)  # noqa: E731
            return _over_columns(lambda row: vjp(at, [point], row)[0], x, left)

        return None, None, b_bar, *vjp(pulled, [x, *params], -right)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _transforms.refuse_forward_over_forward()
        y, x, *params = ctx.saved_tensors
        condition, transposed = ctx.condition, ctx.transposed
        b_dot = tangents[2]

        def product(point: Tensor, *moving: Tensor) -> Tensor:
            at = lambda p: condition.field(p, *moving)  # noqa: E731
            if transposed:
                return _over_columns(lambda row: vjp(at, [point], row)[0], x, y)
            return _over_columns(lambda row: jvp(at, [point], [row], point), x, y)

        moved = jvp(product, [x, *params], tangents[3:], y)
        rest = -moved if b_dot is None else b_dot - moved
        return _LinearSolve.apply(condition, transposed, rest, x, *params)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        condition: _Condition,
        transposed: bool,
        b: Tensor,
        *point: Tensor,
    ) -> tuple[Tensor, int]:
        b_dim, *dims = in_dims[2:]
        b = _batch_first(b, b_dim, info.batch_size)
        if condition.depth == 0 and all(dim is None for dim in dims):
            # One operator, many right-hand sides: rows of the same solve.
            return _LinearSolve.apply(condition, transposed, b, *point), 0
        moved = [_front(tensor, dim) for tensor, dim in zip(point, dims, strict=True)]
        x = _batch_first(point[0], dims[0], info.batch_size)
        inner = condition.batched([0, *(None if dim is None else 0 for dim in dims[1:])])
        return _LinearSolve.apply(inner, transposed, b, x, *moved[1:]), 0


class _Attach(torch.autograd.Function):
    """The identity on a solution, with the derivative of the implicit function theorem."""

    generate_vmap_rule = True

    @staticmethod
    def forward(condition: _Condition, x: Tensor, *params: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.condition, _, *params = inputs
        # The output, not the input: it carries the dependence on the parameters that second
        # derivatives need.
        ctx.save_for_backward(output, *params)
        ctx.save_for_forward(output, *params)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *params = ctx.saved_tensors
        adjoint = _LinearSolve.apply(ctx.condition, True, gradient, x, *params)
        field = ctx.condition.field
        return None, None, *vjp(lambda *moving: field(x, *moving), params, -adjoint)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _transforms.refuse_forward_over_forward()
        x, *params = ctx.saved_tensors
        field = ctx.condition.field
        moved = jvp(lambda *moving: field(x, *moving), params, tangents[2:], x)
        return _LinearSolve.apply(ctx.condition, False, -moved, x, *params)


def _over_columns(product: Callable[[Tensor], Any], x: Tensor, value: Tensor) -> Tensor:
    """A product with every right-hand side of ``[*batch, *columns, n]``."""
    if value.ndim == x.ndim:
        return product(value)
    depth = x.ndim - 1
    columns = value.flatten(depth, -2).movedim(depth, 0)
    products = torch.func.vmap(product, randomness="same")(columns)
    return products.movedim(0, depth).reshape(value.shape)


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


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
        InputError: a tree, the objective's value or an option does not fit.
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

    def value(p: Tree, t: Tree, *rest: Any) -> Tensor:
        return check_scalar(inner(p, t, *rest), "inner")

    def gradient(p: Tree, t: Tree, *rest: Any) -> Tree:
        if _transforms.active():
            return torch.func.grad(lambda moving: value(p, moving, *rest))(t)
        leaves, spec = pytree.tree_flatten(t)
        with torch.enable_grad():
            objective = value(p, t, *rest)
            found = torch.autograd.grad(
                objective, leaves, create_graph=True, materialize_grads=True
            )
        return pytree.tree_unflatten(found, spec)

    names = ("inner", "theta_star")
    return _attach(
        gradient, phi, theta_star, args, names, inner, True, solver, damping, on_failure, value
    )


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

    As :func:`argmin`, with any optimality condition in place of a gradient: KKT systems, equilibria,
    stationarity of a game. The Jacobian ``A = d_x condition`` need not be symmetric: the vjp solves
    with its transpose, the jvp with itself.

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
        InputError: a tree or an option does not fit, or the condition returns another tree.
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
    return _attach(
        condition, phi, x_star, args, names, condition, symmetric, solver, 0.0, on_failure, None
    )


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
        InputError: a tree or an option does not fit, or the map returns another tree.
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

    def condition(p: Tree, x: Tree, *rest: Any) -> Tree:
        image = map(p, x, *rest)
        if pytree.tree_structure(image) != pytree.tree_structure(x):
            raise InputError(
                f"map returned the tree {pytree.tree_structure(image)}; x is "
                f"{pytree.tree_structure(x)}."
            )
        return pytree.tree_map(lambda a, b: a - b, x, image)

    names = ("map", "x_star")
    return _attach(condition, phi, x_star, args, names, map, False, solver, 0.0, on_failure, None)


def _attach(
    condition: Callable[..., Tree],
    phi: Tree,
    x_star: Tree,
    args: Sequence[Any],
    names: tuple[str, str],
    function: Callable[..., Any],
    symmetric: bool,
    solver: Solver | None,
    damping: float,
    on_failure: OnFailure,
    value: Callable[..., Tensor] | None,
) -> Tree:
    solver = check_options(solver, on_failure)
    x_leaves, layout = flatten(x_star, names[1])
    phi_leaves, phi_layout = flatten(phi, "phi")
    check_same_kind(layout, names[1], phi_layout, "phi")
    arg_leaves, arg_spec = pytree.tree_flatten(tuple(args))
    tensors = [i for i, leaf in enumerate(arg_leaves) if isinstance(leaf, Tensor)]
    params = [*phi_leaves, *(arg_leaves[i] for i in tensors)]
    guard = Guard([function], args, layout.device)

    def trees(moving: Sequence[Tensor]) -> tuple[Tree, tuple[Any, ...]]:
        leaves = list(arg_leaves)
        for index, tensor in zip(tensors, moving[len(phi_leaves) :], strict=True):
            leaves[index] = tensor
        rest = pytree.tree_unflatten(leaves, arg_spec)
        return phi_layout.tree(moving[: len(phi_leaves)]), rest

    def field(x: Tensor, *moving: Tensor) -> Tensor:
        p, rest = trees(moving)
        point = layout.unflatten(x)
        with guard.replay():
            found = condition(p, point, *rest)
        return layout.join(layout.matching_leaves(found, f"what {names[0]} returned", names[1]))

    def probe(x: Tensor, *moving: Tensor) -> Tensor:
        p, rest = trees(moving)
        with guard.replay():
            if value is not None:
                return value(p, layout.unflatten(x), *rest)
        return field(x, *moving)

    x = layout.join([leaf.detach() for leaf in x_leaves])
    if torch.is_grad_enabled():
        _refuse_lost_derivatives(probe, x, params, names[0])
    made = _Condition(field, symmetric, solver, damping, on_failure)
    try:
        attached = _Attach.apply(made, x, *params)
    except RuntimeError as error:
        if "escaped from inside a function being vmapped" in str(error):
            raise TransformError(_closure_message(names[0], "is being vmapped")) from error
        raise
    return layout.unflatten(attached)


def _refuse_lost_derivatives(
    function: Callable[..., Tensor], x: Tensor, params: Sequence[Tensor], name: str
) -> None:
    """Evaluate once on detached inputs: whatever still requires grad came in behind our back."""
    value = function(x.detach(), *(p.detach() for p in params))
    if value.requires_grad:
        raise InputError(_closure_message(name, "requires grad"))


def _closure_message(name: str, state: str) -> str:
    return (
        f"{name} uses a tensor that {state} but is part of neither phi nor args: its derivative "
        "would be lost without a word. Pass it in phi or args=(...), or detach it "
        "(requires_grad_(False) for frozen parameters)."
    )
