"""What the compiler makes of a traced hypergradient, and what happens without one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel._compiling import dispatch, programs

F64 = torch.float64


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """No program made before, and none left behind."""
    dispatch.forget()
    yield
    dispatch.forget()


def _inner(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ theta - y) ** 2).mean() + (phi.exp() * theta**2).sum()


def _outer(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ theta - y) ** 2).mean()


def _data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, generator=generator, dtype=F64)
    return x, x.sin().sum(1)


@pytest.mark.slow
def test_machine_code_gives_the_plain_answer_and_is_made_once() -> None:
    phi, theta = torch.linspace(-1, 1, 3, dtype=F64), torch.ones(3, dtype=F64)
    solver = bilevel.CG(rtol=None, max_steps=3)
    problems = [
        bilevel.ImplicitProblem(_outer, _inner, solver=solver, compile=compile)
        for compile in (True, False)
    ]
    seconds = []
    for seed in range(3):
        batches: dict[str, Any] = {"outer_args": _data(seed), "inner_args": _data(seed + 1)}
        (found, info), (wanted, _) = (
            problem.implicit_grad(phi + seed, theta, return_info=True, **batches)
            for problem in problems
        )
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
        seconds.append(info.compile_seconds)
    assert seconds[0] > 0.0
    assert seconds[1:] == [0.0, 0.0]


def test_without_a_compiler_the_plain_way_is_taken_and_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import config, cpp_builder

    # The compiler's settings have a patch of their own: undone by another, one that stands for
    # another is gone afterwards.
    nothing = config.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True})
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", _no_compiler)
    phi, theta = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    options: dict[str, Any] = {
        "solver": bilevel.Neumann(2, step=0.1),
        "outer_args": _data(0),
        "inner_args": _data(1),
    }
    wanted = bilevel.implicit_grad(_outer, _inner, phi, theta, **options)
    with nothing, pytest.warns(bilevel.CompileWarning, match="compiler"):
        found = bilevel.implicit_grad(_outer, _inner, phi, theta, compile=True, **options)
    again = bilevel.implicit_grad(_outer, _inner, phi, theta, compile=True, **options)
    assert torch.equal(found, wanted)
    assert torch.equal(again, wanted)


def _no_compiler(*_: Any) -> str:
    raise RuntimeError("No working C++ compiler found")


@pytest.mark.parametrize(
    ("kernels", "direct"),
    [
        ([(SimpleNamespace(current_callable=lambda given: [given[0] + 1]), 1)], True),
        ([(SimpleNamespace(current_callable=lambda given: [given[0] + 2]), 1)], False),
        ([(SimpleNamespace(current_callable=lambda given: [given[0] + 1] * 2), 1)], False),
        ([(SimpleNamespace(current_callable=lambda given: [given[0].double() + 1]), 1)], False),
        ([(SimpleNamespace(current_callable=lambda given: [given[0] + 1]), 2)], False),
        ([(SimpleNamespace(), 1)], False),
        ([], False),
    ],
)
def test_kernels_are_called_directly_only_where_nothing_around_them_does_anything(
    kernels: list[tuple[Any, int]], direct: bool
) -> None:
    def whole(x: Tensor) -> list[Tensor]:
        return [x + 1]

    x = torch.tensor([1.0, float("nan")])
    made = programs._unwrapped(whole, kernels, [x])
    assert (made is not whole) is direct
    torch.testing.assert_close(made(x)[0], x + 1, equal_nan=True)
