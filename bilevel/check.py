"""``check_gradient``: a hypergradient beside differences of the inner problem solved anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bilevel import _transforms
from bilevel._checks import check_count, check_positive
from bilevel._differences import InnerSolver, difference
from bilevel._point import Point
from bilevel._probe import Probe, random_directions, slopes, suspects
from bilevel._tree import Layout, Tree, natural_scales
from bilevel._verdict import GradientCheck
from bilevel.errors import InputError
from bilevel.problem import ImplicitProblem
from bilevel.report import HypergradientInfo

# Between 1/4 and 1/3: truncation is 1e-9 of the third derivative in float64 and 1e-4 in float32.
_STEP = 0.3
_TOLERANCES = {torch.float32: 1e-2, torch.float64: 1e-4}

Solve = Callable[[Tree, Tree], Tree]


def check_gradient(
    problem: ImplicitProblem,
    phi: Tree,
    theta: Tree,
    *,
    outer_args: Sequence[Any] = (),
    inner_args: Sequence[Any] = (),
    directions: int = 3,
    step: float | None = None,
    tolerance: float | None = None,
    solve: Solve | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Whether the hypergradient of a problem is right here, and if not, what is likely wrong.

    Solves the inner problem at phi, takes ``problem.implicit_grad`` there, and compares its slopes
    along random directions ``d`` with central differences of ``outer(phi, theta*(phi))``, for which
    the inner problem is solved again at ``phi ± h d`` and ``phi ± h d / 2``: that the two
    differences disagree tells a bad difference from a bad gradient. Every evaluation sees the same
    random numbers, and nothing is left changed, as in :func:`bilevel.implicit_grad` (but for what a
    ``solve`` of your own writes to). What a solve misses is told in the result, not warned of.

    Args:
        problem: the problem as it is to be used: solver, damping and all.
        phi: where; see :func:`bilevel.implicit_grad`. Float64 tells most.
        theta: where the inner solver starts, a tree like the inner solution.
        outer_args: passed to ``outer``.
        inner_args: passed to ``inner``.
        directions: how many, default 3; each costs four inner solutions. They move every leaf of
            phi in proportion to its size, so that little is seen of one that is tiny beside the
            others: check that by a problem with the others held fixed.
        step: the length h of the step along a direction of norm 1; by default one that moves every
            leaf of phi by about ``eps**0.3`` (2e-5 in float64, 8e-3 in float32) times its root mean
            square (a leaf of zeros: that of all of phi, or 1).
        tolerance: on the relative errors; default 1e-4 in float64, 1e-2 in float32.
        solve: ``(phi, theta) -> theta``, which solves the inner problem at phi from a start; run
            under the same random numbers each time. Default ``problem.refine`` without damping,
            down to a gradient of ``sqrt(eps)`` of what the step along phi changes it by.
        seed: of the directions, default 0.

    Returns:
        A :class:`bilevel.GradientCheck`; ``print`` it, or ``assert check.ok, check``.

    Raises:
        InputError: an argument does not fit, half precision included; nothing has changed.
        NonFiniteError: an objective or the gradient is NaN or infinite at phi, or a step away.
        TransformError: inside a ``torch.func`` transform.

    Example:
        >>> import torch
        >>> X, y = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0]).double()
        >>> problem = ImplicitProblem(
        ...     outer=lambda log_penalty, w: (w**2).sum() / 2,
        ...     inner=lambda log_penalty, w: ((X @ w - y) ** 2).sum() + log_penalty.exp() @ w**2,
        ... )
        >>> phi, theta = torch.zeros_like(y), torch.zeros_like(y)
        >>> check_gradient(problem, phi, theta).ok
        True
        >>> check = check_gradient(replace(problem, damping=1.0), phi, theta)
        >>> check.ok
        False
        >>> "damping" in check.verdict
        True

    Reference:
        Nocedal and Wright, Numerical optimization, 2006, section 8.1 (central differences);
        Bengio, Gradient-based optimization of hyperparameters, 2000 (the gradient).
    """
    _transforms.refuse_inside("check_gradient()")
    _check_options(problem, directions, step, tolerance, solve, seed)
    with torch.inference_mode(False), torch.enable_grad():
        point = _point(problem, phi, theta, outer_args, inner_args)
        layout = point.phi_layout
        _check_phi(layout)
        base = layout.join([leaf.detach() for leaf in point.phi])
        start = point.theta_layout.join([leaf.detach() for leaf in point.theta])
        eps = torch.finfo(layout.dtype).eps
        scales = natural_scales(layout.split(base.to("cpu", torch.float64)))
        size = float(torch.linalg.vector_norm(scales))
        h = eps**_STEP * size if step is None else float(step)
        along = list(random_directions(scales, directions, seed).to(base))
        undamped = replace(problem, damping=0.0, compile=False)
        solver, theta_star = InnerSolver(undamped, Probe(point), solve).adapted(
            base, start, h * along[0]
        )
        # Nothing moves the caller's generators in between, so that all see the same randomness.
        solution = point.theta_layout.unflatten(theta_star)
        _, info = replace(problem, on_failure="ignore").implicit_grad(
            phi, solution, outer_args=outer_args, inner_args=inner_args, return_info=True
        )
        tolerance = tolerance or _TOLERANCES[layout.dtype]
        check = _compared(problem, info, solver, base, theta_star, along, h, size, tolerance)
        if check.ok:
            return check
        here = _point(problem, phi, solution, outer_args, inner_args)
        return replace(check, suspects=suspects(here, info, h * along[0]))


def _compared(
    problem: ImplicitProblem,
    info: HypergradientInfo,
    solver: InnerSolver,
    base: Tensor,
    theta: Tensor,
    directions: Sequence[Tensor],
    step: float,
    size: float,
    tolerance: float,
) -> GradientCheck:
    """The implicit gradient beside differences along directions from ``base``; ``theta`` there.

    ``size`` is the change of phi that ``step`` is a small part of.
    """
    point, eps = solver.probe.point, torch.finfo(base.dtype).eps
    adjoint = point.theta_layout.join(
        point.theta_layout.matching_leaves(info.adjoint, "adjoint", "theta")
    )
    coarse, fine = (
        [difference(solver, base, theta, adjoint, direction, length) for direction in directions]
        for length in (step, step / 2)
    )
    parts = [slopes(point.phi_layout, info, direction) for direction in directions]
    differences = tuple(value for value, _ in fine)
    rounding = 4 * eps * abs(info.outer_value) / step
    left = abs(float(adjoint @ solver.probe.slope(base, theta)))
    sums = tuple(direct + implicit for direct, implicit in parts)
    return GradientCheck(
        slopes=sums,
        differences=differences,
        uncertainties=tuple(
            abs(value - other) + rounding
            for (value, _), (other, _) in zip(fine, coarse, strict=True)
        ),
        unfinished=tuple(rest for _, rest in fine),
        remaining=left / size if left > math.sqrt(eps) * abs(info.outer_value) else 0.0,
        scale=max(
            abs(x) for x in (*differences, *sums, *(part for pair in parts for part in pair))
        ),
        step=step,
        tolerance=tolerance,
        damping=problem.damping,
        gauss_newton=problem.curvature is not None,
        dtype=base.dtype,
        info=info,
    )


def _point(
    problem: ImplicitProblem,
    phi: Tree,
    theta: Tree,
    outer_args: Sequence[Any],
    inner_args: Sequence[Any],
) -> Point:
    objectives = problem.outer, problem.inner, problem.hvp
    return Point.of(*objectives, phi, theta, outer_args, inner_args, problem.curvature)


def _check_phi(layout: Layout) -> None:
    if layout.dtype not in _TOLERANCES:
        raise InputError(
            f"check_gradient refuses {layout.dtype}: a difference of two values has no correct "
            "digit left there. Use float64 (phi.double()), or float32."
        )
    if not layout.size:
        raise InputError("phi has no elements: there is no direction to check along.")


def _check_options(
    problem: Any, directions: Any, step: Any, tolerance: Any, solve: Any, seed: Any
) -> None:
    if not isinstance(problem, ImplicitProblem):
        raise InputError(
            f"problem is a {type(problem).__name__}; wanted a bilevel.ImplicitProblem."
        )
    check_count("check_gradient", "directions", directions)
    for name, value in (("step", step), ("tolerance", tolerance)):
        if value is not None:
            check_positive("check_gradient", name, value)
    if solve is not None and not callable(solve):
        raise InputError(f"solve must be None or a function of (phi, theta), found {solve!r}.")
    check_count("check_gradient", "seed", seed, least=0)
    if seed >= 2**64:
        raise InputError(f"check_gradient: seed must be below 2**64, found {seed!r}.")
