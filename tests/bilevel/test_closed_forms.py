"""Every closed form of ``problems``, by every solver that fits, through every entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import bilevel
from tests.bilevel.arrays import error, flat, normal, orthogonal
from tests.bilevel.problems import (
    EQUATIONS,
    MINIMA,
    PROBLEMS,
    Problem,
    logistic,
    quadratic,
)
from tests.bilevel.shapes import SHAPES, Shape
from tests.bilevel.systems import cases, solvers

PRECISION = 1e-8

CASES = [pytest.param(p, s, id=f"{p.name}-{name}") for p, name, s in cases(PROBLEMS)]
MINIMUM_CASES = [pytest.param(p, s, id=f"{p.name}-{name}") for p, name, s in cases(MINIMA)]


def moving(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def attached(problem: Problem, solver: bilevel.Solver | None, phi: Any) -> Any:
    """``theta*(phi)`` by the free function that fits the problem's kind."""
    if problem.kind == "argmin":
        return bilevel.argmin(problem.inner, phi, problem.theta, solver=solver)
    if problem.kind == "root":
        return bilevel.root(
            problem.inner, phi, problem.theta, solver=solver, symmetric=problem.symmetric
        )
    return bilevel.fixed_point(problem.inner, phi, problem.theta, solver=solver)


def fits(problem: Problem, solver: bilevel.Solver) -> bool:
    """Fixed points are never known to be symmetric, even where they happen to be."""
    return not (problem.kind == "fixed_point" and solver.needs_symmetric)


def backward(problem: Problem, theta_of: Callable[[Any], Any]) -> Tensor:
    phi = moving(problem.phi)
    value = problem.outer(phi, theta_of(phi))
    return flat(torch.autograd.grad(value, pytree.tree_leaves(phi), materialize_grads=True))


@pytest.mark.parametrize(("problem", "solver"), MINIMUM_CASES)
def test_implicit_grad_equals_the_closed_form(problem: Problem, solver: bilevel.Solver) -> None:
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=solver
    )
    assert error(found, problem.gradient) < PRECISION


@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
def test_the_four_argument_call_equals_the_closed_form(problem: Problem) -> None:
    found = bilevel.implicit_grad(problem.outer, problem.inner, problem.phi, problem.theta)
    assert error(found, problem.gradient) < PRECISION


@pytest.mark.parametrize(("problem", "solver"), CASES)
def test_backward_through_the_free_function_equals_the_closed_form(
    problem: Problem, solver: bilevel.Solver
) -> None:
    if fits(problem, solver):
        found = backward(problem, lambda phi: attached(problem, solver, phi))
        assert error(found, problem.gradient) < PRECISION


@pytest.mark.parametrize(("problem", "solver"), CASES)
def test_the_forward_derivative_equals_the_closed_form_along_a_direction(
    problem: Problem, solver: bilevel.Solver
) -> None:
    if fits(problem, solver):
        along = normal(problem.phi.numel(), seed=7)
        found = torch.func.jvp(
            lambda phi: problem.outer(phi, attached(problem, solver, phi)), (problem.phi,), (along,)
        )[1]
        wanted = problem.gradient @ along
        assert abs(float(found - wanted)) < PRECISION * float(
            problem.gradient.norm() * along.norm()
        )


@pytest.mark.parametrize(("problem", "solver"), MINIMUM_CASES)
def test_the_root_of_the_gradient_equals_the_closed_form(
    problem: Problem, solver: bilevel.Solver
) -> None:
    def condition(phi: Tensor, theta: Tensor) -> Tensor:
        return torch.func.grad(lambda t: problem.inner(phi, t))(theta)

    found = backward(
        problem,
        lambda phi: bilevel.root(condition, phi, problem.theta, solver=solver, symmetric=True),
    )
    assert error(found, problem.gradient) < PRECISION


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
@pytest.mark.parametrize("solver", [bilevel.CG(rtol=1e-13), bilevel.Exact()], ids=["CG", "Exact"])
def test_implicit_grad_equals_the_closed_form_in_every_shape(
    problem: Problem, shape: Shape, solver: bilevel.Solver
) -> None:
    shaped = problem.in_shape(shape)
    whole = bilevel.ImplicitProblem(shaped.outer, shaped.inner, solver=solver)
    found = whole.implicit_grad(shaped.phi, shaped.theta)
    assert pytree.tree_structure(found) == pytree.tree_structure(shaped.phi)
    pytree.tree_map(lambda a, b: torch.testing.assert_close(a.shape, b.shape), found, shaped.phi)
    assert error(shape.unpack(found), problem.gradient) < PRECISION


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_free_functions_equal_the_closed_form_in_every_shape(
    problem: Problem, shape: Shape
) -> None:
    shaped = problem.in_shape(shape)
    phi = moving(shaped.phi)
    value = shaped.outer(phi, attached(shaped, None, phi))
    leaves, spec = pytree.tree_flatten(phi)
    found = torch.autograd.grad(value, leaves, materialize_grads=True)
    assert error(shape.unpack(pytree.tree_unflatten(found, spec)), problem.gradient) < PRECISION


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_the_solution_of_a_problem_differentiates_in_every_shape(shape: Shape) -> None:
    problem = logistic()
    shaped = problem.in_shape(shape)
    whole = bilevel.ImplicitProblem(shaped.outer, shaped.inner, solver=bilevel.CG(rtol=1e-13))
    phi = moving(shaped.phi)
    value = shaped.outer(phi, whole.solution(phi, shaped.theta))
    leaves, spec = pytree.tree_flatten(phi)
    found = torch.autograd.grad(value, leaves, materialize_grads=True)
    assert error(shape.unpack(pytree.tree_unflatten(found, spec)), problem.gradient) < PRECISION


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse"])
@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]], ids=lambda s: s.name)
def test_every_exact_product_gives_the_closed_form(
    problem: Problem, shape: Shape, hvp: Any
) -> None:
    shaped = problem.in_shape(shape)
    found, info = bilevel.implicit_grad(
        shaped.outer, shaped.inner, shaped.phi, shaped.theta, hvp=hvp, return_info=True
    )
    assert info.hvp == ("reverse" if hvp == "auto" else hvp)
    assert error(shape.unpack(found), problem.gradient) < PRECISION


@pytest.mark.parametrize("problem", MINIMA, ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("dtype", "accuracy"),
    [(torch.float64, 1e-9), (torch.float32, 1e-3)],
    ids=["float64", "float32"],
)
def test_finite_differences_give_the_closed_form_to_their_own_accuracy(
    problem: Problem, dtype: torch.dtype, accuracy: float
) -> None:
    found = bilevel.implicit_grad(
        problem.outer,
        problem.inner,
        problem.phi.to(dtype),
        problem.theta.to(dtype),
        hvp="finite_difference",
    )
    assert error(found, problem.gradient) < accuracy


@pytest.mark.parametrize(
    ("problem", "solver"),
    [pytest.param(p, s, id=f"{p.name}-{n}") for p in MINIMA for n, s in solvers(p, 1e-6).items()],
)
def test_float32_gives_the_closed_form_within_rounding(
    problem: Problem, solver: bilevel.Solver
) -> None:
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi.float(), problem.theta.float(), solver=solver
    )
    condition = float(torch.linalg.cond(problem.matrix))
    assert found.dtype == torch.float32
    assert error(found, problem.gradient) < 20 * condition * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("problem", EQUATIONS, ids=lambda p: p.name)
def test_float32_equations_give_the_closed_form_within_rounding(problem: Problem) -> None:
    phi = problem.phi.float().requires_grad_()
    theta = problem.theta.float()
    call = bilevel.root if problem.kind == "root" else bilevel.fixed_point
    value = problem.outer(phi, call(problem.inner, phi, theta))
    condition = float(torch.linalg.cond(problem.matrix))
    limit = 20 * condition * torch.finfo(torch.float32).eps
    assert error(torch.autograd.grad(value, phi)[0], problem.gradient) < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_gives_the_closed_form_to_its_few_digits(dtype: torch.dtype) -> None:
    problem = logistic()
    found = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi.to(dtype), problem.theta.to(dtype)
    )
    assert found.dtype == dtype
    assert error(found, problem.gradient) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("solver", [None, bilevel.Auto(rtol=1e-12), bilevel.CG(rtol=1e-12)])
def test_a_quadratic_of_two_hundred_unknowns_equals_its_closed_form(
    solver: bilevel.Solver | None,
) -> None:
    problem = quadratic(n=200, p=5)
    found, info = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=solver, return_info=True
    )
    assert error(found, problem.gradient) < PRECISION
    assert info.solution.stats.iterations > 1


def test_a_fixed_point_of_two_hundred_unknowns_equals_its_closed_form() -> None:
    W = 0.6 * orthogonal(200, seed=60)
    phi = normal(200, seed=61).requires_grad_()
    A = torch.eye(200, dtype=torch.float64) - W
    z = torch.linalg.solve(A, phi.detach())
    goal = normal(200, seed=62)
    found = bilevel.fixed_point(lambda p, z: W @ z + p, phi, z)
    gradient = torch.autograd.grad(((found - goal) ** 2).sum() / 2, phi)[0]
    assert error(gradient, torch.linalg.solve(A.T, z - goal)) < PRECISION


def test_a_kkt_system_of_two_hundred_unknowns_is_solved_by_the_default() -> None:
    # The multipliers alone feel the right-hand side at first: p'Kp is exactly 0 in step one.
    A, b = normal(60, 150, seed=63), normal(60, seed=64).requires_grad_()
    eye = torch.eye(150, dtype=torch.float64)
    kkt = torch.cat([torch.cat([eye, A.T], 1), torch.cat([A, A.new_zeros(60, 60)], 1)])
    theta = torch.linalg.solve(kkt, torch.cat([A.new_zeros(150), b.detach()]))

    def condition(b: Tensor, t: Tensor) -> Tensor:
        return torch.cat([t[:150] + A.T @ t[150:], A @ t[:150] - b])

    x = bilevel.root(condition, b, theta, symmetric=True)
    goal = torch.cat([A.new_zeros(150), normal(60, seed=65)])
    gradient = torch.autograd.grad(x @ goal, b)[0]
    assert error(gradient, torch.linalg.solve(kkt, goal)[150:]) < 1e-6


@pytest.mark.parametrize("name", sorted(solvers(MINIMA[-1])))
def test_zero_dimensional_tensors_are_problems_like_any_other(name: str) -> None:
    a, p = 3.0, torch.tensor(1.7, dtype=torch.float64)
    solver = solvers(MINIMA[-1])[name]
    found = bilevel.implicit_grad(
        lambda p, t: t**2, lambda p, t: a * t**2 / 2 - p * t, p, p / a, solver=solver
    )
    assert found.shape == ()
    assert abs(float(found - 2 * p / a**2)) < PRECISION
