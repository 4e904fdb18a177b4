"""Curvature as linear operators: the Hessian of an objective, Gauss-Newton, a Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel import _transforms
from bilevel._autodiff import Pullback, copied, filled, gradient, pulled_back, uncompiled
from bilevel._checks import check_args, check_scalar
from bilevel._closures import refuse_tangents
from bilevel._guard import Guard
from bilevel._tree import Layout, Tree, flatten
from bilevel.errors import InputError
from bilevel.operators import LinearOperator, Opaque
from bilevel.products import (
    HVP,
    KeptGraph,
    Objective,
    Products,
    products,
    refuse_originals,
)


class HessianOperator(Opaque):
    """The Hessian behind ready-made :class:`bilevel.products.Products`."""

    def __init__(self, source: Products, layout: Layout) -> None:
        super().__init__(layout.size, layout.dtype, layout.device, symmetric=True, layout=layout)
        self._source = source

    def product(self, rows: Tensor) -> Tensor:
        return self._source.rows(rows)


class JacobianOperator(Opaque):
    """The Jacobian of a vector field at a point, or of a batch of fields at a batch of points.

    The field's graph is built once. A transposed product is one backward through it; a product
    differentiates that backward, which is linear in its cotangent, a second time.

    Args:
        field: ``x -> G(x)``, both ``[n]``, or both ``[B, n]`` with row i of G a function of row i
            of x alone.
        x: the point.
        symmetric: whether the Jacobian equals its transpose (the field is a gradient).
        layout: how a tree lies in the flat vector.
    """

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        symmetric: bool,
        layout: Layout | None = None,
    ) -> None:
        batch = x.shape[0] if x.ndim == 2 else None
        super().__init__(
            x.shape[-1], x.dtype, x.device, symmetric=symmetric, layout=layout, batch=batch
        )
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._graph = field(self._x)
        self._adjoint: tuple[Tensor, Tensor] | None = None

    def product(self, rows: Tensor) -> Tensor:
        if self.symmetric:
            return self.product_transposed(rows)
        if not self._graph.requires_grad:
            return torch.zeros_like(rows)
        if self._adjoint is None:
            with torch.inference_mode(False), torch.enable_grad():
                # Ones, as a pullback of zeros would not show what has cut its graph.
                cotangent = torch.ones_like(self._graph).requires_grad_()
                found = pulled_back(self._graph, [self._x], cotangent, "the function")
                self._adjoint = (filled(found, [self._x])[0], cotangent)
        return self._through(*self._adjoint, rows)

    def product_transposed(self, rows: Tensor) -> Tensor:
        return self._through(self._graph, self._x, rows)

    def to_dense(self) -> Tensor:
        # Row by row: a row of the matrix is one backward, a column two.
        return LinearOperator.to_dense(self.T).mT.contiguous()

    def _through(self, output: Tensor, source: Tensor, rows: Tensor) -> Tensor:
        if self.batch is not None:
            return _pull(output, source, rows)
        return Pullback([output], [source]).rows(rows)


def _pull(output: Tensor, source: Tensor, cotangent: Tensor) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(cotangent)
    return torch.autograd.grad(
        output, source, cotangent, retain_graph=True, materialize_grads=True
    )[0]


def hessian(
    objective: Callable[..., Tensor], theta: Tree, *, args: Sequence[Any] = (), hvp: HVP = "auto"
) -> LinearOperator:
    """The Hessian of ``objective(theta, *args)`` at theta, as an operator on trees like theta.

    Args:
        objective: returns a 0-d tensor.
        theta: where; a pytree of floating tensors.
        args: passed through.
        hvp: how products are made; see :func:`bilevel.implicit_grad`.

    Returns:
        A symmetric operator. It keeps the graph of one gradient alive.

    Raises:
        InputError: theta or the objective does not fit, or the objective uses a tensor of theta
            itself, past its argument.
        TransformError: inside a ``torch.func`` transform, or given dual tensors of forward mode.

    Example:
        >>> import torch
        >>> H = hessian(lambda t: (t**3).sum(), torch.tensor([1.0, 2.0]))
        >>> H.to_dense()
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    _transforms.refuse_inside("bilevel.hessian")
    refuse_tangents("bilevel.hessian", theta, args)
    leaves, layout = flatten(theta, "theta")
    args = check_args(args, "args")
    guard = Guard([objective], args, layout.device)
    wrapped = Objective(
        lambda _, point, *rest: objective(point, *rest),
        "objective",
        layout.empty(),
        layout,
        args,
        guard,
        originals=leaves,
    )
    with torch.inference_mode(False):
        point = copied(leaves)
        return HessianOperator(products(hvp, wrapped, [], point), layout)


def jacobian(
    function: Callable[..., Tree], x: Tree, *, args: Sequence[Any] = (), symmetric: bool = False
) -> LinearOperator:
    """The Jacobian of ``function(x, *args)`` at x, as an operator on trees like x.

    Args:
        function: returns a tree like x.
        x: where; a pytree of floating tensors.
        args: passed through.
        symmetric: whether the Jacobian equals its transpose; products then cost less.

    Returns:
        An operator with products both ways. It keeps the function's graph alive.

    Raises:
        InputError: x is no such tree; or the function returns another kind of tree, or uses a
            tensor of x itself, past its argument.
        TransformError: inside a ``torch.func`` transform, or given dual tensors of forward mode.

    Example:
        >>> import torch
        >>> J = jacobian(lambda x: torch.stack([x[0] * x[1], x[1]]), torch.tensor([2.0, 3.0]))
        >>> J.to_dense()
        tensor([[3., 2.],
                [0., 1.]])
    """
    _transforms.refuse_inside("bilevel.jacobian")
    refuse_tangents("bilevel.jacobian", x, args)
    leaves, layout = flatten(x, "x")
    args = check_args(args, "args")
    guard = Guard([function], args, layout.device)

    def field(vector: Tensor) -> Tensor:
        with guard.replay():
            value = function(layout.unflatten(vector), *args)
        found = layout.join(layout.matching_leaves(value, "what function returned", "x"))
        refuse_originals(found, leaves, "function", "x")
        return found

    with torch.inference_mode(False):
        point = layout.join(copied(leaves))
        return JacobianOperator(field, point, symmetric=symmetric, layout=layout)


@dataclass(frozen=True)
class GaussNewton:
    """The generalized Gauss-Newton curvature ``J' (d2_z loss) J`` of ``loss(model(theta))``.

    Positive semidefinite whenever the loss is convex in the model's outputs, also where the
    Hessian is indefinite; equal to the Hessian where the model is linear or fits exactly. Only the
    curvature that is inverted changes; the mixed derivative stays that of the inner objective.

    Args:
        model: ``(phi, theta, *inner_args) -> outputs``, a tensor.
        loss: ``(phi, outputs, *inner_args) -> 0-d tensor``, best convex in the outputs.
        regularizer: ``(phi, theta, *inner_args) -> 0-d tensor`` whose Hessian is added as it is
            (a penalty on theta); default none.

    Reference:
        Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, 2002.

    Example:
        >>> import bilevel, torch
        >>> X, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])
        >>> gn = GaussNewton(lambda p, t: X @ t, lambda p, z: ((z - y) ** 2).sum() / 2)
        >>> problem = bilevel.ImplicitProblem(
        ...     lambda p, t: (t * p).sum(),
        ...     lambda p, t: ((X @ t - y) ** 2).sum() / 2 - (p * t).sum(),
        ...     curvature=gn,
        ... )
        >>> problem.operator(torch.zeros(1), torch.ones(1)).to_dense()
        tensor([[5.]])
    """

    model: Callable[..., Tensor]
    loss: Callable[..., Tensor]
    regularizer: Callable[..., Tensor] | None = None


class GaussNewtonOperator(Opaque):
    """Gauss-Newton curvature at a point.

    Args:
        curvature: its parts.
        phi: the tree these are called with.
        theta: leaves that require grad.
        layout: of theta.
        args: passed through.
        guard: replays the randomness.
        originals: the user's own tensors of theta, which no part may use past its arguments.
    """

    def __init__(
        self,
        curvature: GaussNewton,
        phi: Tree,
        theta: Sequence[Tensor],
        layout: Layout,
        args: Sequence[Any],
        guard: Guard,
        originals: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(layout.size, layout.dtype, layout.device, symmetric=True, layout=layout)
        self._theta = theta
        with torch.enable_grad():
            with guard.replay(), uncompiled():
                outputs = curvature.model(phi, layout.tree(theta), *args)
            if not isinstance(outputs, Tensor) or not outputs.requires_grad:
                raise _independent(outputs)
            refuse_originals(outputs, originals, "GaussNewton: model", "theta")
            self._outputs = outputs
            # J v by differentiating the pullback, which is linear in its cotangent. Ones, as a
            # pullback of zeros would not show what has cut its graph.
            self._cotangent = torch.ones_like(outputs).requires_grad_()
            pulled = pulled_back(outputs, theta, self._cotangent, "GaussNewton: model")
            # Leaf by leaf: of one flat vector of them, nothing but a copy would be gained.
            self._pulled = {
                index: leaf
                for index, leaf in enumerate(pulled)
                if leaf is not None and leaf.requires_grad
            }
            if not self._pulled:
                raise _independent(outputs)
            self._point = outputs.detach().requires_grad_()
            with guard.replay(), uncompiled():
                value = curvature.loss(phi, self._point, *args)
            check_scalar(value, "GaussNewton: loss")
            refuse_originals(value, originals, "GaussNewton: loss", "theta")
            (slope,) = gradient(value, [self._point], "GaussNewton: loss", create_graph=True)
        if slope is None:
            raise InputError("GaussNewton: loss does not depend on the outputs it is handed.")
        self._slope = slope
        self._extra = None
        if curvature.regularizer is not None:
            objective = Objective(
                lambda _, point, *rest: curvature.regularizer(phi, point, *rest),  # type: ignore[misc]
                "GaussNewton: regularizer",
                layout.empty(),
                layout,
                args,
                guard,
                originals,
            )
            self._extra = KeptGraph(objective, [], theta)

    def product(self, rows: Tensor) -> Tensor:
        made = [torch.cat([leaf.reshape(-1) for leaf in self._product(row)]) for row in rows]
        found = torch.stack(made) if made else rows.clone()
        return found if self._extra is None else found.add_(self._extra.rows(rows))

    def _product(self, row: Tensor) -> Sequence[Tensor]:
        assert self.layout is not None
        along = self.layout.split(row)
        (pushed,) = torch.autograd.grad(
            list(self._pulled.values()),
            self._cotangent,
            [along[index] for index in self._pulled],
            retain_graph=True,
        )
        curved = _pull(self._slope, self._point, pushed)
        return torch.autograd.grad(
            self._outputs, self._theta, curved, retain_graph=True, materialize_grads=True
        )


def _independent(outputs: Any) -> InputError:
    found = "one that does not" if isinstance(outputs, Tensor) else type(outputs).__name__
    return InputError(
        "GaussNewton: model must return a tensor that depends on its theta argument, found "
        f"{found}. Use what it is handed, without torch.no_grad or .detach() on the way: "
        "torch.func.functional_call(module, theta, inputs)."
    )
