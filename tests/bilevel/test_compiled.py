"""Compiled functions are right and stay compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.problems import normal
from tests.bilevel.products_cases import (
    F64,
    MODES,
    X,
    assert_near,
    dense,
)


def _objective(p: Tensor, t: Tensor) -> Tensor:
    out = torch.tanh(X @ t) * p[0]
    slope = (p[0] * (1 - torch.tanh(X @ t) ** 2)).unsqueeze(1) * t
    return (out**2).mean() + (slope**2).sum() + p[1].exp() * (t**2).sum()


@pytest.fixture
def compiled() -> Iterator[tuple[Callable[..., Tensor], Callable[..., Tensor], list[str]]]:
    """Both functions compiled to graphs whose backward is compiled too, and a log of their runs."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func

    log: list[str] = []

    def compiler(module: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            log.append("run")
            return module(*args)

        log.append("compiled")
        return make_boxed_func(run)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler)
    yield (
        torch.compile(lambda p, t: (X @ t).sin().mean() + p.sum(), backend=backend),
        torch.compile(_objective, backend=backend),
        log,
    )
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_functions_are_right_and_stay_compiled(compiled: Any) -> None:
    outer, inner, log = compiled
    theta, phi = normal(3, seed=15), torch.tensor([0.5, 0.2], dtype=F64)
    plain = lambda p, t: (X @ t).sin().mean() + p.sum()  # noqa: E731
    wanted = bilevel.implicit_grad(plain, _objective, phi, theta)
    for hvp in MODES:
        assert_near(bilevel.implicit_grad(outer, inner, phi, theta, hvp=hvp), wanted, hvp)
    problem = bilevel.ImplicitProblem(outer, inner)
    assert_near(
        problem.operator(phi, theta).to_dense(),
        dense(lambda t: _objective(phi, t), theta),
    )
    attached = phi.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(bilevel.argmin(function, attached, theta).sum(), attached)[0]
        for function in (inner, _objective)
    ]
    assert_near(slopes[0], slopes[1])
    assert_near(
        torch.func.vmap(lambda p: bilevel.implicit_grad(outer, inner, p, theta))(phi[None])[0],
        wanted,
    )
    # None of this has made the compiler give up on them.
    log.clear()
    tracked = theta.clone().requires_grad_()
    (inner(phi, tracked) + outer(phi, tracked)).backward()
    assert log.count("run") >= 4
    assert tracked.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_inside_gauss_newton_is_right(compiled: Any) -> None:
    theta, phi = normal(3, seed=15), torch.tensor([0.5, 0.2], dtype=F64)
    split = (
        lambda p, t: torch.tanh(X @ t) * p[0],
        lambda p, z: (z**2).mean(),
        lambda p, t: p[1].exp() * (t**2).sum(),
    )
    found, wanted = (
        bilevel.ImplicitProblem(
            lambda p, t: t.sum(), _objective, curvature=bilevel.GaussNewton(*functions)
        ).implicit_grad(phi, theta)
        for functions in (
            [torch.compile(function, backend="aot_eager") for function in split],
            split,
        )
    )
    assert_near(found, wanted)
