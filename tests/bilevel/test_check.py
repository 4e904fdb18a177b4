"""The check of a gradient: right ones pass, wrong ones are caught, and the cause is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import bilevel
from bilevel import CG, GradientCheck, ImplicitProblem, Neumann, Result, check_gradient
from tests.bilevel.cubes import OnceDifferentiableBowl
from tests.bilevel.problems import Quadratic
from tests.bilevel.refusals import PHI, THETA, outer
from tests.bilevel.traces import Network, Untouched, X, Y, parameters, penalised, predicted, total

F64 = torch.float64
ROWS = torch.arange(60, dtype=F64).reshape(20, 3)
DATA, VALIDATION = ROWS.sin(), ROWS.cos()
TRUTH = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
TARGET = DATA @ TRUTH + 0.1 * VALIDATION[:, 0]
PENALTIES = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
START = torch.zeros(3, dtype=F64)


def ridge_inner(phi: Tensor, w: Tensor) -> Tensor:
    error = DATA.to(w) @ w - TARGET.to(w)
    return 0.5 * (error**2).mean() + 0.5 * (phi.exp() * w**2).sum()


def ridge_outer(phi: Tensor, w: Tensor) -> Tensor:
    return 0.5 * ((VALIDATION @ (w.double() - TRUTH)) ** 2).mean().to(w)


def ridge_solution(phi: Tensor, start: Tensor) -> Tensor:
    return torch.linalg.solve(DATA.T @ DATA / 20 + phi.exp().diag(), DATA.T @ TARGET / 20)


RIDGE = ImplicitProblem(ridge_outer, ridge_inner)


class HalfSquare(torch.autograd.Function):
    """``x^2 / 2``, whose backward is another's to get wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2 / 2


class Lost(HalfSquare):
    """With a right backward, which cannot itself be differentiated rightly."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].detach()


class Doubled(HalfSquare):
    """With a backward that is twice what it should be."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0] * ctx.saved_tensors[0]


def lost(x: Tensor) -> Tensor:
    return Lost.apply(x)  # pyright: ignore[reportReturnType]


def doubled(x: Tensor) -> Tensor:
    return Doubled.apply(x)  # pyright: ignore[reportReturnType]


def custom(square: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda phi, w: (
        square(DATA @ w - TARGET).mean() + 0.5 * (phi.exp() * w**2).sum() + 0.1 * (phi * w).sum()
    )


def failed(check: GradientCheck, cause: str, *words: str) -> None:
    assert not check.ok
    assert check.cause == cause
    shown = str(check)
    assert f"FAILED ({cause})" in shown
    for word in words:
        assert word in check.verdict
    assert check.verdict in shown


def test_the_gradient_of_a_quadratic_passes_and_slopes_are_those_of_the_closed_form() -> None:
    quadratic = Quadratic.random()
    problem = ImplicitProblem(quadratic.outer, quadratic.inner)
    phi, theta = torch.arange(4).to(F64), torch.zeros(6, dtype=F64)
    check = check_gradient(problem, phi, theta, directions=5)
    assert check.ok, check
    assert check.cause is None
    assert len(check.slopes) == len(check.differences) == len(check.relative_errors) == 5
    assert max(check.relative_errors) < 1e-7
    assert max(abs(slope) for slope in check.slopes) <= quadratic.gradient(phi).norm()
    assert check.stationarity < 1e-10
    assert check.info.solution.result is Result.SUCCESS


@pytest.mark.parametrize("solve", [None, ridge_solution])
def test_ridge_with_a_penalty_per_weight_passes_with_either_solver(solve: Any) -> None:
    check = check_gradient(RIDGE, PENALTIES, START, solve=solve)
    assert check.ok, check
    assert max(check.relative_errors) < 1e-6


def test_a_network_with_tanh_and_a_tree_of_hyperparameters_passes() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    theta = {
        name: 0.3 * torch.ones_like(leaf).cumsum(0) for name, leaf in parameters(network).items()
    }

    def train(phi: Any, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        error = functional_call(network, theta, (x,)) - y
        return phi["weight"][0].exp() * (error**2).mean() + phi["penalty"].exp() * total(theta)

    def validate(phi: Any, theta: Any, x: Tensor) -> Tensor:
        return (functional_call(network, theta, (x,)) - 0.5).square().mean() + phi["penalty"] ** 2

    phi = {"penalty": torch.tensor(-4.0, dtype=F64), "weight": [torch.zeros((), dtype=F64)]}
    problem = ImplicitProblem(validate, train)
    check = check_gradient(problem, phi, theta, inner_args=(X, Y), outer_args=[X.cos()])
    assert check.ok, check


def test_leaves_of_other_scales_and_empty_ones_each_move_by_their_own() -> None:
    phi = [torch.full((2,), 1e-4, dtype=F64), torch.full((2, 1), 1e4, dtype=F64)]
    phi.append(torch.zeros(0, dtype=F64))
    problem = ImplicitProblem(
        lambda p, t: (t[0] ** 3).sum() + (t[1] ** 3).sum(),
        lambda p, t: (t[0] - 1e4 * p[0]).square().sum() + (t[1] - (1e-4 * p[1]).sin()).cosh().sum(),
    )
    theta = [torch.zeros(2, dtype=F64), torch.zeros(2, 1, dtype=F64)]
    check = check_gradient(problem, phi, theta)
    assert check.ok, check


@pytest.mark.parametrize("phi", [torch.zeros(2, dtype=F64), torch.zeros((), dtype=F64)])
def test_hyperparameters_of_zero_and_without_a_dimension_have_a_step(phi: Tensor) -> None:
    problem = ImplicitProblem(lambda p, t: t.exp().sum(), lambda p, t: (t - p - 1).square().sum())
    assert check_gradient(problem, phi, torch.zeros_like(phi)).ok


def test_a_gradient_of_zero_passes() -> None:
    problem = ImplicitProblem(
        lambda p, t: 1 + (t**2).sum() + 0 * p.sum(), lambda p, t: (t - 0 * p).square().sum()
    )
    check = check_gradient(problem, PHI, THETA)
    assert check.ok, check
    assert max(check.relative_errors) == 0


def test_a_theta_that_does_not_depend_on_phi_passes_by_its_direct_part() -> None:
    problem = ImplicitProblem(
        lambda p, t: p.sin() @ t, lambda p, t: (t - 1).square().sum() + 0 * p.sum()
    )
    assert check_gradient(problem, PHI, THETA).ok


@pytest.mark.parametrize(
    "options", [{"step": 1e-3}, {"tolerance": 1e-6}, {"directions": 1}, {"seed": 7}]
)
def test_options_are_followed(options: dict[str, Any]) -> None:
    check = check_gradient(RIDGE, PENALTIES, START, **options)
    assert check.ok, check
    assert check.step == options.get("step", check.step)
    assert check.tolerance == options.get("tolerance", 1e-4)
    assert len(check.slopes) == options.get("directions", 3)
    same = check.slopes[0] == check_gradient(RIDGE, PENALTIES, START).slopes[0]
    assert same != ("seed" in options)


@pytest.mark.parametrize("start", [START, ridge_solution(PENALTIES, START)])
def test_a_solve_that_does_nothing_is_caught(start: Tensor) -> None:
    check = check_gradient(RIDGE, PENALTIES, start, solve=lambda phi, theta: theta)
    failed(check, "inner", "The inner problem is not solved", "stationarity")


def test_a_solve_that_stops_early_is_caught() -> None:
    def few(phi: Tensor, theta: Tensor) -> Tensor:
        for _ in range(10):
            theta = theta - 0.3 * torch.func.grad(ridge_inner, argnums=1)(phi, theta)
        return theta

    failed(check_gradient(RIDGE, PENALTIES, START, solve=few), "inner")


@pytest.mark.parametrize("solver", [Neumann(terms=3, step=0.5), CG(max_steps=1)])
def test_a_linear_solve_that_stops_short_is_named(solver: Any) -> None:
    check = check_gradient(replace(RIDGE, solver=solver, on_failure="raise"), PENALTIES, START)
    failed(check, "linear", "linear system is not solved", "steps")


def test_damping_is_named_where_it_is_what_is_wrong() -> None:
    check = check_gradient(replace(RIDGE, damping=0.3), PENALTIES, START)
    failed(check, "bias", "damping 0.3", "on purpose")
    assert max(check.relative_errors) > 0.01


def test_damping_is_named_where_it_does_no_harm() -> None:
    check = check_gradient(replace(RIDGE, damping=1e-9), PENALTIES, START)
    assert check.ok
    assert "damping 1e-09 biases the gradient on purpose" in check.verdict


def test_gauss_newton_curvature_is_named() -> None:
    def penalty(phi: Tensor, w: Tensor) -> Tensor:
        return 0.05 * (w - phi) @ (w - phi)

    def loss(phi: Tensor, z: Tensor) -> Tensor:
        return 0.5 * ((z - TARGET) ** 2).mean()

    def model(phi: Tensor, w: Tensor) -> Tensor:
        return (DATA @ w).tanh()

    problem = ImplicitProblem(
        ridge_outer,
        lambda phi, w: loss(phi, model(phi, w)) + penalty(phi, w),
        curvature=bilevel.GaussNewton(model, loss, penalty),
    )
    failed(check_gradient(problem, PENALTIES, START), "bias", "Gauss-Newton curvature")


@pytest.mark.parametrize(
    ("square", "suspect"),
    [
        (lost, "the second derivative of inner in theta"),
        (doubled, "the gradient of inner in theta"),
    ],
)
@pytest.mark.parametrize("solve", [None, "closed form"])
def test_a_wrong_backward_in_inner_is_named(
    square: Callable[[Tensor], Tensor], suspect: str, solve: str | None
) -> None:
    def closed(phi: Tensor, theta: Tensor) -> Tensor:
        return torch.linalg.solve(
            DATA.T @ DATA / 20 + phi.exp().diag(), DATA.T @ TARGET / 20 - 0.1 * phi
        )

    problem = ImplicitProblem(ridge_outer, custom(square))
    check = check_gradient(problem, PENALTIES, START, directions=1, solve=closed if solve else None)
    failed(check, "derivative", suspect, "wrong backward")
    assert check.suspects == (suspect,)


def test_a_wrong_backward_in_outer_is_named() -> None:
    problem = replace(RIDGE, outer=lambda p, w: doubled(VALIDATION @ w).mean() + doubled(p).sum())
    check = check_gradient(problem, PENALTIES, START)
    failed(check, "derivative", "the gradient of outer in theta and the gradient of outer in phi")


def test_a_detached_mixed_derivative_is_named() -> None:
    problem = ImplicitProblem(
        ridge_outer, lambda p, w: ridge_inner(p.detach(), w) + 0.1 * (p * w).sum()
    )
    failed(check_gradient(problem, PENALTIES, START), "derivative", "the mixed derivative of inner")


def test_a_solution_that_jumps_makes_the_differences_unreliable() -> None:
    problem = ImplicitProblem(lambda p, t: t + p, lambda p, t: (t**2 - 1) ** 2 + 0 * p)
    check = check_gradient(
        problem,
        torch.tensor(1e-9, dtype=F64),
        torch.tensor(1.0, dtype=F64),
        solve=lambda phi, theta: phi.sign(),
        step=1e-3,
    )
    failed(check, "differences", "unreliable", "jumps")


def test_randomness_that_cannot_be_replayed_makes_the_differences_unreliable() -> None:
    source = random.Random(0)
    noisy = replace(RIDGE, outer=lambda p, w: ridge_outer(p, w) + 1e-3 * source.random())
    failed(check_gradient(noisy, PENALTIES, START), "differences", "noisy")


@pytest.mark.parametrize("step", [1e-17, 3.0])
def test_a_step_that_does_not_fit_makes_the_differences_unreliable(step: float) -> None:
    check = check_gradient(RIDGE, PENALTIES, START, step=step, solve=ridge_solution)
    failed(check, "differences", "another step")


def test_a_kink_at_phi_is_a_possibility_that_is_said() -> None:
    problem = ImplicitProblem(lambda p, t: t.relu().sum(), lambda p, t: (t - p).square().sum())
    zero = torch.zeros((), dtype=F64)
    failed(check_gradient(problem, zero, zero), "derivative", "kink")


def test_single_precision_has_a_looser_tolerance_and_asks_for_double() -> None:
    check = check_gradient(RIDGE, PENALTIES.float(), START.float())
    assert check.ok, check
    assert check.tolerance == 1e-2
    assert "float64 would tell more" in check.verdict
    damped = check_gradient(replace(RIDGE, damping=0.3), PENALTIES.float(), START.float())
    failed(damped, "bias", "float64")


def test_dropout_in_training_mode_agrees_and_nothing_is_left_changed() -> None:
    torch.manual_seed(0)
    network = Network()
    phi = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    theta = parameters(network)
    untouched = Untouched(network, phi)
    problem = ImplicitProblem(
        lambda phi, theta: predicted(network, phi, theta),
        lambda phi, theta: penalised(network, phi, theta),
    )
    check = check_gradient(problem, phi, theta)
    untouched.check()
    assert check.ok, check
    assert str(check) == str(check_gradient(problem, phi, theta))
    damped = check_gradient(replace(problem, damping=1.0), phi, theta, directions=1)
    failed(damped, "bias")
    untouched.check()


def test_a_solve_of_ones_own_may_draw_numbers_and_write_to_what_it_is_handed() -> None:
    def noisy(phi: Tensor, theta: Tensor) -> Tensor:
        theta += torch.randn(3, dtype=F64)
        phi.add_(0)
        return theta.copy_(ridge_solution(phi, theta)).requires_grad_()

    phi, theta, state = PENALTIES.clone(), START.clone(), torch.get_rng_state()
    assert check_gradient(RIDGE, phi, theta, solve=noisy).ok
    assert torch.equal(phi, PENALTIES)
    assert torch.equal(theta, START)
    assert torch.equal(torch.get_rng_state(), state)


def test_randomness_is_put_back_after_an_error() -> None:
    def fails(phi: Tensor, theta: Tensor) -> Tensor:
        torch.randn(3)
        raise KeyError("mine")

    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        check_gradient(RIDGE, PENALTIES, START, solve=fails)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_grad_and_in_inference_mode(mode: Any) -> None:
    with mode():
        assert check_gradient(RIDGE, PENALTIES.clone(), START.clone()).ok


def test_products_that_fall_back_are_warned_of_once_and_checked() -> None:
    def cubic(phi: Tensor, theta: Tensor) -> Tensor:
        cubed: Any = OnceDifferentiableBowl.apply(theta)
        return cubed.sum() + ((theta - phi) ** 2).sum()

    with pytest.warns(bilevel.ProductWarning) as caught:
        check = check_gradient(ImplicitProblem(lambda p, t: (t**2).sum(), cubic), PHI, THETA)
    assert len(caught) == 1
    assert check.ok, check
    assert check.info.hvp == "finite_difference"


def test_a_saddle_is_named_though_its_derivative_is_right() -> None:
    curvatures = torch.tensor([1.0, -0.5], dtype=F64)
    problem = ImplicitProblem(outer, lambda p, t: 0.5 * curvatures @ t**2 - p @ t)
    check = check_gradient(problem, PHI, THETA, solve=lambda phi, theta: phi / curvatures)
    assert check.ok
    assert "theta is no minimum" in check.verdict
