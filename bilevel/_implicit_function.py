"""The implicit function theorem as two autograd functions, each written in terms of the other.

``x*(params)`` solves ``G(x, params) = 0``. With ``A = d_x G`` at the solution

    jvp:  dx = -A^-1 (d_params G) dparams         vjp:  dparams = -(d_params G)' A^-T dx

Two autograd functions carry this. ``Attach`` is the identity on ``x*`` with these derivatives;
``LinearSolve`` is ``A^-1 b`` (or ``A^-T b``), whose own derivatives are again linear solves. Each
is written in terms of the other and of differentiable products, so every order, ``vmap`` and any
nesting of transforms follow. Only ``LinearSolve.forward`` iterates, and it always sees plain
tensors: its ``vmap`` rule turns a batch of problems into one block-diagonal problem.

Reference: Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from bilevel import _transforms
from bilevel._autodiff import jvp, vjp
from bilevel._guard import Guard
from bilevel.curvature import JacobianOperator
from bilevel.linear import OnFailure, solve_rows
from bilevel.operators import damped
from bilevel.solvers import Solver

Field = Callable[..., Tensor]
"""``(x, *params) -> G(x, params)``: flat x ``[*batch, n]`` to ``[*batch, n]``."""


@dataclass(frozen=True, eq=False)
class Condition:
    """``G(x, params) = 0`` and how to solve with its Jacobian.

    ``recheck`` has the next evaluation looked at for changes since the solution was attached;
    ``depth`` counts the batch dimensions that ``vmap`` has put in front of x.
    """

    field: Field
    symmetric: bool
    solver: Solver
    damping: float
    on_failure: OnFailure
    guard: Guard
    recheck: Callable[[], None]
    depth: int = 0

    def batched(self, in_dims: Sequence[int | None]) -> Condition:
        """The same condition for a batch, one more leading dimension on x and G."""
        field = torch.func.vmap(self.field, in_dims=tuple(in_dims), randomness="same")
        return replace(self, field=field, depth=self.depth + 1)

    def product(self, transposed: bool, v: Tensor, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        """``A v`` or ``A^T v``, differentiable in v, x and the parameters; arguments as below."""

        def field(point: Tensor) -> Tensor:
            return self.field(point, *params)

        def product(row: Tensor) -> Tensor:
            if transposed:
                return cast(Tensor, vjp(field, [x], row)[0])
            return jvp(field, [x], [row], x)

        return _over_columns(product, x, v)

    def solve(self, transposed: bool, b: Tensor, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        """``A^-1 b`` or ``A^-T b``, on plain tensors.

        Args:
            transposed: which of the two.
            b: ``[*batch, *columns, n]``, several right-hand sides for each x.
            x: ``[*batch, n]``.
            params: what else the field depends on.
        """
        _transforms.refuse_legacy_vmap(b)
        n = x.shape[-1]
        if n == 0:
            return torch.zeros_like(b)

        def field(point: Tensor) -> Tensor:
            return self.field(point.view(x.shape), *params).reshape(point.shape)

        point = x.detach().reshape(-1, n) if self.depth else x.detach()
        operator = damped(JacobianOperator(field, point, symmetric=self.symmetric), self.damping)
        operator = operator.T if transposed else operator
        if not self.depth:
            rows = b.detach().reshape(-1, n)
            found = solve_rows(operator, rows, self.solver, on_failure=self.on_failure, full=False)
            return found.value.view(b.shape)
        # A batched operator takes one right-hand side per matrix at a time.
        columns = b.detach().reshape(point.shape[0], -1, n).unbind(1)
        state, values = None, []
        for rows in columns:
            solution = solve_rows(
                operator, rows, self.solver, state=state, on_failure=self.on_failure, full=False
            )
            state = solution.state
            values.append(solution.value)
        return torch.stack(values, dim=1).view(b.shape)


def _guarded(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Around all of a rule, for what runs the condition again by itself (a checkpoint)."""

    @functools.wraps(rule)
    def guarded(ctx: Any, *gradients: Any) -> Any:
        with ctx.condition.guard.replay(), _transforms.naming_ended():
            return rule(ctx, *gradients)

    return guarded


def _released(found: Sequence[Tensor | None], given: Sequence[Tensor]) -> list[Tensor | None]:
    """Without the graph of a rule's own making, where nothing it was given could need it.

    So it is in a pullback that is called, with gradients enabled, after its transform has ended.
    """
    if _transforms.active() or _transforms.pushing() or any(one.requires_grad for one in given):
        return list(found)
    return [None if one is None else one.detach() for one in found]


class LinearSolve(torch.autograd.Function):
    """``y = A^-1 b`` (``A^-T b`` if transposed), A the Jacobian of a condition at ``x, params``."""

    @staticmethod
    def forward(
        condition: Condition, transposed: bool, b: Tensor, x: Tensor, *params: Tensor
    ) -> Tensor:
        condition.recheck()
        with condition.guard.replay():
            return condition.solve(transposed, b, x, params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.condition, ctx.transposed, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    @_guarded
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, x, *params = _transforms.unwrapped(ctx.saved_tensors)
        condition = ctx.condition
        b_bar = LinearSolve.apply(condition, not ctx.transposed, gradient, x, *params)
        left, right = (y, b_bar) if ctx.transposed else (b_bar, y)

        # A y = b moves by b_bar' dA y: differentiate left' A(x, params) right in its point.
        def pulled(point: Tensor, *moving: Tensor) -> Tensor:
            return condition.product(True, left, point, moving)

        found = [b_bar, *vjp(pulled, [x, *params], -right)]
        return None, None, *_released(found, [gradient, y, x, *params])

    @staticmethod
    @_guarded
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _transforms.refuse_forward_over_forward()
        y, x, *params = _transforms.unwrapped(ctx.saved_tensors)
        condition, transposed = ctx.condition, ctx.transposed
        b_dot = tangents[2]

        def product(point: Tensor, *moving: Tensor) -> Tensor:
            return condition.product(transposed, y, point, moving)

        moved = jvp(product, [x, *params], tangents[3:], y)
        rest = -moved if b_dot is None else b_dot - moved
        return LinearSolve.apply(condition, transposed, rest, x, *params)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        condition: Condition,
        transposed: bool,
        b: Tensor,
        *point: Tensor,
    ) -> tuple[Tensor, int]:
        b_dim, *dims = in_dims[2:]
        b = _batch_first(b, b_dim, info.batch_size)
        if condition.depth == 0 and all(dim is None for dim in dims):
            # One operator, many right-hand sides: rows of the same solve.
            return LinearSolve.apply(condition, transposed, b, *point), 0
        moved = [_front(tensor, dim) for tensor, dim in zip(point, dims, strict=True)]
        x = _batch_first(point[0], dims[0], info.batch_size)
        inner = condition.batched([0, *(None if dim is None else 0 for dim in dims[1:])])
        return LinearSolve.apply(inner, transposed, b, x, *moved[1:]), 0


class Attach(torch.autograd.Function):
    """The identity on a solution, with the derivative of the implicit function theorem."""

    generate_vmap_rule = True

    @staticmethod
    def forward(condition: Condition, x: Tensor, *params: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.condition, _, *params = inputs
        # The output, not the input: it carries the dependence on the parameters that second
        # derivatives need.
        ctx.save_for_backward(output, *params)
        ctx.save_for_forward(output, *params)

    @staticmethod
    @_guarded
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *params = _transforms.unwrapped(ctx.saved_tensors)
        adjoint = LinearSolve.apply(ctx.condition, True, gradient, x, *params)
        field = ctx.condition.field
        found = vjp(lambda *moving: field(x, *moving), params, -adjoint)
        return None, None, *_released(found, [gradient, *params])

    @staticmethod
    @_guarded
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _transforms.refuse_forward_over_forward()
        x, *params = _transforms.unwrapped(ctx.saved_tensors)
        field = ctx.condition.field
        moved = jvp(lambda *moving: field(x, *moving), params, tangents[2:], x)
        return LinearSolve.apply(ctx.condition, False, -moved, x, *params)


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
