"""``implicit_grad``: a hypergradient in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bilevel._tree import Tree
from bilevel.curvature import GaussNewton
from bilevel.linear import OnFailure
from bilevel.problem import ImplicitProblem
from bilevel.products import HVP
from bilevel.solution import State
from bilevel.solvers import Solver


def implicit_grad(
    outer: Callable[..., Tensor],
    inner: Callable[..., Tensor],
    phi: Tree,
    theta: Tree,
    *,
    outer_args: Sequence[Any] = (),
    inner_args: Sequence[Any] = (),
    solver: Solver | None = None,
    damping: float = 0.0,
    curvature: GaussNewton | None = None,
    hvp: HVP = "auto",
    initial: Tree = None,
    state: State | None = None,
    on_failure: OnFailure = "warn",
    compile: bool = False,
    return_info: bool = False,
) -> Tree:
    """The hypergradient ``d/dphi outer(phi, theta*(phi))``, ``theta*(phi) = argmin inner(phi, .)``.

    At a theta that minimises ``inner(phi, theta)``,

        dF/dphi = d_phi outer - (d_phi d_theta inner)' v,     (H + damping I) v = d_theta outer.

    Every evaluation sees the same random numbers (one dropout mask). The global random state,
    ``.grad`` fields, the parameters and the buffers of modules the functions reach are left as they
    were, also when a function raises.

    Args:
        outer: ``(phi, theta, *outer_args) -> 0-d tensor``.
        inner: ``(phi, theta, *inner_args) -> 0-d tensor``, twice differentiable in theta.
        phi: pytree of floating tensors (a tensor, list, tuple, namedtuple, dict, nested, or
            ``dict(module.named_parameters())``). Leaves neither function uses get zeros.
        theta: pytree of floating tensors, the inner solution; of phi's dtype and device.
        outer_args: passed to ``outer``: batches, targets.
        inner_args: passed to ``inner``.
        solver: of the adjoint system; default :class:`bilevel.Auto`.
        damping: see :class:`bilevel.ImplicitProblem`; default 0.
        curvature: None for the Hessian, or a :class:`bilevel.GaussNewton`.
        hvp: ``"auto"``, ``"reverse"``, ``"forward_over_reverse"`` or ``"finite_difference"``.
        initial: first guess of the adjoint, a tree like theta; default zero.
        state: ``info.state`` of an earlier call, to reuse a factorization or preconditioner.
        on_failure: ``"warn"`` (default), ``"raise"`` or ``"ignore"`` a failed solve.
        compile: see :class:`bilevel.ImplicitProblem`; default False.
        return_info: also return a :class:`bilevel.HypergradientInfo`.

    Returns:
        A tree like phi, detached; with ``return_info=True`` the pair ``(tree, info)``.

    Raises:
        InputError: an argument does not fit; the message names it, and nothing has changed.
        NonFiniteError: phi, theta, an objective, a product or the result is NaN or infinite.
        SolveError: the solve failed and ``on_failure="raise"``.
        TransformError: inside a ``torch.func`` transform, something it cannot carry.

    Example:
        >>> import torch
        >>> X, y = torch.eye(2), torch.tensor([1.0, 2.0])
        >>> def inner(log_penalty, w):  # ridge regression
        ...     return ((X @ w - y) ** 2).sum() / 2 + (log_penalty.exp() * w**2).sum() / 2
        >>> def outer(log_penalty, w):
        ...     return (w**2).sum() / 2
        >>> implicit_grad(outer, inner, torch.zeros(2), torch.tensor([0.5, 1.0]))
        tensor([-0.1250, -0.5000])

    Reference:
        Bengio, Gradient-based optimization of hyperparameters, 2000; Lorraine, Vicol and Duvenaud,
        Optimizing millions of hyperparameters by implicit differentiation, 2020, equation 2.
    """
    problem = ImplicitProblem(
        outer,
        inner,
        solver=solver,
        damping=damping,
        curvature=curvature,
        hvp=hvp,
        on_failure=on_failure,
        compile=compile,
    )
    return problem.implicit_grad(
        phi,
        theta,
        outer_args=outer_args,
        inner_args=inner_args,
        initial=initial,
        state=state,
        return_info=return_info,  # type: ignore[call-overload]
    )
