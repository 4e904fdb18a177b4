"""Polishing an inner solution: Newton's method with CG, or any torch optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bilevel import _autodiff
from bilevel._checks import check_count
from bilevel._tree import Tree
from bilevel.curvature import HessianOperator
from bilevel.errors import ConvergenceWarning, InputError, NonFiniteError, outside
from bilevel.linear import solve_rows
from bilevel.operators import damped
from bilevel.products import HVP, Objective, products
from bilevel.solvers import CG

_ARMIJO = 1e-4
_HALVINGS = 30


def refine(
    inner: Objective,
    phi: Sequence[Tensor],
    theta: Sequence[Tensor],
    hvp: HVP,
    damping: float,
    tolerance: float | None,
    max_steps: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None,
) -> Tree:
    """See :meth:`bilevel.ImplicitProblem.refine`; ``phi`` and ``theta`` are leaves."""
    check_count("refine", "max_steps", max_steps)
    if optimizer is not None and not callable(optimizer):
        raise InputError(
            "optimizer must be a function from leaves to a torch optimizer, such as "
            f"torch.optim.LBFGS; found {optimizer!r}."
        )
    if tolerance is not None and not 0.0 <= tolerance < math.inf:
        raise InputError(f"tolerance must be a finite number of at least 0, found {tolerance}.")
    # They require grad, as in the hypergradient: inner may differentiate in phi by itself.
    fixed = [leaf.detach().requires_grad_() for leaf in phi]
    leaves = [leaf.detach().clone() for leaf in theta]
    slope = _gradient(inner, fixed, leaves)[1]
    start = float(torch.linalg.vector_norm(slope))
    if tolerance is None:
        tolerance = _default_tolerance(inner, fixed, leaves, slope)
    if optimizer is None:
        leaves, reached = _newton(inner, fixed, leaves, hvp, damping, tolerance, max_steps)
    else:
        leaves, reached = _descend(inner, fixed, leaves, optimizer, tolerance, max_steps)
    if reached > tolerance:
        warnings.warn(
            f"refine stopped at a stationarity of {reached:.2e} (from {start:.2e}) above the "
            f"tolerance {tolerance:.2e}, after at most {max_steps} steps. Raise max_steps, loosen "
            "the tolerance, or use float64.",
            ConvergenceWarning,
            stacklevel=outside(),
        )
    return inner.theta.tree(leaves)


def _default_tolerance(
    inner: Objective, phi: list[Tensor], theta: Sequence[Tensor], slope: Tensor
) -> float:
    """``sqrt(eps)`` on the scale of the gradient: its norm, or its change if theta were doubled.

    The second keeps the tolerance within reach of a start that is nearly the minimum already.
    """
    small = math.sqrt(torch.finfo(inner.theta.dtype).eps)
    there = _gradient(inner, phi, [leaf * (1 + small) for leaf in theta])[1]
    change = float(torch.linalg.vector_norm(there - slope)) / small
    start = float(torch.linalg.vector_norm(slope))
    return small * max(start, change if math.isfinite(change) else 0.0)


def _newton(
    inner: Objective,
    phi: list[Tensor],
    theta: list[Tensor],
    hvp: HVP,
    damping: float,
    tolerance: float,
    max_steps: int,
) -> tuple[list[Tensor], float]:
    """Truncated Newton (Nocedal and Wright, algorithm 7.1) with backtracking."""
    layout = inner.theta
    flat = layout.join(theta)
    for _ in range(max_steps):
        made = products(
            hvp, inner, phi, [leaf.requires_grad_() for leaf in layout.split(flat.clone())]
        )
        hvp = made.name  # so that a fallback is found, and warned of, once
        value, gradient = float(made.value), made.gradient
        norm = float(torch.linalg.vector_norm(gradient))
        _require_finite(value, norm)
        if norm <= tolerance:
            return layout.split(flat), norm
        # Negative curvature ends CG early; what it has found until then is a descent direction.
        solver = CG(rtol=min(0.5, math.sqrt(norm)), max_steps=min(2 * layout.size + 10, 200))
        operator = damped(HessianOperator(made, layout), damping)
        rows = -gradient.unsqueeze(0)
        solution = solve_rows(operator, rows, solver, on_failure="ignore", full=False)
        direction = solution.value.squeeze(0)
        slope = float(torch.dot(direction, gradient))
        if slope >= 0:
            direction, slope = -gradient, -(norm**2)
        step = _line_search(inner, phi, flat, direction, value, slope, norm)
        if step == 0.0:
            break
        flat = flat + step * direction
    leaves = layout.split(flat)
    return leaves, float(torch.linalg.vector_norm(_gradient(inner, phi, leaves)[1]))


def _line_search(
    inner: Objective,
    phi: list[Tensor],
    flat: Tensor,
    direction: Tensor,
    value: float,
    slope: float,
    norm: float,
) -> float:
    """Halve the step until the value falls enough.

    Near the optimum the fall drowns in rounding; there a falling gradient decides.
    """
    step = 1.0
    for _ in range(_HALVINGS):
        trial = inner.theta.split(flat + step * direction)
        found, gradient = _gradient(inner, phi, trial)
        if found <= value + _ARMIJO * step * slope:
            return step
        rounding = 8 * torch.finfo(flat.dtype).eps * max(abs(slope), abs(value))
        calm = float(torch.linalg.vector_norm(gradient)) < norm
        if abs(found - value) <= rounding and calm:
            return step
        step /= 2
    return 0.0


def _descend(
    inner: Objective,
    phi: list[Tensor],
    theta: list[Tensor],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    tolerance: float,
    max_steps: int,
) -> tuple[list[Tensor], float]:
    leaves = [leaf.requires_grad_() for leaf in theta]
    torch_optimizer = optimizer(leaves)

    def closure() -> Tensor:
        with torch.enable_grad():
            value = inner(phi, leaves)
        for leaf, slope in zip(leaves, _slopes(inner, value, leaves), strict=True):
            leaf.grad = slope
        return value.detach()

    norm = math.inf
    for _ in range(max_steps):
        value, gradient = _gradient(inner, phi, leaves)
        norm = float(torch.linalg.vector_norm(gradient))
        _require_finite(value, norm)
        if norm <= tolerance:
            return [leaf.detach() for leaf in leaves], norm
        for leaf, slope in zip(leaves, inner.theta.split(gradient), strict=True):
            leaf.grad = slope  # for an optimizer that does not call its closure
        torch_optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
    norm = float(torch.linalg.vector_norm(_gradient(inner, phi, leaves)[1]))
    return [leaf.detach() for leaf in leaves], norm


def _gradient(inner: Objective, phi: list[Tensor], theta: Sequence[Tensor]) -> tuple[float, Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in theta]
    with torch.enable_grad():
        value = inner(phi, leaves)
    return float(value.detach()), inner.theta.join(_slopes(inner, value, leaves))


def _slopes(inner: Objective, value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    return _autodiff.filled(_autodiff.gradient(value, leaves, inner.name), leaves)


def _require_finite(value: float, norm: float) -> None:
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise NonFiniteError(
            "the inner objective or its gradient became NaN or infinite while refining theta. "
            "Start nearer to the optimum, add damping, or lower the optimizer's learning rate."
        )
