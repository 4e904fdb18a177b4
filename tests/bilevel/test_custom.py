"""Solvers of one's own, made differentiable in one call, and the differentiable linear solve."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import bilevel
from bilevel.solvers.base import Outcome
from tests.bilevel.problems import normal, spd

F64 = torch.float64
X, Y = normal(8, 3, seed=0), normal(8, seed=1)
PHI = normal(3, seed=2)
PHIS = normal(4, 3, seed=3)
W = normal(3, seed=4)
M = 0.4 * normal(3, 3, seed=5)
Function = Callable[..., Any]


def assert_near(found: Any, wanted: Any, rtol: float = 1e-8) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-9)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a number, by central differences."""
    units = step * torch.eye(at.numel(), dtype=F64).view(-1, *at.shape)
    found = [float(function(at + unit) - function(at - unit)) / (2 * step) for unit in units]
    return torch.tensor(found, dtype=F64).view(at.shape)


# Ridge regression by LBFGS, a root by Newton's method, a fixed point by iterating.


def penalized(phi: Tensor, w: Tensor, inputs: Tensor) -> Tensor:
    return ((inputs @ w - Y) ** 2).sum() / 2 + (phi.exp() * w**2).sum() / 2


def by_lbfgs(phi: Tensor, inputs: Tensor) -> Tensor:
    w = torch.zeros(3, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"tolerance_grad": 1e-13, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = penalized(phi, w, inputs)
        loss.backward()
        return loss

    optimizer.step(closure)
    return w


def ridge(phi: Tensor, inputs: Tensor) -> Tensor:
    # Not torch.linalg.solve: vmap of its forward derivative is wrong in torch 2.13.
    return torch.linalg.inv(inputs.T @ inputs + phi.exp().diag()) @ inputs.T @ Y


def cubic(phi: Tensor, x: Tensor, inputs: Tensor) -> Tensor:
    return x**3 + 4 * x + M @ x - phi.sin() - inputs.sum(0)


def by_newton(phi: Tensor, inputs: Tensor, steps: int = 12) -> Tensor:
    x = torch.zeros(3, dtype=F64)
    for _ in range(steps):
        x = newton_step(phi, x, inputs)
    return x


def newton_step(phi: Tensor, x: Tensor, inputs: Tensor) -> Tensor:
    matrix = torch.diag(3 * x**2 + 4) + M
    return x - torch.linalg.inv(matrix) @ cubic(phi, x, inputs)


def layer(phi: Tensor, z: Tensor, inputs: Tensor) -> Tensor:
    return torch.tanh(M @ z + phi + inputs.mean(0))


def by_iterating(phi: Tensor, inputs: Tensor) -> Tensor:
    z = torch.zeros(3, dtype=F64)
    for _ in range(100):
        z = layer(phi, z, inputs)
    return z


def two_steps_more(phi: Tensor, z: Tensor, inputs: Tensor) -> Tensor:
    """Two Newton steps from the fixed point: right to the third order of derivatives."""
    for _ in range(2):
        image = layer(phi, z, inputs)
        matrix = torch.eye(3, dtype=F64) - (1 - image**2).unsqueeze(1) * M
        z = z - torch.linalg.inv(matrix) @ (z - image)
    return z


@dataclass(frozen=True)
class Case:
    """A solver, the same with the derivative attached, and the solution in differentiable steps."""

    name: str
    solver: Callable[..., Tensor]
    decorator: Function
    exact: Callable[[Tensor, Tensor], Tensor]

    @property
    def attached(self) -> Callable[..., Tensor]:
        return self.decorator(self.solver)


def _exact_root(phi: Tensor, inputs: Tensor) -> Tensor:
    x = by_newton(phi.detach(), inputs.detach())
    return newton_step(phi, newton_step(phi, x, inputs), inputs)


def _exact_point(phi: Tensor, inputs: Tensor) -> Tensor:
    return two_steps_more(phi, by_iterating(phi.detach(), inputs.detach()), inputs)


RIDGE = Case("argmin", by_lbfgs, bilevel.custom_argmin(penalized), ridge)
ROOT = Case("root", by_newton, bilevel.custom_root(cubic), _exact_root)
POINT = Case("fixed_point", by_iterating, bilevel.custom_fixed_point(layer), _exact_point)
every_case = pytest.mark.parametrize("case", (RIDGE, ROOT, POINT), ids=lambda case: case.name)
vmappable = pytest.mark.parametrize("case", (ROOT, POINT), ids=lambda case: case.name)


def outer(x: Tensor) -> Tensor:
    return (W * x).sum().sin() + (x**2).sum()


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
        return torch.autograd.grad(sum((slope**2).sum() for slope in slopes), (phi, inputs))

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
    for transform in (grad, hessian, lambda f: vmap(grad(f), (0, None))):
        calls.clear()
        transform(lambda phi, inputs: outer(counted(phi, inputs)))(PHIS if not calls else PHI, X)
        assert len(calls) == 1


def test_options_go_to_the_solver_alone_and_its_name_and_docstring_stay() -> None:
    given = {}

    @bilevel.custom_root(cubic)
    def solve(phi: Tensor, inputs: Tensor, *, steps: int, start: Tensor) -> Tensor:
        """Newton's method."""
        given.update(steps=steps, start=start)
        return by_newton(phi, inputs, steps)

    start = torch.zeros(3, dtype=F64, requires_grad=True)
    phi = PHI.clone().requires_grad_()
    found = solve(phi, X, steps=11, start=start)
    assert (solve.__name__, solve.__doc__) == ("solve", "Newton's method.")
    assert given["steps"] == 11
    assert not given["start"].requires_grad
    assert torch.autograd.grad(found.sum(), start, allow_unused=True) == (None,)
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


REFUSED: dict[str, tuple[Any, str]] = {
    "a pair without has_aux": ((PHI, 7), r"what solve returned\[1\] is a int.*has_aux=True"),
    "nothing": (None, "what solve returned is a NoneType"),
    "integers": (torch.arange(3), "what solve returned has dtype torch.int64"),
    "a module": (torch.nn.Linear(1, 1), r"what solve returned is a module"),
    "another dtype": (PHI.float(), "x_star is torch.float32 on cpu, but phi is torch.float64"),
}


@pytest.mark.parametrize(("returned", "message"), REFUSED.values(), ids=REFUSED)
def test_a_solver_that_returns_no_solution_is_told_so(returned: Any, message: str) -> None:
    @bilevel.custom_root(lambda phi, x: x - phi)
    def solve(phi: Tensor) -> Any:
        return returned

    with pytest.raises(bilevel.InputError, match=message):
        solve(PHI)
    with pytest.raises(bilevel.InputError, match=message):
        grad(lambda phi: solve(phi).sum())(PHI)


@pytest.mark.parametrize("returned", [PHI, (PHI,), (PHI, 1, 2), [PHI, 1]])
def test_a_solver_that_returns_no_pair_with_has_aux_is_told_so(returned: Any) -> None:
    @bilevel.custom_root(lambda phi, x: x - phi, has_aux=True)
    def solve(phi: Tensor) -> Any:
        return returned

    with pytest.raises(bilevel.InputError, match=r"what solve returned is a .* wanted \(x_star, a"):
        solve(PHI)
    with pytest.raises(bilevel.InputError, match=r"what solve returned\[0\] is a int"):
        bilevel.custom_root(cubic, has_aux=True)(solve.__wrapped__)(PHI) if returned is None else (
            bilevel.custom_root(cubic, has_aux=True)(_pair_of_int)(PHI)
        )


def _pair_of_int(phi: Tensor) -> Any:
    return 3, phi


def test_options_and_functions_that_do_not_fit_are_refused_when_they_are_given() -> None:
    for decorator in (bilevel.custom_argmin, bilevel.custom_root, bilevel.custom_fixed_point):
        with pytest.raises(bilevel.InputError, match="must be a function"):
            decorator(PHI)
        with pytest.raises(bilevel.InputError, match="CG.*a class: call it"):
            decorator(cubic, solver=bilevel.CG)
        with pytest.raises(bilevel.InputError, match="on_failure must be"):
            decorator(cubic, on_failure="shout")
        with pytest.raises(bilevel.InputError, match="decorates a solver.*but was given Tensor"):
            decorator(by_newton)(PHI)  # the decorator's own function was forgotten
    with pytest.raises(bilevel.InputError, match="damping must be"):
        bilevel.custom_argmin(penalized, damping=-1.0)
    with pytest.raises(bilevel.InputError, match="phi has dtype torch.int64"):
        ROOT.attached(torch.arange(3), X)


def test_a_function_that_closes_over_what_is_followed_is_refused() -> None:
    scale = torch.tensor(2.0, dtype=F64, requires_grad=True)

    @bilevel.custom_root(lambda phi, x: x - scale * phi)
    def solve(phi: Tensor) -> Tensor:
        return scale.detach() * phi

    with pytest.raises(bilevel.InputError, match="part of neither phi nor args"):
        solve(PHI)

    def doubled(scale: Tensor) -> Tensor:
        return bilevel.custom_root(lambda phi, x: x - scale * phi)(lambda phi: scale * phi)(PHI)

    with pytest.raises(bilevel.TransformError, match="part of neither phi nor args"):
        jacrev(doubled)(scale.detach())
    with pytest.raises(bilevel.TransformError, match="closes over a tensor that torch.func.vmap"):
        vmap(doubled)(PHIS[0])


def test_errors_of_a_solver_say_how_it_is_called() -> None:
    @bilevel.custom_argmin(lambda phi, t: (t - phi).square().sum())
    def forgetful(phi: Tensor) -> Tensor:
        t = torch.zeros_like(phi, requires_grad=True)
        (t - phi).square().sum().backward()
        return t

    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        forgetful(PHI)
    assert "enable_grad" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError) as caught:
        vmap(RIDGE.attached, (0, None))(PHIS, X)
    assert "by_lbfgs has to be one that vmap can carry" in caught.value.__notes__[0]


# The linear solve.

A = normal(4, 4, seed=7) + 4 * torch.eye(4, dtype=F64)
B = normal(4, seed=8)


def times(phi: Tensor, x: Tensor) -> Tensor:
    return phi @ x


def linear(phi: Tensor, b: Tensor, **options: Any) -> Tensor:
    return bilevel.linear_solve(times, phi, b, **options)


def by_inverse(phi: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.inv(phi) @ b


SOLVERS: dict[str, bilevel.Solver] = {
    "Auto": bilevel.Auto(),
    "GMRES": bilevel.GMRES(rtol=1e-13),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-13),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_system_that_is_not_symmetric_is_solved_and_differentiated_twice(
    solver: bilevel.Solver,
) -> None:
    phi, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    assert_near(linear(A, B, solver=solver), by_inverse(A, B))
    solution = lambda phi, b: linear(phi, b, solver=solver)  # noqa: E731
    assert torch.autograd.gradcheck(solution, (phi, b), atol=1e-7)
    assert torch.autograd.gradgradcheck(solution, (phi, b), atol=1e-7)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(f, (0, 1))(A, B),
        lambda f: jvp(f, (A, B), (A.sin(), B.sin()))[1],
        lambda f: hessian(f, (0, 1))(A, B),
        lambda f: vmap(f)(torch.stack([A, 2 * A, A.T]), normal(3, 4, seed=9)),
        lambda f: vmap(grad(f), (None, 1))(A, normal(4, 3, seed=9)),
        lambda f: vmap(vmap(f, (None, 0)), (0, None))(torch.stack([A, A.T]), normal(3, 4, seed=9)),
        lambda f: grad(lambda b: vmap(f, (None, 0))(A, b).square().sum())(normal(3, 4, seed=9)),
        lambda f: vmap(hessian(f, 1), (0, None))(torch.stack([A, A.T]), B),
    ],
    ids="grad jvp hessian vmap vmap-of-grad vmap-of-vmap grad-of-vmap vmap-of-hessian".split(),
)
def test_a_linear_solve_composes_with_transforms(transform: Callable[[Function], Any]) -> None:
    def of(solution: Callable[..., Tensor]) -> Function:
        return lambda phi, b: (solution(phi, b) ** 3).sum()

    assert_near(transform(of(linear)), transform(of(by_inverse)))


def test_right_hand_sides_args_and_phi_may_be_trees() -> None:
    def matvec(phi: Any, x: Any, factor: Tensor) -> Any:
        # Another order of the keys than that of b.
        return {
            "v": factor * x["v"] + phi["c"] * x["u"].sum(),
            "u": phi["d"] * x["u"],
        }

    phi = {"d": normal(2, seed=10).exp(), "c": torch.tensor(0.5, dtype=F64)}
    b = {"u": normal(2, seed=11), "v": normal(3, 2, seed=12)}
    factor = torch.tensor(3.0, dtype=F64)

    def solution(phi: Any, b: Any, factor: Tensor) -> Any:
        return bilevel.linear_solve(matvec, phi, b, args=(factor,))

    def exact(phi: Any, b: Any, factor: Tensor) -> Any:
        u = b["u"] / phi["d"]
        return {"u": u, "v": (b["v"] - phi["c"] * u.sum()) / factor}

    assert_near(solution(phi, b, factor), exact(phi, b, factor))

    def of(solved: Function) -> Function:
        return lambda *inputs: sum((x**2).sum() for x in solved(*inputs).values())

    for take in (grad, hessian):
        assert_near(
            take(of(solution), (0, 1, 2))(phi, b, factor),
            take(of(exact), (0, 1, 2))(phi, b, factor),
        )


def test_there_may_be_no_phi_and_the_matrix_be_constant() -> None:
    solution = lambda b: bilevel.linear_solve(lambda _, x: A @ x, (), b)  # noqa: E731
    assert_near(jacrev(solution)(B), torch.linalg.inv(A))


def test_a_symmetric_system_too_large_to_be_dense_is_solved_by_products() -> None:
    n = 200
    b, phi = normal(n, seed=13), torch.linspace(1, 4, n, dtype=F64)
    products = []

    def matvec(phi: Tensor, x: Tensor) -> Tensor:
        products.append(x)
        return phi * x + 0.1 * x.sum() / n

    def solution(phi: Tensor, **options: Any) -> Tensor:
        options = {"symmetric": True, "solver": bilevel.CG(rtol=1e-12), **options}
        return bilevel.linear_solve(matvec, phi, b, **options)

    exact = lambda phi: torch.linalg.inv(phi.diag() + 0.1 / n) @ b  # noqa: E731
    assert_near(grad(lambda p: outer(solution(p)[:3]))(phi), grad(lambda p: outer(exact(p)[:3]))(phi))
    cold = len(products)
    assert cold < n
    products.clear()
    found = solution(phi, initial=exact(phi))
    assert_near(found, exact(phi))
    assert len(products) <= 5  # zero, that of the guess, and what tells whether it has arrived


def test_a_first_guess_changes_no_derivative() -> None:
    guess = (B / 3).requires_grad_()
    phi = A.clone().requires_grad_()
    found = linear(phi, B, initial=guess, solver=bilevel.GMRES(rtol=1e-13))
    slopes = torch.autograd.grad(outer(found[:3]), (phi, guess), allow_unused=True)
    assert_near(slopes[0], grad(lambda phi: outer(by_inverse(phi, B)[:3]))(A))
    assert slopes[1] is None
    batched = vmap(lambda guess: linear(A, B, initial=guess))(normal(3, 4, seed=9))
    assert_near(batched, by_inverse(A, B).expand(3, 4))


class NormalEquations(bilevel.Solver):
    """A solver that needs products with the transpose."""

    def compute(self, operator: Any, rhs: Tensor, target: Tensor, state: Any) -> Outcome:
        matrix = torch.stack([operator.rows_transposed(row[None])[0] for row in torch.eye(4).to(rhs)])
        value = torch.linalg.lstsq(matrix, rhs.T).solution.T
        zero = torch.zeros(len(rhs), dtype=torch.long)
        return Outcome(value, zero, zero, torch.full((len(rhs),), torch.inf, dtype=F64))


def test_a_solver_may_ask_for_products_with_the_transpose() -> None:
    assert_near(linear(A, B, solver=NormalEquations()), by_inverse(A, B))


def test_a_product_that_is_not_linear_is_refused() -> None:
    affine = lambda phi, x: phi @ x + 1  # noqa: E731
    with pytest.raises(bilevel.InputError, match=r"matvec\(phi, 0\) has an entry of size 1.00e\+00"):
        bilevel.linear_solve(affine, A, B)
    with pytest.raises(bilevel.InputError, match="not linear in x"):
        vmap(lambda b: bilevel.linear_solve(affine, A, b))(PHIS.new_ones(2, 4))


def test_what_does_not_fit_a_linear_solve_is_refused() -> None:
    with pytest.raises(bilevel.InputError, match=r"what matvec returned has shape \(2,\), but b"):
        bilevel.linear_solve(lambda phi, x: x[:2], A, B)
    with pytest.raises(bilevel.InputError, match="b is torch.float32.*phi is torch.float64"):
        linear(A, B.float())
    with pytest.raises(bilevel.InputError, match=r"initial has shape \(3,\), but b has \(4,\)"):
        linear(A, B, initial=PHI)
    with pytest.raises(bilevel.InputError, match="CG needs a symmetric operator"):
        linear(A, B, solver=bilevel.CG())
    with pytest.raises(bilevel.InputError, match="matvec must be a function"):
        bilevel.linear_solve(A, A, B)  # type: ignore[arg-type]
    with pytest.raises(bilevel.InputError, match="args is a Tensor"):
        linear(A, B, args=B)
    with pytest.raises(bilevel.NonFiniteError, match="b holds a NaN"):
        linear(A, B * torch.nan)
    lost = A.clone().requires_grad_()
    with pytest.raises(bilevel.InputError, match="part of neither phi nor args"):
        bilevel.linear_solve(lambda phi, x: lost @ x, (), B)
    with pytest.raises(bilevel.TransformError, match="part of neither phi nor args"):
        grad(lambda lost: bilevel.linear_solve(lambda phi, x: lost @ x, (), B).sum())(A)
    with pytest.raises(bilevel.TransformError, match="matvec closes over a tensor that torch.func"):
        vmap(lambda lost: bilevel.linear_solve(lambda phi, x: lost @ x, (), B))(torch.stack([A]))


def test_a_failed_solve_is_reported_as_asked() -> None:
    one = bilevel.GMRES(max_steps=1)
    with pytest.warns(bilevel.ConvergenceWarning, match="GMRES: BUDGET"):
        linear(A, B, solver=one)
    with pytest.raises(bilevel.SolveError, match="GMRES: BUDGET"):
        linear(A, B, solver=one, on_failure="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(A, B, solver=one, on_failure="ignore")


def test_a_matrix_that_is_symmetric_only_in_word_is_reported() -> None:
    with pytest.warns(bilevel.ConvergenceWarning):
        linear(A, B, symmetric=True)


def test_a_system_of_spd_form_keeps_its_gradient_under_every_symmetric_solver() -> None:
    matrix = spd(4, seed=14)
    for solver in (bilevel.CG(rtol=1e-13), bilevel.MINRES(rtol=1e-13)):
        options: dict[str, Any] = {"solver": solver, "symmetric": True}
        found = grad(lambda b, o=options: outer(linear(matrix, b, **o)[:3]))(B)
        assert_near(found, grad(lambda b: outer(by_inverse(matrix, b)[:3]))(B))
