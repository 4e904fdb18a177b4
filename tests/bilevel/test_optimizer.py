"""The loop takes the steps of one written by hand, and its features do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.loops import (
    GOAL,
    A,
    C,
    Regression,
    inner,
    outer,
    pair,
    quadratic,
)


def test_it_converges_to_the_closed_form_of_a_quadratic() -> None:
    loop = quadratic(inner_steps=5)
    for _ in range(300):
        loop.step()
    slope = torch.linalg.solve(A, C)
    best = torch.linalg.solve(slope.T @ slope + 0.1 * torch.eye(2).double(), slope.T @ GOAL)
    torch.testing.assert_close(loop.phi[0].detach(), best, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(loop.theta[0].detach(), slope @ best, rtol=1e-8, atol=1e-8)


def test_it_takes_the_very_steps_of_a_loop_written_by_hand() -> None:
    loop = quadratic(inner_steps=3, warm_start=False)
    phi, theta = pair()
    outer_optimizer = torch.optim.SGD([phi], lr=0.3)
    inner_optimizer = torch.optim.SGD([theta], lr=0.25)
    for _ in range(4):
        loop.step()
        for _ in range(3):
            inner_optimizer.zero_grad()
            inner([phi.detach()], [theta]).backward()
            inner_optimizer.step()
        (phi.grad,) = bilevel.implicit_grad(
            outer, inner, [phi], [theta], solver=bilevel.CG(rtol=1e-12)
        )
        outer_optimizer.step()
    assert torch.equal(loop.phi[0], phi)
    assert torch.equal(loop.theta[0], theta)


def test_gradients_are_cleared_and_nothing_requires_another_graph() -> None:
    loop = quadratic()
    loop.step()
    assert loop.phi[0].grad is None
    assert loop.theta[0].grad is None


def test_accumulated_steps_equal_one_step_on_the_mean_gradient() -> None:
    loop = quadratic(inner_steps=0, accumulate=2, warm_start=False)
    start = loop.phi[0].detach().clone()
    loop.step()
    assert torch.equal(loop.phi[0], start)  # gathered, not stepped
    loop.step()
    gradient = bilevel.implicit_grad(
        outer, inner, [start], [loop.theta[0].detach()], solver=bilevel.CG(rtol=1e-12)
    )[0]
    torch.testing.assert_close(loop.phi[0].detach(), start - 0.3 * gradient)


def test_the_outer_gradient_is_clipped_to_its_norm() -> None:
    loop = quadratic(inner_steps=0, outer_max_norm=1e-3)
    before = loop.phi[0].detach().clone()
    loop.step()
    moved = torch.linalg.vector_norm(loop.phi[0].detach() - before)
    torch.testing.assert_close(moved, torch.tensor(0.3e-3).double(), rtol=1e-3, atol=0)


def test_the_inner_gradient_is_clipped_to_its_norm() -> None:
    loop = quadratic(inner_steps=1, inner_max_norm=1e-3)
    before = loop.theta[0].detach().clone()
    loop.step()
    moved = torch.linalg.vector_norm(loop.theta[0].detach() - before)
    torch.testing.assert_close(moved, torch.tensor(0.25e-3).double(), rtol=1e-3, atol=0)


def test_a_warm_start_needs_fewer_steps_than_a_cold_one() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.logspace(0, 3, 60, dtype=torch.float64)) @ basis.T
    hessian = (hessian + hessian.T) / 2

    def stiff(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return 0.5 * theta[0] @ hessian @ theta[0] - phi[0] @ theta[0]

    def value(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return ((theta[0] - 1) ** 2).sum()

    def steps(warm_start: bool) -> int:
        phi = torch.ones(60, dtype=torch.float64, requires_grad=True)
        theta = torch.ones(60, dtype=torch.float64, requires_grad=True)
        loop = bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(value, stiff, solver=bilevel.CG(rtol=1e-6)),
            torch.optim.SGD([phi], lr=1e-6),
            torch.optim.SGD([theta], lr=1e-6),
            warm_start=warm_start,
        )
        return [loop.step().solution.stats.iterations for _ in range(3)][-1]

    assert steps(True) < steps(False)


def test_inner_steps_take_their_own_batches() -> None:
    seen: list[int] = []

    def counting(phi: list[Tensor], theta: list[Tensor], batch: int) -> Tensor:
        seen.append(batch)
        return inner(phi, theta)

    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, counting),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
        inner_steps=2,
    )
    loop.step(inner_args=(7,), inner_batches=[(1,), (2,), (3,)])
    assert seen[:3] == [1, 2, 7]
    with pytest.raises(bilevel.InputError, match="inner_batches ended after 1"):
        loop.step(inner_args=(7,), inner_batches=[(1,)])


def test_dropout_differs_between_calls_even_without_inner_steps() -> None:
    task = Regression()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(task.outer, task.inner, damping=1.0, on_failure="ignore"),
        torch.optim.SGD(task.phi.values(), lr=0.0),
        torch.optim.SGD(task.theta.values(), lr=0.0),
        phi=task.phi,
        theta=task.theta,
        inner_steps=0,
        warm_start=False,
    )
    values = {loop.step().outer_value for _ in range(4)}
    assert len(values) == 4


def test_a_non_finite_inner_objective_stops_before_theta_moves() -> None:
    def broken(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return inner(phi, theta) * torch.tensor(float("nan"))

    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, broken),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
    )
    with pytest.raises(bilevel.NonFiniteError, match="inner step 0"):
        loop.step()
    assert torch.equal(theta, torch.ones(2, dtype=torch.float64))


def test_a_non_finite_inner_gradient_stops_before_theta_moves() -> None:
    def kinked(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return (theta[0] - theta[0].detach()).abs().sqrt().sum()  # 0, with an infinite slope

    phi, theta = pair()
    optimizer = torch.optim.SGD([theta], lr=0.1, momentum=0.9)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, kinked), torch.optim.SGD([phi], lr=0.1), optimizer
    )
    with pytest.raises(bilevel.NonFiniteError, match=r"gradient of inner at inner step 0: theta"):
        loop.step()
    assert torch.equal(theta, torch.ones(2, dtype=torch.float64))
    assert not optimizer.state


def test_a_non_finite_hypergradient_stops_before_phi_moves() -> None:
    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: outer(p, t) + p[0].sqrt().sum(), inner),
        torch.optim.Adam([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
    )
    with pytest.raises(bilevel.NonFiniteError, match="hypergradient in phi"):
        loop.step()
    assert torch.equal(phi, torch.zeros(2, dtype=torch.float64))
    assert not loop.outer_optimizer.state
    assert loop.calls == 0


def test_an_inner_lbfgs_is_called_with_a_closure() -> None:
    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.LBFGS([theta], line_search_fn="strong_wolfe"),
    )
    info = loop.step()
    assert info.stationarity < 1e-6
    assert theta.grad is None


def test_no_more_batches_are_taken_than_there_are_inner_steps() -> None:
    stream = iter([(), (), (), ()])
    loop = quadratic(inner_steps=2)
    loop.step(inner_batches=stream)
    assert len(list(stream)) == 2


def test_accumulated_steps_average_over_the_outer_batches() -> None:
    def towards(phi: list[Tensor], theta: list[Tensor], goal: Tensor) -> Tensor:
        return ((theta[0] - goal) ** 2).sum()

    goals = [GOAL, 3 * GOAL, -GOAL]

    def run(accumulate: int, batches: list[Tensor]) -> Tensor:
        phi, theta = pair()
        loop = bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(towards, inner),
            torch.optim.SGD([phi], lr=0.1),
            torch.optim.SGD([theta], lr=0.1),
            inner_steps=0,
            accumulate=accumulate,
            warm_start=False,
        )
        for goal in batches:
            loop.step(outer_args=(goal,))
        return phi.detach()

    mean = torch.stack(goals).mean(0)
    torch.testing.assert_close(run(3, goals), run(1, [mean]), rtol=1e-12, atol=0)


def test_schedulers_tick_with_their_optimizers() -> None:
    phi, theta = pair()
    outer_optimizer = torch.optim.SGD([phi], lr=1.0)
    inner_optimizer = torch.optim.SGD([theta], lr=1e-3)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        outer_optimizer,
        inner_optimizer,
        inner_steps=3,
        accumulate=2,
        outer_scheduler=torch.optim.lr_scheduler.StepLR(outer_optimizer, 1, 0.5),
        inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 1, 0.5),
    )
    for _ in range(4):
        loop.step()
    assert outer_optimizer.param_groups[0]["lr"] == 0.5**2
    assert inner_optimizer.param_groups[0]["lr"] == 1e-3 * 0.5**12


def test_a_plateau_scheduler_is_told_the_outer_value() -> None:
    phi, theta = pair()
    optimizer = torch.optim.SGD([phi], lr=1.0)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: outer(p, t) * 0 + 1, inner),
        optimizer,
        torch.optim.SGD([theta], lr=0.1),
        outer_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    )
    rates = []
    for _ in range(4):
        loop.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.1, 0.1]


def test_every_feature_at_once_takes_the_very_steps_of_a_loop_written_by_hand() -> None:
    task, twin = Regression(), Regression()
    torch.manual_seed(1)
    loop = task.loop()
    infos = [loop.step() for _ in range(6)]

    torch.manual_seed(1)
    problem = loop.problem
    problem = bilevel.ImplicitProblem(
        twin.outer, twin.inner, solver=problem.solver, damping=0.5, on_failure="ignore"
    )
    inner_optimizer = torch.optim.SGD(twin.theta.values(), lr=0.05, momentum=0.9)
    outer_optimizer = torch.optim.Adam(twin.phi.values(), lr=0.1)
    outer_scheduler = torch.optim.lr_scheduler.ExponentialLR(outer_optimizer, 0.9)
    inner_scheduler = torch.optim.lr_scheduler.StepLR(inner_optimizer, 5)
    adjoint, state, gathered = None, None, torch.zeros(())
    for call in range(6):
        for _ in range(2):
            inner_optimizer.zero_grad()
            twin.inner({"log_penalty": twin.phi["log_penalty"].detach()}, twin.theta).backward()
            inner_optimizer.step()
            inner_scheduler.step()
        inner_optimizer.zero_grad()
        torch.rand(())
        gradient, info = problem.implicit_grad(
            twin.phi,
            twin.theta,
            initial=adjoint,
            state=None if call % 3 == 0 else state,
            return_info=True,
        )
        assert info.outer_value == infos[call].outer_value
        adjoint, state = info.adjoint, info.state
        gathered = gathered + gradient["log_penalty"]
        if call % 2:
            twin.phi["log_penalty"].grad = gathered / 2
            outer_optimizer.step()
            outer_scheduler.step()
            gathered = torch.zeros(())
    for name, leaf in twin.theta.items():
        assert torch.equal(leaf, task.theta[name]), name
    assert torch.equal(twin.phi["log_penalty"], task.phi["log_penalty"])


def test_the_parameters_of_the_module_itself_are_trained_and_its_buffers_by_inner_steps_alone() -> (
    None
):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    linear, norm = network[0], network[1]
    assert isinstance(linear, torch.nn.Linear)
    assert isinstance(norm, torch.nn.BatchNorm1d)
    x = torch.randn(8, 3)
    phi = torch.zeros((), requires_grad=True)
    bystander = torch.nn.Parameter(torch.zeros(2))
    bystander.grad = torch.ones(2)

    def penalised(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(network, theta, (x,))
        penalty = torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()
        return (out**2).mean() + phi.exp() * penalty

    theta = dict(network.named_parameters())
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: penalised(p, t), penalised, on_failure="ignore"),
        torch.optim.SGD([phi], lr=0.01),
        torch.optim.SGD(network.parameters(), lr=0.01),
        phi=phi,
        theta=theta,
        inner_steps=2,
    )
    before = linear.weight.detach().clone()
    for _ in range(3):
        loop.step()
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 6
    assert not torch.equal(linear.weight, before)
    assert loop.theta["0.weight"] is linear.weight
    assert bystander.grad.tolist() == [1.0, 1.0]
