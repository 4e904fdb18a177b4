"""A thousand calls leave memory flat."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.traces import PHI

CG = bilevel.CG(rtol=1e-6)


def _inner(phi: Tensor, theta: Tensor) -> Tensor:
    return (theta**4 / 4 + theta**2 / 2 - theta * phi.sum()).sum()


def _call_implicit_grad(theta: Tensor) -> None:
    bilevel.implicit_grad(lambda p, t: (t**2).sum(), _inner, PHI, theta, solver=CG)


def _call_argmin_backward(theta: Tensor) -> None:
    phi = PHI.clone().requires_grad_()
    (bilevel.argmin(_inner, phi, theta, solver=CG) ** 2).sum().backward()


def _call_double_backward(theta: Tensor) -> None:
    phi = PHI.clone().requires_grad_()
    value = (bilevel.argmin(_inner, phi, theta, solver=CG) ** 2).sum()
    (first,) = torch.autograd.grad(value, phi, create_graph=True)
    (first**2).sum().backward()


@pytest.mark.parametrize(
    ("call", "times"),
    [(_call_implicit_grad, 1000), (_call_argmin_backward, 1000), (_call_double_backward, 250)],
)
def test_a_thousand_calls_leave_memory_flat(call: Callable[[Tensor], None], times: int) -> None:
    # One vector lost in every call would take 32 MB by the end; half of it is beyond all noise.
    theta = torch.ones(4_000_000 // times, dtype=torch.float64)
    for _ in range(20):
        call(theta)
    gc.collect()
    # The collector is off meanwhile: a cycle that holds tensors until it comes is a leak, too.
    gc.disable()
    try:
        memory, tensors, objects = _peak(), _tensors(), len(gc.get_objects())
        for _ in range(times):
            call(theta)
        assert _peak() - memory < 16e6
        assert _tensors() == tensors
    finally:
        gc.enable()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100


def _peak() -> float:
    """The most memory this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _tensors() -> int:
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())
