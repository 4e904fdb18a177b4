"""The loop: the same numbers as one written by hand, and the same numbers after a resume."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
GOAL = torch.tensor([1.0, -2.0], dtype=torch.float64)


def inner(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return 0.5 * theta[0] @ A @ theta[0] - theta[0] @ C @ phi[0]


def outer(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return ((theta[0] - GOAL) ** 2).sum() + 0.1 * (phi[0] ** 2).sum()


def pair() -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    return torch.zeros(2, **kind), torch.ones(2, **kind)


def quadratic(**options: Any) -> bilevel.BilevelOptimizer:
    phi, theta = pair()
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner, solver=bilevel.CG(rtol=1e-12)),
        torch.optim.SGD([phi], lr=0.3),
        torch.optim.SGD([theta], lr=0.25),
        **options,
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


class Regression:
    """A small network with dropout: phi weighs its penalties, theta are its parameters."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.x, self.y = torch.randn(16, 4), torch.randn(16, 1)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
        )
        self.theta = dict(self.network.named_parameters())
        self.phi = {"log_penalty": torch.full((), -2.0, requires_grad=True)}

    def loss(self, theta: dict[str, Tensor]) -> Tensor:
        prediction = torch.func.functional_call(self.network, theta, (self.x,))
        return ((prediction - self.y) ** 2).mean()

    def inner(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        penalty = torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()
        return self.loss(theta) + phi["log_penalty"].exp() * penalty

    def outer(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        return self.loss(theta)

    def loop(self) -> bilevel.BilevelOptimizer:
        inner_optimizer = torch.optim.SGD(self.theta.values(), lr=0.05, momentum=0.9)
        outer_optimizer = torch.optim.Adam(self.phi.values(), lr=0.1)
        return bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(
                self.outer,
                self.inner,
                solver=bilevel.CG(rtol=None, max_steps=4, preconditioner=bilevel.Jacobi(probes=4)),
                damping=0.5,
                on_failure="ignore",
            ),
            outer_optimizer,
            inner_optimizer,
            phi=self.phi,
            theta=self.theta,
            inner_steps=2,
            accumulate=2,
            reuse_state=3,
            outer_scheduler=torch.optim.lr_scheduler.ExponentialLR(outer_optimizer, 0.9),
            inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 5),
        )


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_resumed_run_goes_on_to_the_same_bits(cut: int) -> None:
    whole = Regression()
    loop = whole.loop()
    for _ in range(7):
        loop.step()

    first = Regression()
    loop = first.loop()
    for _ in range(cut):
        loop.step()
    file = io.BytesIO()
    torch.save(loop.state_dict(), file)
    file.seek(0)

    second = Regression(seed=0)
    resumed = second.loop()
    torch.manual_seed(99)  # the generators come from the state
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(7 - cut):
        resumed.step()
    for name, leaf in whole.theta.items():
        assert torch.equal(leaf, second.theta[name]), name
    assert torch.equal(whole.phi["log_penalty"], second.phi["log_penalty"])


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


def _wrong_states(good: dict[str, Any]) -> dict[str, dict[str, Any]]:
    wrong: dict[str, dict[str, Any]] = {}
    for name, change in (
        ("version", {"version": 99}),
        ("another number of leaves", {"phi": []}),
        ("another shape", {"theta": [torch.zeros(5, dtype=torch.float64)]}),
        ("a scheduler too many", {"outer_scheduler": {"last_epoch": 1}}),
        ("an optimizer without groups", {"inner_optimizer": {"state": {}}}),
        ("an optimizer of other groups", {"outer_optimizer": {"state": {}, "param_groups": []}}),
    ):
        wrong[name] = copy.deepcopy(good) | change
    lacking = copy.deepcopy(good)
    del lacking["adjoint"]
    wrong["a key missing"] = lacking
    return wrong


@pytest.mark.parametrize("name", list(_wrong_states({"adjoint": None})))
def test_a_state_that_does_not_fit_is_refused_whole(name: str) -> None:
    loop = quadratic()
    loop.step()
    good = loop.state_dict()
    loop.step()
    before = loop.state_dict()
    with pytest.raises(bilevel.InputError, match=r"state|leaf|scheduler"):
        loop.load_state_dict(_wrong_states(good)[name])
    after = loop.state_dict()
    for key in ("phi", "theta"):
        assert all(torch.equal(a, b) for a, b in zip(before[key], after[key], strict=True))
    assert before["calls"] == after["calls"]
    assert torch.equal(before["adjoint"], after["adjoint"])


def test_something_else_than_a_state_is_refused() -> None:
    with pytest.raises(bilevel.InputError, match="version"):
        quadratic().load_state_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"reuse_state": 0}, "reuse_state"),
        ({"outer_max_norm": 0.0}, "outer_max_norm"),
        ({"inner_max_norm": -1.0}, "inner_max_norm"),
        ({"phi": [torch.zeros(2, dtype=torch.float64, requires_grad=True)]}, "phi has 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        quadratic(**options)


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
