"""What a program takes for granted of what it is given: no more and no less than it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel import _compiled, _programs

F64 = torch.float64
PHI, THETA = torch.linspace(-1.0, 1.0, 200, dtype=F64), torch.linspace(1.0, 2.0, 200, dtype=F64)
X = torch.linspace(1.0, 2.0, 200, dtype=F64)

Inner = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs run as they are."""
    monkeypatch.setattr(_programs, "compiled", lambda graph, inputs: graph)
    _compiled.forget()
    yield
    _compiled.forget()


def _outer(phi: Tensor, theta: Tensor) -> Tensor:
    return ((theta - 1) ** 2).sum()


def _inner(phi: Tensor, theta: Tensor, x: Tensor, weight: float = 1.0) -> Tensor:
    return (theta**4 + weight * x.detach() * theta**2 - phi * theta).sum()


def _solve(inner: Inner, *args: Tensor, **options: Any) -> Any:
    return bilevel.implicit_grad(_outer, inner, PHI, THETA, inner_args=args, **options)


def programs() -> int:
    return sum(entry.program is not None for entry in _compiled._entries.values())


@pytest.mark.parametrize("solver", [bilevel.Auto(), bilevel.CG(), bilevel.MINRES()])
def test_a_program_that_multiplies_serves_every_first_guess_and_every_learned_state(
    solver: bilevel.Solver,
) -> None:
    shapes: set[Any] = set()
    state: Any = None
    initial: Any = None
    for step in range(4):
        given = {"solver": solver, "initial": initial, "state": state, "on_failure": "ignore"}
        args = _inner, X + 0.1 * step
        found, info = _solve(*args, compile=True, return_info=True, **given)
        torch.testing.assert_close(found, _solve(*args, **given), rtol=1e-6, atol=1e-9)
        state, initial = info.state, info.adjoint
        shapes.add(tuple(tensor.shape for tensor in state.values()))
    assert isinstance(solver, bilevel.Auto) <= (len(shapes) > 1)
    assert programs() == 1
