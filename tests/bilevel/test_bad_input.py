"""Bad input is refused by an error that names the argument, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import bilevel
from tests.bilevel.refusals import F64, META, PHI, THETA, inner, never, outer, raises

pytestmark = pytest.mark.usefixtures("nothing_changes")


WRONG_VALUES: dict[str, tuple[Callable[..., Any], str]] = {
    "a vector": (lambda p, t: (t - p) ** 2, "returned a tensor of shape (2,)"),
    "one element": (lambda p, t: ((t - p) ** 2).sum().view(1), "returned a tensor of shape (1,)"),
    "a float": (lambda p, t: 1.0, "returned a float"),
    "an item": (lambda p, t: ((t - p) ** 2).sum().item(), "returned a float"),
    "nothing": (lambda p, t: None, "returned a NoneType"),
    "a tuple": (lambda p, t: (t.sum(), p.sum()), "returned a tuple"),
    "an integer": (lambda p, t: t.sum().long(), "returned torch.int64"),
    "a bool": (lambda p, t: t.sum() > 0, "returned torch.bool"),
    "a complex number": (lambda p, t: torch.complex(t.sum(), p.sum()), "returned torch.complex128"),
}


@pytest.mark.parametrize(("function", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
@pytest.mark.parametrize("hvp", ["auto", "forward_over_reverse", "finite_difference"])
def test_an_objective_that_returns_no_scalar_tensor_is_named(
    function: Callable[..., Any], message: str, hvp: Any
) -> None:
    with raises(f"outer {message}"):
        bilevel.implicit_grad(function, inner, PHI, THETA, hvp=hvp)
    with raises(f"inner {message}"):
        bilevel.implicit_grad(outer, function, PHI, THETA, hvp=hvp)


@pytest.mark.parametrize(("function", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_so_it_is_by_argmin_the_operator_and_refine(
    function: Callable[..., Any], message: str
) -> None:
    with raises(f"inner {message}"):
        bilevel.argmin(function, PHI, THETA)
    with raises(f"inner {message}"):
        torch.func.grad(lambda p: bilevel.argmin(function, p, THETA).sum())(PHI)
    problem = bilevel.ImplicitProblem(outer, function)
    for method in (problem.operator, problem.stationarity, problem.refine):
        with raises(f"inner {message}"):
            method(PHI, THETA)
    with raises(f"objective {message}"):
        bilevel.hessian(lambda t: function(PHI, t), THETA)


@pytest.mark.parametrize("hvp", ["auto", "forward_over_reverse", "finite_difference"])
def test_an_objective_that_autograd_cannot_follow_is_named(hvp: Any) -> None:
    def cut(phi: Tensor, theta: Tensor) -> Tensor:
        return ((theta.detach() - phi.detach()) ** 2).sum()

    def without(phi: Tensor, theta: Tensor) -> Tensor:
        with torch.no_grad():
            return inner(phi, theta)

    for function in (cut, without):
        with raises("outer depends on neither phi nor theta"):
            bilevel.implicit_grad(function, inner, PHI, THETA, hvp=hvp)
        with raises("inner does not depend on its theta argument"):
            bilevel.implicit_grad(outer, function, PHI, THETA, hvp=hvp)


@pytest.mark.parametrize("hvp", ["auto", "forward_over_reverse", "finite_difference"])
def test_a_phi_that_nothing_depends_on_is_refused(hvp: Any) -> None:
    with raises("depends on phi"):
        bilevel.implicit_grad(outer, lambda p, t: ((t - PHI) ** 2).sum(), PHI, THETA, hvp=hvp)


@pytest.mark.parametrize("hvp", ["auto", "forward_over_reverse", "finite_difference"])
def test_a_theta_leaf_that_inner_does_not_use_is_named_unless_damped(hvp: Any) -> None:
    theta = {"w": THETA, "unused": [torch.ones(3, dtype=F64)]}

    def partly(phi: Any, theta: Any) -> Tensor:
        return ((theta["w"] - phi) ** 2).sum()

    def all_of_it(phi: Any, theta: Any) -> Tensor:
        return theta["w"].sum() + theta["unused"][0].sum()

    with raises("inner does not depend on theta['unused'][0]"):
        bilevel.implicit_grad(all_of_it, partly, PHI, theta, hvp=hvp)
    gradient, info = bilevel.implicit_grad(
        all_of_it, partly, PHI, theta, hvp=hvp, damping=1.0, return_info=True
    )
    torch.testing.assert_close(gradient, torch.full((2,), 2 / 3, dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(info.adjoint["unused"][0], torch.ones(3, dtype=F64))
    # A leaf without elements is no direction of the problem.
    theta["unused"] = [torch.zeros(0, 4, dtype=F64)]
    assert bool(bilevel.implicit_grad(all_of_it, partly, PHI, theta, hvp=hvp).isfinite().all())


def test_argmin_names_an_unused_leaf_too() -> None:
    phi = PHI.clone().requires_grad_()
    theta = [THETA, torch.ones(3, dtype=F64)]

    def partly(phi: Tensor, theta: list[Tensor]) -> Tensor:
        return ((theta[0] - phi) ** 2).sum()

    solved = bilevel.argmin(partly, phi, theta)
    with raises("inner does not depend on theta_star[1]"):
        torch.autograd.grad(solved[0].sum(), phi)
    with raises("inner does not depend on theta_star"):
        torch.autograd.grad(bilevel.argmin(lambda p, t: p.sum(), phi, THETA).sum(), phi)
    with raises("inner does not depend on its theta argument"):
        torch.autograd.grad(bilevel.argmin(lambda p, t: PHI.sum(), phi, THETA).sum(), phi)
    damped = bilevel.argmin(partly, phi, theta, damping=1.0)
    torch.testing.assert_close(
        torch.autograd.grad(damped[0].sum(), phi)[0], torch.full((2,), 2 / 3, dtype=F64)
    )


WRONG_TREES: dict[str, tuple[Any, str]] = {
    "an integer leaf": ({"w": THETA, "n": torch.tensor(3)}, "['n'] has dtype torch.int64"),
    "a bool leaf": ([THETA, torch.tensor(True)], "[1] has dtype torch.bool"),
    "a complex leaf": ([THETA.to(torch.complex128)], "[0] has dtype torch.complex128"),
    "a float": ((THETA, 1.0), "[1] is a float"),
    "nothing": ({"w": THETA, "b": None}, "['b'] is a NoneType"),
    "a string": ([THETA, "w"], "[1] is a str"),
    "an array": (np.ones(2), " is a ndarray"),
    "an object": ([object()], "[0] is a object"),
    "a sparse leaf": ([THETA.to_sparse()], "[0] has layout torch.sparse_coo"),
    "another dtype": ({"a": THETA, "b": THETA.float()}, "['b'] is torch.float32 on cpu, but "),
    "another device": ([THETA, META], "[1] is torch.float64 on meta, but "),
    "an empty list": ([], " has no leaves"),
    "an empty dict": ({"a": [], "b": ()}, " has no leaves"),
    "a module": (nn.Linear(1, 1), " is a module (Linear); pass its parameters"),
}
wrong_trees = pytest.mark.parametrize(("tree", "message"), WRONG_TREES.values(), ids=WRONG_TREES)


@wrong_trees
def test_a_leaf_that_does_not_fit_is_named(tree: Any, message: str) -> None:
    for name, phi, theta in (("phi", tree, THETA), ("theta", PHI, tree)):
        problem = bilevel.ImplicitProblem(never, never)
        for call in (
            problem.implicit_grad, problem.operator, problem.stationarity, problem.refine
        ):  # fmt: skip
            with raises(name + message):
                call(phi, theta)
    with raises("phi" + message):
        bilevel.argmin(never, tree, THETA)
    with raises("theta_star" + message):
        bilevel.argmin(never, PHI, tree)
    for attach in (bilevel.root, bilevel.fixed_point):
        with raises("phi" + message):
            attach(never, tree, THETA)
        with raises("x_star" + message):
            attach(never, PHI, tree)
    with raises("theta" + message):
        bilevel.hessian(never, tree)
    with raises("x" + message):
        bilevel.jacobian(never, tree)
    with raises("phi" + message):
        torch.func.vmap(lambda t: bilevel.implicit_grad(never, never, tree, t))(THETA.view(1, 2))


def test_a_theta_that_holds_a_tensor_twice_is_refused() -> None:
    tied = {"a": THETA, "b": THETA}
    problem = bilevel.ImplicitProblem(never, never)
    compiled = bilevel.ImplicitProblem(never, never, compile=True)
    calls: list[Callable[..., Any]] = [
        problem.implicit_grad, problem.operator, problem.stationarity, problem.refine,
        lambda phi, theta: bilevel.check_gradient(problem, phi, theta),
        lambda phi, theta: torch.func.vmap(lambda p: problem.implicit_grad(p, theta))(phi[None]),
        compiled.implicit_grad,
    ]  # fmt: skip
    for call in calls:
        with raises("theta['b'] is the very tensor of theta['a']"):
            call(PHI, tied)


def test_a_phi_that_holds_a_tensor_twice_has_a_gradient_for_each_place() -> None:
    found = bilevel.implicit_grad(
        lambda p, t: t.sum(), lambda p, t: ((t - p["a"] - 2 * p["b"]) ** 2).sum(),
        {"a": PHI, "b": PHI}, THETA,
    )  # fmt: skip
    torch.testing.assert_close(found["a"], torch.ones_like(PHI))
    torch.testing.assert_close(found["b"], 2 * torch.ones_like(PHI))


def test_leaves_of_theta_may_share_memory() -> None:
    found = bilevel.implicit_grad(
        lambda p, t: (t["a"] + t["b"]).sum(),
        lambda p, t: ((t["a"] - p) ** 2 + (t["b"] - 2 * p) ** 2).sum(),
        PHI,
        {"a": THETA, "b": THETA[:]},
    )
    torch.testing.assert_close(found, 3 * torch.ones_like(PHI))


@pytest.mark.parametrize(
    ("phi", "theta", "message"),
    [
        (PHI.float(), THETA, "theta is torch.float64 on cpu, but phi is torch.float32 on cpu"),
        (PHI, {"w": THETA.half()}, "theta is torch.float16 on cpu, but phi is torch.float64"),
        (META, THETA, "theta is torch.float64 on cpu, but phi is torch.float64 on meta"),
        (PHI, [META], "theta is torch.float64 on meta, but phi is torch.float64 on cpu"),
    ],
)
def test_phi_and_theta_of_two_kinds_are_named(phi: Any, theta: Any, message: str) -> None:
    with raises(message):
        bilevel.implicit_grad(never, never, phi, theta)
    with raises(message.replace("theta", "theta_star", 1)):
        bilevel.argmin(never, phi, theta)
    with raises(message.replace("theta", "x_star", 1)):
        bilevel.root(never, phi, theta)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (THETA, "initial has another tree structure than theta"),
        ({"w": THETA, "b": THETA, "c": THETA}, "initial has another tree structure than theta"),
        ({"w": torch.ones(3, dtype=F64), "b": THETA}, "initial['w'] has shape (3,), but theta"),
        ({"w": THETA.view(1, 2), "b": THETA}, "initial['w'] has shape (1, 2), but theta"),
        ({"w": THETA.float(), "b": THETA.float()}, "initial is torch.float32 on cpu, but theta"),
        ({"w": META, "b": META}, "initial is torch.float64 on meta, but theta"),
        ({"w": THETA, "b": 1.0}, "initial['b'] is a float"),
    ],
)
def test_a_warm_start_of_another_shape_is_named(initial: Any, message: str) -> None:
    theta = {"w": THETA, "b": THETA.clone()}
    with raises(message):
        bilevel.implicit_grad(never, never, PHI, theta, initial=initial)


def test_a_state_that_another_solve_left_is_refused() -> None:
    _, info = bilevel.implicit_grad(
        outer, inner, PHI, THETA, solver=bilevel.Nystrom(rank=2), return_info=True
    )
    with raises("state"):
        bilevel.implicit_grad(outer, inner, PHI, THETA, solver=bilevel.Exact(), state=info.state)


@pytest.mark.parametrize("args", [THETA, {"x": THETA}, "batch", 3, None])
def test_arguments_that_are_no_tuple_are_named(args: Any) -> None:
    # A batch by itself would be taken apart along its first dimension.
    message = f"is a {type(args).__name__}; wanted a tuple"
    with raises(f"outer_args {message}"):
        bilevel.implicit_grad(never, never, PHI, THETA, outer_args=args)
    with raises(f"inner_args {message}"):
        bilevel.implicit_grad(never, never, PHI, THETA, inner_args=args)
    for attach in (bilevel.argmin, bilevel.root, bilevel.fixed_point):
        with raises(f"args {message}"):
            attach(never, PHI, THETA, args=args)
    with raises(f"args {message}"):
        bilevel.hessian(never, THETA, args=args)
    with raises(f"args {message}"):
        bilevel.jacobian(never, THETA, args=args)


def test_a_complex_argument_that_requires_grad_is_refused() -> None:
    weight = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    with raises("args holds a complex tensor that requires grad"):
        bilevel.argmin(never, PHI, THETA, args=(weight,))
    with forward_ad.dual_level(), raises("or carries a forward derivative"):
        dual = forward_ad.make_dual(weight.detach(), torch.ones_like(weight))
        bilevel.argmin(never, PHI, THETA, args=(dual,))
    with torch.no_grad():
        fixed = weight.clone()
    phi = PHI.clone().requires_grad_()
    solved = bilevel.argmin(
        lambda p, t, c: ((t - p) ** 2 * c.abs()).sum(), phi, THETA, args=(fixed,)
    )
    torch.testing.assert_close(torch.autograd.grad(solved.sum(), phi)[0], torch.ones(2, dtype=F64))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x.sum(), " returned has shape (), but x_star has (2,) there"),
        (lambda x: x[:1], " returned has shape (1,), but x_star has (2,) there"),
        (lambda x: torch.stack([x, x]), " returned has shape (2, 2), but x_star has (2,)"),
        (lambda x: [x], " returned has another tree structure than x_star"),
        (lambda x: x.float(), " returned is torch.float32 on cpu, but x_star is torch.float64"),
        (lambda x: x.long(), " returned has dtype torch.int64"),
        (lambda x: 1.0, " returned is a float"),
        (lambda x: None, " returned is a NoneType"),
    ],
)
def test_a_condition_or_map_that_returns_another_tree_is_named(
    returned: Callable[[Tensor], Any], message: str
) -> None:
    with raises(f"what condition{message}"):
        bilevel.root(lambda p, x: returned(x - p), PHI, THETA)
    with raises(f"what map{message}"):
        bilevel.fixed_point(lambda p, x: returned(x / 2 + p), PHI, THETA)
    with raises(f"what function{message.replace('x_star', 'x')}"):
        bilevel.jacobian(returned, THETA)


@pytest.mark.parametrize(
    "solver",
    [bilevel.CG(), bilevel.MINRES(), bilevel.Chebyshev(), bilevel.Nystrom(rank=2)],
    ids=lambda solver: type(solver).__name__,
)
def test_a_solver_that_needs_symmetry_is_refused_where_it_is_not_known(
    solver: bilevel.Solver,
) -> None:
    name = type(solver).__name__
    with raises(f"{name} needs a symmetric operator"):
        bilevel.solve(bilevel.Matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), torch.ones(2), solver)
    with raises(f"{name} needs a symmetric Jacobian, and that of condition"):
        bilevel.root(never, PHI, THETA, solver=solver)
    with raises(f"{name} needs a symmetric Jacobian, and that of map"):
        bilevel.fixed_point(never, PHI, THETA, solver=solver)
    bilevel.root(lambda p, x: x - p, PHI, THETA, solver=solver, symmetric=True)


def test_an_automatic_step_is_refused_where_symmetry_is_not_known() -> None:
    phi = PHI.clone().requires_grad_()
    solved = bilevel.fixed_point(lambda p, x: x / 2 + p, phi, THETA, solver=bilevel.Neumann())
    with raises('Neumann(step="auto")'):
        torch.autograd.grad(solved.sum(), phi)


@pytest.mark.parametrize("attach", [bilevel.argmin, bilevel.root, bilevel.fixed_point])
def test_a_solution_that_holds_one_tensor_twice_is_refused(attach: Callable[..., Any]) -> None:
    with raises("_star[1] is the very tensor of"):
        attach(never, PHI, [THETA, THETA])
