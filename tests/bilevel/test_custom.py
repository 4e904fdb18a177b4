"""Solvers of one's own, made differentiable in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import bilevel
from tests.bilevel.custom_cases import (
    F64,
    PHI,
    POINT,
    RIDGE,
    ROOT,
    Case,
    Function,
    W,
    X,
    assert_near,
    by_iterating,
    by_newton,
    cubic,
    differences,
    layer,
    outer,
    penalized,
    ridge,
)
from tests.bilevel.problems import normal

PHIS = normal(4, 3, seed=3)
every_case = pytest.mark.parametrize("case", [RIDGE, ROOT, POINT], ids=lambda case: case.name)
vmappable = pytest.mark.parametrize("case", [ROOT, POINT], ids=lambda case: case.name)


@every_case
def test_the_value_is_the_solvers_own(case: Case) -> None:
    assert torch.equal(case.attached(PHI, X), case.solver(PHI, X).detach())


@every_case
def test_the_gradients_in_phi_and_args_are_those_of_the_problem_solved_again(case: Case) -> None:
    phi, inputs = PHI.clone().requires_grad_(), X.clone().requires_grad_()
    outer(case.attached(phi, inputs)).backward()
    again = lambda phi, inputs: outer(case.solver(phi, inputs).detach())  # noqa: E731
    assert_near(phi.grad, differences(lambda phi: again(phi, X), PHI), rtol=1e-6)
    assert_near(inputs.grad, differences(lambda inputs: again(PHI, inputs), X), rtol=1e-6)


@every_case
def test_second_derivatives_are_those_of_the_exact_solution(case: Case) -> None:
    def second(solution: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        phi, inputs = PHI.clone().requires_grad_(), X.clone().requires_grad_()
        value = outer(solution(phi, inputs))
        slopes = torch.autograd.grad(value, (phi, inputs), create_graph=True)
        size = (slopes[0] ** 2).sum() + (slopes[1] ** 2).sum()
        return torch.autograd.grad(size, (phi, inputs))

    assert_near(second(case.attached), second(case.exact))


TRANSFORMS: dict[str, Callable[[Function], Any]] = {
    "grad": lambda f: grad(f, (0, 1))(PHI, X),
    "vjp": lambda f: vjp(f, PHI, X)[1](torch.tensor(2.0, dtype=F64)),
    "jvp": lambda f: jvp(f, (PHI, X), (W, X.cos()))[1],
    "jacrev": lambda f: jacrev(f)(PHI, X),
    "jacfwd": lambda f: jacfwd(f)(PHI, X),
    "hessian": lambda f: hessian(f)(PHI, X),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(PHI, X),
    "vmap over the tangents": lambda f: vmap(lambda t: jvp(f, (PHI, X), (t, X))[1])(PHIS),
}

BATCHES: dict[str, Callable[[Function], Any]] = {
    "vmap": lambda f: vmap(f, (0, None))(PHIS, X),
    "vmap over args": lambda f: vmap(f, (None, 2))(PHI, torch.stack([X, 2 * X], dim=2)),
    "vmap of grad": lambda f: vmap(grad(f), (0, None))(PHIS, X),
    "vmap of vmap": lambda f: vmap(vmap(f, (0, None)), (0, None))(PHIS.view(2, 2, 3), X),
    "vmap of hessian": lambda f: vmap(hessian(f), (0, None))(PHIS, X),
    "grad of vmap": lambda f: grad(lambda p: vmap(f, (0, None))(p, X).square().sum())(PHIS),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@every_case
def test_a_solver_may_do_what_it_likes_underneath_a_transform(
    case: Case, transform: Callable[[Function], Any]
) -> None:
    def of(solution: Callable[..., Tensor]) -> Function:
        return lambda phi, inputs: outer(solution(phi, inputs))

    assert_near(transform(of(case.attached)), transform(of(case.exact)))


@pytest.mark.parametrize("transform", BATCHES.values(), ids=BATCHES)
@vmappable
def test_a_solver_that_vmap_can_carry_solves_a_batch(
    case: Case, transform: Callable[[Function], Any]
) -> None:
    def of(solution: Callable[..., Tensor]) -> Function:
        return lambda phi, inputs: outer(solution(phi, inputs))

    assert_near(transform(of(case.attached)), transform(of(case.exact)))


@pytest.mark.parametrize("transform", [grad, hessian, lambda f: vmap(grad(f))])
def test_a_solver_may_use_func_transforms_itself(transform: Function) -> None:
    def inner(phi: Tensor, t: Tensor) -> Tensor:
        return (t**4 + t**2 - 2 * phi * t).sum()

    @bilevel.custom_argmin(inner)
    def newton(phi: Tensor) -> Tensor:
        t = torch.zeros_like(phi)
        for _ in range(30):
            slope, curvature = (f(inner, 1)(phi, t) for f in (grad, hessian))
            t = t - torch.linalg.inv(curvature) @ slope
        return t

    def exact(phi: Tensor) -> Tensor:
        t = newton(phi.detach())
        for _ in range(2):
            t = t - (2 * t**3 + t - phi) / (6 * t**2 + 1)
        return outer(t)

    at = PHI if transform in (grad, hessian) else PHIS
    assert_near(transform(lambda phi: outer(newton(phi)))(at), transform(exact)(at))


def test_a_solver_may_record_what_it_needs_with_enable_grad() -> None:
    @bilevel.custom_argmin(lambda phi, t: ((t - phi.exp()) ** 2).sum())
    def descend(phi: Tensor) -> Tensor:
        assert not phi.requires_grad
        assert not torch.is_grad_enabled()
        t = torch.zeros_like(phi, requires_grad=True)
        optimizer = torch.optim.SGD([t], lr=0.25)
        for _ in range(60):
            optimizer.zero_grad()
            with torch.enable_grad():
                ((t - phi.exp()) ** 2).sum().backward()
            optimizer.step()
        return t

    phi = PHI.clone().requires_grad_()
    assert_near(torch.autograd.grad(descend(phi).sum(), phi)[0], PHI.exp())
    assert_near(grad(lambda phi: descend(phi).sum())(PHI), PHI.exp())
    assert phi.grad is None


def test_a_solver_may_work_in_inference_mode_or_return_what_it_was_given() -> None:
    @bilevel.custom_root(lambda phi, x: x - phi**2)
    @torch.inference_mode()
    def square(phi: Tensor) -> Tensor:
        return phi**2

    same = bilevel.custom_root(lambda phi, x: x - phi)(lambda phi: phi)
    for take in (grad, lambda f: vmap(grad(f))):
        assert_near(take(lambda phi: square(phi).sum())(PHI), 2 * PHI)
        assert_near(take(lambda phi: same(phi).sum())(PHI), torch.ones_like(PHI))
    phi = PHI.clone().requires_grad_()
    assert_near(torch.autograd.grad((square(phi) * same(phi)).sum(), phi)[0], 3 * PHI**2)


def test_the_solver_is_called_once_for_a_call_and_not_for_derivatives() -> None:
    calls = []

    @bilevel.custom_root(cubic)
    def counted(phi: Tensor, inputs: Tensor) -> Tensor:
        calls.append(phi)
        return by_newton(phi, inputs)

    phi = PHI.clone().requires_grad_()
    (slope,) = torch.autograd.grad(outer(counted(phi, X)), phi, create_graph=True)
    slope.sum().backward()
    assert len(calls) == 1
    value = lambda phi: outer(counted(phi, X))  # noqa: E731
    for transformed, at in ((grad(value), PHI), (hessian(value), PHI), (vmap(grad(value)), PHIS)):
        calls.clear()
        transformed(at)
        assert len(calls) == 1


def test_options_go_to_the_solver_alone_and_its_name_and_docstring_stay() -> None:
    given = {}

    @bilevel.custom_root(cubic)
    def solve(phi: Tensor, inputs: Tensor, *, steps: int, start: Tensor) -> Tensor:
        """Newton's method."""
        given.update(steps=steps, start=start)
        return by_newton(phi, inputs, steps)

    start = torch.zeros(3, dtype=F64)
    phi = PHI.clone().requires_grad_()
    found = solve(phi, X, steps=11, start=start)
    assert (solve.__name__, solve.__doc__) == ("solve", "Newton's method.")
    assert given["steps"] == 11
    assert torch.equal(given["start"], start)
    batched = vmap(lambda start: solve(PHI, X, steps=11, start=start))(PHIS)
    assert_near(batched, found.detach().expand(4, 3))


@pytest.mark.parametrize("name", ["argmin", "root", "fixed_point"])
def test_aux_is_passed_through_and_detached(name: str) -> None:
    case = {"argmin": RIDGE, "root": ROOT, "fixed_point": POINT}[name]
    function = {"argmin": penalized, "root": cubic, "fixed_point": layer}[name]
    decorate = getattr(bilevel, f"custom_{name}")(function, has_aux=True)

    def solver(phi: Tensor, inputs: Tensor) -> Any:
        x = case.solver(phi, inputs)
        return x, {"twice": 2 * x, "steps": 7, "why": ("done", None)}

    attached = decorate(solver)
    phi = PHI.clone().requires_grad_()
    x, aux = attached(phi, X)
    assert_near(torch.autograd.grad(outer(x), phi)[0], grad(lambda p: outer(case.exact(p, X)))(PHI))
    assert not aux["twice"].requires_grad
    assert_near(aux["twice"], 2 * x.detach())
    assert (aux["steps"], aux["why"]) == (7, ("done", None))

    def with_aux(phi: Tensor) -> tuple[Tensor, Any]:
        x, aux = attached(phi, X)
        return outer(x) + aux["twice"].sum(), aux["twice"]

    slope, twice = grad(with_aux, has_aux=True)(PHI)
    assert_near(slope, grad(lambda phi: outer(case.exact(phi, X)))(PHI))
    assert_near(twice, aux["twice"])


def test_aux_is_batched_with_the_solution() -> None:
    @bilevel.custom_root(cubic, has_aux=True)
    def solve(phi: Tensor, inputs: Tensor) -> tuple[Tensor, Any]:
        x = by_newton(phi, inputs)
        return x, (cubic(phi, x, inputs).norm(), inputs.sum(), "newton")

    def value(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, (residual, total, name) = solve(phi, X)
        assert name == "newton"
        return x, residual, total

    found, residuals, totals = vmap(value)(PHIS)
    assert_near(found, torch.stack([by_newton(phi, X) for phi in PHIS]))
    assert_near(residuals, torch.zeros(4, dtype=F64))
    assert_near(totals, X.sum().expand(4))


def test_trees_go_in_and_come_out() -> None:
    def condition(phi: Any, x: Any, batch: Any) -> Any:
        rows, (offset,) = batch
        return {
            "b": x["b"] ** 3 - phi[1]["shift"] - offset,
            "a": 3 * x["a"] + 0.5 * x["b"] - rows.T @ phi[0],
        }

    @bilevel.custom_root(condition)
    def solve(phi: Any, batch: Any) -> Any:
        rows, (offset,) = batch
        b = (phi[1]["shift"] + offset) ** (1 / 3)
        return {"a": (rows.T @ phi[0] - 0.5 * b) / 3, "b": b}

    phi = (normal(8, seed=6), {"shift": torch.tensor(5.0, dtype=F64)})
    batch = (X, [torch.tensor(3.0, dtype=F64)])
    b_slope = torch.tensor(1 / 12, dtype=F64)
    slopes = grad(lambda p, batch: solve(p, batch)["a"].sum(), (0, 1))(phi, batch)
    assert_near(slopes[0][0], X.sum(1) / 3)
    assert_near((slopes[0][1]["shift"], slopes[1][1][0]), (-b_slope / 2, -b_slope / 2))
    assert_near(slopes[1][0], phi[0].unsqueeze(1).expand(8, 3) / 3)


def test_a_solver_may_be_part_of_the_problem_of_another() -> None:
    square = bilevel.custom_root(lambda phi, x: x - phi**2)(lambda phi: phi**2)
    fourth = bilevel.custom_argmin(lambda phi, t: ((t - square(phi) ** 2) ** 2).sum())(
        lambda phi: square(phi) ** 2
    )
    value = lambda phi: fourth(phi).sum()  # noqa: E731
    assert_near(grad(value)(PHI), 4 * PHI**3)
    assert_near(jacrev(jacrev(value))(PHI), torch.diag(12 * PHI**2))
    assert_near(vmap(grad(value))(PHIS), 4 * PHIS**3)


def test_the_parameters_of_a_module_may_be_phi() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3).double()
    with torch.no_grad():
        model.weight.mul_(0.3)

    def step(parameters: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.tanh(functional_call(model, parameters, (z,)))

    @bilevel.custom_fixed_point(step)
    def equilibrium(parameters: dict[str, Tensor]) -> Tensor:
        z = torch.zeros(3, dtype=F64)
        for _ in range(100):
            z = torch.tanh(model(z))  # the module as it is: nothing is recorded here
        return z

    equilibrium(dict(model.named_parameters())).sum().backward()
    z = equilibrium(dict(model.named_parameters())).detach()
    bend = 1 - z**2
    matrix = torch.eye(3, dtype=F64) - bend.unsqueeze(1) * model.weight.detach()
    adjoint = bend * torch.linalg.solve(matrix.T, torch.ones(3, dtype=F64))
    assert_near(model.bias.grad, adjoint)
    assert_near(model.weight.grad, torch.outer(adjoint, z))


def test_the_options_of_the_attached_derivative_are_used() -> None:
    def inner(phi: Tensor, t: Tensor) -> Tensor:
        return (t - phi).square().sum() / 2

    attached = bilevel.custom_argmin(inner, damping=1.0)(lambda phi: phi)
    assert_near(grad(lambda phi: attached(phi).sum())(PHI), torch.full((3,), 0.5, dtype=F64))
    truncated = bilevel.custom_argmin(
        lambda phi, t: penalized(phi, t, X),
        solver=bilevel.CG(max_steps=1),
        on_failure="raise",
    )(lambda phi: ridge(phi, X))
    with pytest.raises(bilevel.SolveError, match="BUDGET"):
        grad(lambda phi: truncated(phi).sum())(PHI)
    symmetric = bilevel.custom_root(
        lambda phi, x: 2 * x - phi, solver=bilevel.MINRES(), symmetric=True
    )(lambda phi: phi / 2)
    assert_near(grad(lambda phi: symmetric(phi).sum())(PHI), torch.full((3,), 0.5, dtype=F64))
    with pytest.raises(bilevel.InputError, match="CG needs a symmetric Jacobian"):
        bilevel.custom_fixed_point(layer, solver=bilevel.CG())(by_iterating)(PHI, X)
