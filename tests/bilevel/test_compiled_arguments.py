"""What a program takes for granted of what it is given: no more and no less than it depends on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import bilevel
from bilevel._compiling import dispatch

F64 = torch.float64
PHI, THETA = torch.linspace(-1.0, 1.0, 200, dtype=F64), torch.linspace(1.0, 2.0, 200, dtype=F64)
X = torch.linspace(1.0, 2.0, 200, dtype=F64)

Inner = Callable[..., Tensor]


pytestmark = pytest.mark.usefixtures("uncompiled_graphs")


def _outer(phi: Tensor, theta: Tensor) -> Tensor:
    return ((theta - 1) ** 2).sum()


def _inner(phi: Tensor, theta: Tensor, x: Tensor, weight: float = 1.0) -> Tensor:
    return (theta**4 + weight * x.detach() * theta**2 - phi * theta).sum()


def _solve(inner: Inner, *args: Tensor, **options: Any) -> Any:
    return bilevel.implicit_grad(_outer, inner, PHI, THETA, inner_args=args, **options)


def _both(inner: Inner, *args: Tensor) -> tuple[Tensor, Tensor]:
    """By a program, and the plain way."""
    fixed = bilevel.Neumann(3, step=0.01)
    options: dict[str, Any] = {"solver": fixed, "on_failure": "ignore"}
    found, wanted = (_solve(inner, *args, compile=one, **options) for one in (True, False))
    return found.round(decimals=10), wanted.round(decimals=10)


def programs() -> int:
    return sum(entry.program is not None for entry in dispatch._entries.values())


@pytest.mark.parametrize("solver", [bilevel.Auto(), bilevel.CG(), bilevel.MINRES()])
def test_a_program_that_multiplies_serves_every_first_guess_and_every_recycled_state(
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


SPECIAL = X.clone()
TABLE = {SPECIAL: 2.0}


class _Weights(nn.Parameter):
    """A parameter of the user's."""

    scale = 2.0


def _with(tensor: Tensor, **attributes: Any) -> Tensor:
    for name, value in attributes.items():
        setattr(tensor, name, value)
    return tensor


def _negated() -> Tensor:
    return torch.complex(torch.zeros(200, dtype=F64), X).conj().imag


@pytest.mark.parametrize(
    ("weigh", "other"),
    [
        (lambda x: 2.0 if x is SPECIAL else 1.0, lambda: SPECIAL),
        (lambda x: TABLE.get(x, 1.0), lambda: SPECIAL),
        (lambda x: 2.0 if x.requires_grad else 1.0, lambda: X.clone().requires_grad_()),
        (lambda x: 2.0 if x.grad_fn else 1.0, lambda: 1.0 * X.clone().requires_grad_()),
        (lambda x: 1.0 if x.grad is None else 2.0, lambda: _with(X.clone(), grad=X)),
        (lambda x: getattr(x, "scale", 1.0), lambda: _with(X.clone(), scale=2.0)),
        (lambda x: getattr(x, "scale", 1.0), lambda: _Weights(X.clone(), requires_grad=False)),
        (
            lambda x: 2.0 if isinstance(x, nn.Parameter) else 1.0,
            lambda: nn.Parameter(X.clone(), requires_grad=False),
        ),
        (lambda x: 1.0, _negated),
    ],
)
def test_whatever_can_be_read_off_an_argument_is_seen_and_shown_to_the_functions(
    weigh: Callable[[Tensor], float], other: Callable[[], Tensor]
) -> None:
    inner = lambda p, t, x: _inner(p, t, x, weigh(x))  # noqa: E731
    for step in range(3):
        assert torch.equal(*_both(inner, X + step))
    wanted = _solve(inner, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            found, plain = _both(inner, other())
            assert torch.equal(found, plain)
    assert not torch.equal(found, wanted)


def test_a_setting_of_a_tensor_class_or_attribute_is_seen_to_change_in_an_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = lambda p, t, x: _inner(p, t, x, x.scale * x.more["a"])  # noqa: E731
    x = _with(_Weights(X, requires_grad=False), more={"a": 1.0})
    assert torch.equal(*_both(inner, x))
    monkeypatch.setattr(_Weights, "scale", 3.0)
    assert torch.equal(*_both(inner, x))
    cast(Any, x).more["a"] = 5.0
    assert torch.equal(*_both(inner, x))
    assert programs() == 3


def test_arguments_that_are_one_tensor_or_held_as_well_share_the_program_of_others() -> None:
    held = X.clone()
    inner = lambda p, t, x, y: _inner(p, t, x + 3 * y + 0.5 * held)  # noqa: E731
    for pair in ((held, held), (X, X + 1), (X + 1, held), (held, X)):
        assert torch.equal(*_both(inner, *pair))
    assert programs() == 1


def test_a_function_that_asks_whether_two_arguments_are_one_is_answered() -> None:
    inner = lambda p, t, x, y: _inner(p, t, x, 2.0 if x is y else 1.0)  # noqa: E731
    for pair in ((X, X), (X, X.clone()), (X + 1, X + 2)):
        assert torch.equal(*_both(inner, *pair))
    assert programs() == 2


def test_a_held_view_with_its_sign_put_off_is_computed_plainly() -> None:
    held = _negated()
    inner = lambda p, t, x: _inner(p, t, x - held)  # noqa: E731
    with pytest.warns(bilevel.CompileWarning, match="sign is put off"):
        assert torch.equal(*_both(inner, X))
    assert programs() == 0
