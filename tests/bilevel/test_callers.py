"""Callers without gradients get the same numbers, and their trees are left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilevel
from bilevel.products import HVP
from tests.bilevel.loops import assert_same
from tests.bilevel.traces import MODES, PHI, Untouched, X, Y


def _ridge(phi: Tensor, theta: Tensor, data: Tensor = X) -> Tensor:
    return ((data @ theta - Y[:, 0]) ** 2).mean() + (phi.exp().sum() * theta**2).sum()


def _square(phi: Tensor, theta: Tensor) -> Tensor:
    return (theta**2).sum() + phi.sum()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_number(mode: Callable[[], Any]) -> None:
    theta = torch.ones(3, dtype=torch.float64)
    problem = bilevel.ImplicitProblem(_square, _ridge)
    wanted = problem.implicit_grad(PHI, theta)
    matrix = problem.operator(PHI, theta).to_dense()
    with mode():
        assert torch.equal(problem.implicit_grad(PHI, theta), wanted)
        assert torch.equal(problem.implicit_grad(PHI.clone(), theta.clone()), wanted)
        args = (X.clone(),)  # an inference tensor in inference mode
        assert torch.equal(problem.implicit_grad(PHI, theta, inner_args=args), wanted)
        assert torch.equal(problem.operator(PHI, theta).to_dense(), matrix)
        assert torch.equal(bilevel.hessian(lambda t: _ridge(PHI, t), theta).to_dense(), matrix)
        slope = bilevel.jacobian(lambda t: torch.func.grad(_ridge, 1)(PHI, t), theta)
        assert torch.allclose(slope.to_dense(), matrix)
        assert problem.stationarity(PHI, problem.refine(PHI, theta)) < 1e-7
        assert torch.equal(bilevel.argmin(_ridge, PHI, theta), theta)
    gradient = problem.implicit_grad(PHI, theta)
    assert not gradient.requires_grad
    assert not gradient.is_inference()


def test_inference_tensors_are_taken_outside_inference_mode_too() -> None:
    theta = torch.ones(3, dtype=torch.float64)
    wanted = bilevel.implicit_grad(_square, _ridge, PHI, theta)
    with torch.inference_mode():
        phi, theta = PHI.clone(), theta.clone()
    assert torch.equal(bilevel.implicit_grad(_square, _ridge, phi, theta), wanted)


@MODES
def test_trees_handed_in_are_neither_written_nor_tracked(hvp: HVP) -> None:
    phi = PHI.clone().requires_grad_()
    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    untouched = Untouched(nn.Identity(), phi, theta)
    gradient = bilevel.implicit_grad(_square, _ridge, phi, theta, hvp=hvp, initial=theta)
    assert not gradient.requires_grad
    untouched.check()


def _loop() -> bilevel.BilevelOptimizer:
    torch.manual_seed(0)
    phi, theta = PHI.clone().requires_grad_(), torch.ones(3, dtype=torch.float64).requires_grad_()
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(
            lambda p, t: _square(p[0], t[0]), lambda p, t, x: _ridge(p[0], t[0], x)
        ),
        torch.optim.Adam([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1, momentum=0.5),
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loop_in_a_caller_without_gradients_takes_the_same_steps(mode: Callable[[], Any]) -> None:
    loops = _loop(), _loop()
    for inside, loop in enumerate(loops):
        for _ in range(2):
            with mode() if inside else nullcontext():
                # Its tensors outlive the mode: the step after it goes on from them.
                loop.step(inner_args=(X.clone(),))
                loop.load_state_dict(loop.state_dict())
            loop.step(inner_args=(X.clone(),))
    assert_same(*(loop.state_dict() for loop in loops))


def test_parameters_of_a_loop_that_are_inference_tensors_are_refused_by_name() -> None:
    with torch.inference_mode():
        theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    phi = PHI.clone().requires_grad_()
    problem = bilevel.ImplicitProblem(_square, _ridge)
    optimizers = torch.optim.SGD([phi], lr=0.1), torch.optim.SGD([theta], lr=0.1)
    with pytest.raises(bilevel.InputError, match=r"theta holds a tensor made in torch\.inference"):
        bilevel.BilevelOptimizer(problem, *optimizers)


def test_threads_leave_the_compiler_as_they_found_it() -> None:
    from torch._dynamo import eval_frame  # what has been imported is where a stance matters

    entered, left = threading.Event(), threading.Event()

    def slow(first: bool) -> Callable[..., Tensor]:
        def inner(p: Tensor, t: Tensor) -> Tensor:
            if first:
                entered.wait(10)  # until the other is inside
            else:
                entered.set()
                left.wait(10)  # until the first has left
            return (t - p).square().sum()

        return inner

    def run(first: bool) -> None:
        point = torch.ones(2)
        bilevel.hessian(lambda t: slow(first)(point, t), point)
        if first:
            left.set()

    before = eval_frame._stance
    threads = [threading.Thread(target=run, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eval_frame._stance == before
