"""A compiled hypergradient is the plain one, or the plain way is taken."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from bilevel._compiling import dispatch

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("uncompiled_graphs")


def _data(seed: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator, dtype=dtype), torch.randn(
        8, generator=generator, dtype=dtype
    )


PHI, THETA = torch.linspace(-1.0, 1.0, 3, dtype=F64), torch.linspace(0.5, 2.0, 3, dtype=F64)


def _inner(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ theta - y) ** 2).mean() + (phi.exp() * theta**2).sum()


def _outer(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ theta - y) ** 2).mean()


def _call(
    inner: Callable[..., Tensor] = _inner, phi: Any = PHI, theta: Tensor = THETA, **options: Any
) -> Any:
    options = {
        "solver": bilevel.CG(rtol=None, max_steps=3),
        "outer_args": _data(0),
        "inner_args": _data(1),
        "on_failure": "ignore",
        "compile": True,
        **options,
    }
    return bilevel.implicit_grad(options.pop("outer", _outer), inner, phi, theta, **options)


KEPT: Any = torch.tensor(2)


@pytest.mark.parametrize(
    ("function", "changing", "reason"),
    [
        (lambda t, h: t * torch.tensor([h[0], h[1], h[2]], dtype=F64), 3, "numbers read off"),
        (lambda t, h: t.tensor_split(h.long()[:1])[0], 3, "splits where"),
        (lambda t, h: t * len(t[h > 1.5]), 3, "shape depends on values"),
        (lambda t, h: t * t.masked_select(h > 1.5).numel(), 3, "shape depends on values"),
        (lambda t, h: t[:KEPT], 0, "reads a number off a tensor"),
        (lambda t, h: t * torch.full((3,), KEPT), 0, "reads a number off a tensor"),
        (lambda t, h: t * len(repr(h)), 3, "prints a tensor"),
    ],
)
def test_numbers_that_leave_tensors_unseen_by_the_tracer_are_refused(
    function: Callable[..., Tensor], changing: int, reason: str
) -> None:
    held = torch.tensor([1.0, 2.0, 1.0], dtype=F64) if changing else KEPT.fill_(2)
    inner = lambda p, t, x, y, h: _inner(p, t, x, y) + function(t, h).square().sum()  # noqa: E731
    options: dict[str, Any] = {"inner_args": (*_data(1), held)}
    with pytest.warns(bilevel.CompileWarning, match=reason):
        _call(inner, **options)
    held.fill_(1 if changing else 3)
    assert torch.equal(_call(inner, **options), _call(inner, compile=False, **options))


def _written(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, 0] = x[:, 0]
    z[:, 1:] = x[:, 1:] * t[1:]
    return _inner(p, t, z, y)


def test_memory_handed_out_unset_does_not_reach_a_program_of_in_place_writes() -> None:
    torch.use_deterministic_algorithms(True)  # fills it with NaN
    try:
        found = [_call(_written, solver=bilevel.Exact()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = _call(_written, solver=bilevel.Exact(), compile=False)
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=1e-11, atol=1e-12)


def test_the_first_call_of_a_kind_hands_back_the_programs_own_bits() -> None:
    single: dict[str, Any] = {
        name: _data(1, torch.float32) for name in ("outer_args", "inner_args")
    }
    (first, one), (second, two) = (
        _call(phi=PHI.float(), theta=THETA.float(), return_info=True, **single) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(one.adjoint, two.adjoint)
    assert one.compile_seconds > 0.0


def test_a_program_is_compared_to_the_functions_under_the_callers_autocast() -> None:
    seen: list[bool] = []

    def outer(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return (5 * (x @ t - y).mean()).sin()

    single: dict[str, Any] = {
        name: _data(1, torch.float32) for name in ("outer_args", "inner_args")
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            _call(phi=PHI.float(), theta=THETA.float(), outer=outer, **single)
    assert all(seen)
    assert len(seen) > 3


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("changed", ["BILEVEL_TEST_LOSS", "BILEVEL_TEST_WEIGHT"])
def test_a_change_that_cannot_be_seen_is_found_out_whatever_the_size_of_the_objective(
    scale: float, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILEVEL_TEST_LOSS", "1.0")
    monkeypatch.setenv("BILEVEL_TEST_WEIGHT", "1e-8")

    def inner(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss, weight = (float(os.environ[f"BILEVEL_TEST_{one}"]) for one in ("LOSS", "WEIGHT"))
        return scale * (loss * _outer(p, t, x, y) + weight * (p.exp() * t**2).sum())

    x, y = _data(1)
    theta = torch.linalg.lstsq(x, y).solution  # nearly the minimum: the gradient tells
    _call(inner, theta=theta)
    monkeypatch.setenv(changed, str(2 * float(os.environ[changed])))
    with pytest.warns(bilevel.CompileWarning, match="has changed since it was compiled"):
        found = _call(inner, theta=theta)
    assert torch.equal(found, _call(inner, theta=theta, compile=False))


def test_rounding_in_what_is_left_of_larger_terms_is_not_taken_for_a_change() -> None:
    x, y = _data(1, torch.float32)
    theta = THETA.float()
    single = {"outer_args": (x, y), "inner_args": (x, (x.double() @ THETA).float())}
    for step in range(5):  # another order of the sums each time, with residuals of rounding alone
        order = torch.randperm(8, generator=torch.Generator().manual_seed(step))
        batches: dict[str, Any] = {name: (a[order], b[order]) for name, (a, b) in single.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, info = _call(phi=PHI.float() - 20, theta=theta, return_info=True, **batches)
        assert info.compile_seconds is not None


def test_one_time_programs_are_counted_for_each_code_and_not_for_each_name() -> None:
    def made(power: int) -> Callable[..., Tensor]:
        space: dict[str, Any] = {"base": _inner}
        exec(f"def inner(p, t, x, y): return base(p, t, x, y) + (t**{power}).sum()", space)
        return space["inner"]

    for power in range(2, 12):
        _call(made(power))
    fresh = made(12)
    info = [_call(fresh, return_info=True)[1] for _ in range(2)][-1]
    assert info.compile_seconds == 0.0
    *compiled, last = (functools.partial(_scaled, object()) for _ in range(9))
    for inner in compiled:
        _call(inner)
    with pytest.warns(bilevel.CompileWarning, match="another kind 8 times"):
        _call(last)


def _scaled(_: object, p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y)


@pytest.mark.parametrize("solver", [bilevel.CG(rtol=None, max_steps=3), bilevel.Exact()])
def test_a_nan_in_an_argument_is_an_error_whether_or_not_it_takes_part(
    solver: bilevel.Solver,
) -> None:
    inner = lambda p, t, x, y: _inner(p["a"], t, x, y)  # noqa: E731
    phi = {"a": PHI.clone(), "b": torch.zeros(1, dtype=F64)}
    for _ in range(2):
        _call(inner, phi, initial=THETA, solver=solver)
    with pytest.raises(bilevel.NonFiniteError, match="initial"):
        _call(inner, phi, initial=THETA * torch.nan, solver=solver)
    phi["b"][0] = torch.nan
    with pytest.raises(bilevel.NonFiniteError, match=r"phi\['b'\]"):
        _call(inner, phi, initial=THETA, solver=solver)


def test_a_parameter_of_theta_that_is_followed_again_is_refused_again() -> None:
    leaf = THETA.clone().requires_grad_()
    inner = lambda p, t, x, y: _inner(p, t + leaf, x, y)  # noqa: E731
    leaf.requires_grad_(False)
    for _ in range(2):
        _call(inner, theta=leaf)
    leaf.requires_grad_(True)
    with pytest.raises(bilevel.InputError, match="past its arguments"):
        _call(inner, theta=leaf)


def test_a_program_that_fails_gives_way_to_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _call()

    def failing(*_: Any) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(dispatch.FixedSolve, "__call__", failing)
    with pytest.warns(bilevel.CompileWarning, match="fails when compiled .*size mismatch"):
        found = _call()
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
