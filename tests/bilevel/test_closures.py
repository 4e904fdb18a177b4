"""What reaches a function past its arguments: refused where its derivative would be lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilevel

D = torch.float64
X = torch.linspace(-1.0, 1.0, 15, dtype=D).view(5, 3)


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


def penalty(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return phi.exp() * torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()


@pytest.mark.parametrize("hvp", ["auto", "reverse", "finite_difference"])
@pytest.mark.parametrize("guilty", ["outer", "inner"])
def test_a_module_called_with_its_own_parameters_is_refused_by_name(guilty: str, hvp: str) -> None:
    net = network()
    theta = dict(net.named_parameters())

    def right(phi: Tensor, point: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(net, point, (X,))
        return (output - 1).pow(2).mean() + penalty(phi, point)

    def wrong(phi: Tensor, point: dict[str, Tensor]) -> Tensor:
        return (net(X) - 1).pow(2).mean() + penalty(phi, point)

    outer, inner = (wrong, right) if guilty == "outer" else (right, wrong)
    with pytest.raises(bilevel.InputError, match=f"{guilty} uses a parameter of phi or theta"):
        bilevel.implicit_grad(outer, inner, torch.zeros((), dtype=D), theta, hvp=hvp)  # type: ignore[arg-type]


def test_a_phi_used_past_the_arguments_is_refused() -> None:
    phi = torch.zeros((), dtype=D, requires_grad=True)
    with pytest.raises(bilevel.InputError, match="inner uses a parameter of phi"):
        bilevel.implicit_grad(
            lambda p, t: (t**2).sum() + p,
            lambda p, t: (t**2).sum() * phi.exp() + t.sum(),
            phi,
            torch.ones(2, dtype=D),
        )


def test_a_detached_original_is_a_constant() -> None:
    theta = torch.ones(2, dtype=D, requires_grad=True)
    gradient = bilevel.implicit_grad(
        lambda p, t: ((t - theta.detach()) ** 2).sum() + (t * p).sum(),
        lambda p, t: ((t - p) ** 2).sum(),
        torch.ones(2, dtype=D),
        theta,
    )
    torch.testing.assert_close(gradient, torch.full((2,), 2.0, dtype=D))


def test_a_generator_of_the_users_own_gives_the_same_numbers_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    def inner(phi: Tensor, theta: Tensor) -> Tensor:
        weight = torch.rand(3, generator=generator, dtype=D) + 0.5
        return 0.5 * (weight * (theta - phi) ** 2).sum()

    phi = torch.ones(3, dtype=D, requires_grad=True)
    theta = bilevel.argmin(inner, phi, torch.ones(3, dtype=D))
    torch.testing.assert_close(torch.autograd.grad(theta.sum(), phi)[0], torch.ones(3, dtype=D))
    assert torch.equal(generator.get_state(), before)


def test_a_tensor_that_ended_with_its_transform_is_refused_by_name() -> None:
    matrix = torch.eye(2, dtype=D)

    def value(phi: Tensor) -> Tensor:
        inside = matrix * 1.0
        theta = bilevel.argmin(
            lambda p, t: 0.5 * ((t - inside @ p) ** 2).sum(), phi, matrix @ phi.detach()
        )
        return theta.pow(2).sum()

    with pytest.raises(bilevel.TransformError, match=r"made inside a torch\.func"):
        torch.func.jacrev(torch.func.jacrev(value))(torch.ones(2, dtype=D))


def test_dicts_match_by_key_whatever_their_order() -> None:
    theta = {"a": torch.ones(1, dtype=D), "b": torch.full((1,), 2.0, dtype=D)}
    gradient = bilevel.implicit_grad(
        lambda p, t: (t["a"] ** 2 + t["b"] ** 2).sum(),
        lambda p, t: ((t["a"] - p) ** 2 + (t["b"] - 2 * p) ** 2).sum(),
        torch.ones(1, dtype=D),
        theta,
        initial={"b": torch.full((1,), 2.0, dtype=D), "a": torch.ones(1, dtype=D)},
    )
    torch.testing.assert_close(gradient, torch.full((1,), 10.0, dtype=D))


def test_a_solve_inside_autocast_is_made_in_full_precision() -> None:
    torch.manual_seed(0)
    root = torch.randn(50, 50, dtype=D)
    matrix = root @ root.T + 50 * torch.eye(50, dtype=D)
    b = torch.randn(50, dtype=D)
    with torch.autocast("cpu"):
        for solver in (bilevel.Exact(), bilevel.CG(), bilevel.GMRES(), bilevel.Nystrom(50)):
            solved = bilevel.solve(bilevel.Matrix((matrix + matrix.T) / 2), b, solver)
            assert float((matrix @ solved.value - b).norm() / b.norm()) < 1e-6, solver


def test_finite_differences_that_disagree_with_themselves_are_said() -> None:
    theta = torch.zeros(2, dtype=torch.float32) + 1.0
    with pytest.warns(bilevel.ProductWarning, match="at two step sizes disagree"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: (torch.cos(3000 * t) / 9e6).sum() + ((t - p) ** 2).sum(),
            torch.ones(2),
            theta,
            hvp="finite_difference",
            on_failure="ignore",
        )


@pytest.mark.parametrize("n", [1, 100_000])
def test_finite_differences_do_not_depend_on_how_many_entries_theta_has(n: int) -> None:
    torch.manual_seed(0)
    start = torch.randn(n)
    gradient = bilevel.implicit_grad(
        lambda p, t: t[0],
        lambda p, t: (0.5 * (t - start) ** 2 + (t - start) ** 4).sum() - p * (t[0] - start[0]),
        torch.tensor(0.0),
        start,
        hvp="finite_difference",
        solver=bilevel.CG(rtol=1e-3),
    )
    torch.testing.assert_close(gradient, torch.tensor(1.0), rtol=1e-2, atol=0)


def test_symmetry_is_judged_entry_by_entry() -> None:
    matrix = torch.tensor([[1e17, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]], dtype=D)
    transposed = bilevel.Matrix(matrix).T @ torch.tensor([0.0, 1.0, 1.0], dtype=D)
    assert torch.equal(transposed, torch.tensor([0.0, 1.0, 3.0], dtype=D))
    batch = torch.stack(
        [1e20 * torch.eye(2, dtype=D), torch.tensor([[1.0, 2.0], [0.0, 1.0]]).to(D)]
    )
    assert not bilevel.Matrix(batch).symmetric


def test_a_product_in_place_does_not_touch_the_solver() -> None:
    diagonal = torch.tensor([2.0, 4.0], dtype=D)
    operator = bilevel.FunctionOperator(lambda v: v.mul_(diagonal), 2, symmetric=True, dtype=D)
    for solver in (bilevel.Exact(), bilevel.CG(), bilevel.MINRES(), bilevel.GMRES()):
        solved = bilevel.solve(operator, torch.ones(2, dtype=D), solver).value
        torch.testing.assert_close(solved, 1 / diagonal)


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse", "finite_difference"])
def test_a_hessian_refuses_an_objective_that_uses_the_parameters_themselves(hvp: Any) -> None:
    net = network()
    theta = dict(net.named_parameters())

    def objective(point: dict[str, Tensor], penalized: Any) -> Tensor:
        fit = torch.func.functional_call(net, point, (X,)).square().mean()
        return fit + 10 * torch.stack([leaf.square().sum() for leaf in penalized]).sum()

    with pytest.raises(bilevel.InputError, match="objective uses a parameter of theta itself"):
        bilevel.hessian(lambda t: objective(t, net.parameters()), theta, hvp=hvp)
    right = bilevel.hessian(lambda t: objective(t, t.values()), theta, hvp=hvp)
    assert right.diagonal()[-1].item() == pytest.approx(22.0, rel=1e-6)


def test_a_jacobian_refuses_a_function_that_uses_the_point_itself() -> None:
    x = torch.ones(2, dtype=D, requires_grad=True)
    for wrong in (lambda t: t * x, lambda t: x):
        with pytest.raises(bilevel.InputError, match="function uses a parameter of x itself"):
            bilevel.jacobian(wrong, x)
    right = bilevel.jacobian(lambda t: t * x.detach(), x)
    assert right.to_dense().tolist() == torch.eye(2).tolist()


@pytest.mark.parametrize("guilty", ["model", "loss", "regularizer"])
def test_gauss_newton_refuses_a_part_that_uses_the_parameters_themselves(guilty: str) -> None:
    net = network()
    theta = dict(net.named_parameters())
    phi = torch.zeros((), dtype=D)

    def split(**own: Any) -> bilevel.GaussNewton:
        return bilevel.GaussNewton(
            lambda p, t: torch.func.functional_call(net, t, (X,)) + own.get("model", 0.0),
            lambda p, z: (z - 1).pow(2).mean() + own.get("loss", 0.0),
            lambda p, t: penalty(p, t) + own.get("regularizer", 0.0),
        )

    def inner(p: Tensor, t: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(net, t, (X,)) - 1).pow(2).mean() + penalty(p, t)

    def outer(p: Tensor, t: dict[str, Tensor]) -> Tensor:
        return t["weight"].sum()

    wrong = split(**{guilty: net.bias.sum()})
    problem = bilevel.ImplicitProblem(outer, inner, curvature=wrong)
    for call in (problem.implicit_grad, problem.operator):
        with pytest.raises(bilevel.InputError, match=f"GaussNewton: {guilty} uses a parameter"):
            call(phi, theta)
    constant = split(**{guilty: net.bias.sum().detach()})
    bilevel.implicit_grad(outer, inner, phi, theta, curvature=constant)


def test_gauss_newton_names_a_model_that_calls_the_module_itself() -> None:
    net, other = network(), network()
    theta = dict(net.named_parameters())
    for wrong, message in (
        (lambda p, t: net(X), "GaussNewton: model uses a parameter of theta itself"),
        (lambda p, t: other(X), "model must return a tensor that depends on its theta argument"),
    ):
        problem = bilevel.ImplicitProblem(
            lambda p, t: t["weight"].sum(),
            penalty,
            curvature=bilevel.GaussNewton(wrong, lambda p, z: (z**2).sum()),
        )
        with pytest.raises(bilevel.InputError, match=message):
            problem.implicit_grad(torch.zeros((), dtype=D), theta)
