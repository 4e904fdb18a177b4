"""What other libraries leave behind or wait for: memory, and numbers read off a device."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bilevel
from tests.bilevel.arrays import normal, spd, with_spectrum
from tests.bilevel.problems import quadratic, scalar

F64 = torch.float64
QUADRATIC = quadratic()


def _alive() -> int:
    # By type: isinstance asks lazy objects of torch for their class, and they answer with warnings.
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def _calls() -> dict[str, Callable[[], Any]]:
    problem = scalar()
    fixed = bilevel.ImplicitProblem(problem.outer, problem.inner, solver=bilevel.CG())
    phi = problem.phi.clone().requires_grad_()
    A, b = bilevel.Matrix(spd(4, 1)), normal(4, seed=2)

    def backward() -> None:
        value = problem.outer(phi, bilevel.argmin(problem.inner, phi, problem.theta))
        (first,) = torch.autograd.grad(value, phi, create_graph=True)
        torch.autograd.grad(first.sum(), phi)

    return {
        "implicit_grad": lambda: bilevel.implicit_grad(
            problem.outer, problem.inner, problem.phi, problem.theta
        ),
        "implicit_grad with info": lambda: fixed.implicit_grad(
            problem.phi, problem.theta, return_info=True
        ),
        "second order": backward,
        "solve": lambda: bilevel.solve(A, b, bilevel.CG()),
    }


@pytest.mark.parametrize("name", _calls())
def test_a_thousand_calls_leave_no_tensor_behind(name: str) -> None:
    """Counted with the garbage collector off: a cycle would hold a whole graph until it runs."""
    call = _calls()[name]
    for _ in range(3):
        call()
    gc.collect()
    gc.disable()
    try:
        before = _alive()
        for _ in range(20):
            call()
        assert _alive() == before
    finally:
        gc.enable()
    for _ in range(1000 if name in ("implicit_grad", "solve") else 100):
        call()
    gc.collect()
    assert _alive() <= before


_READS = {
    torch.ops.aten._local_scalar_dense.default,  # item, bool, float, int
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,  # a shape that depends on the numbers
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class _Waits(TorchDispatchMode):
    """Counts the reads of a number off a tensor, each of which waits for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in _READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [80, 160])
@pytest.mark.parametrize("tolerance", [None, 1e-14])
@pytest.mark.parametrize(
    "solver", [bilevel.CG, bilevel.MINRES, bilevel.GMRES, bilevel.BiCGStab, bilevel.Chebyshev]
)
def test_a_solve_reads_no_number_in_every_iteration(
    solver: Any, tolerance: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators look at the tolerance every eight steps; nothing else may wait for a number."""
    for module in {solver.__module__, "bilevel.solvers.base"}:
        monkeypatch.setattr(f"{module}.check_interval", lambda device: 8, raising=False)
    A = bilevel.Matrix(with_spectrum(torch.logspace(0, 8, 200, dtype=F64), 1))
    waits = _Waits()
    with waits:
        found = bilevel.solve(
            A, normal(200, seed=2), solver(rtol=tolerance, max_steps=steps), on_failure="ignore"
        )
    assert found.stats.iterations == steps
    cycles = steps // 30 + 1 if solver is bilevel.GMRES else 0
    assert waits.count <= steps // 8 + 4 * cycles + 15


@pytest.mark.parametrize("terms", [20, 200])
def test_a_neumann_series_waits_for_no_number_at_all(terms: int) -> None:
    A, b = bilevel.Matrix(spd(50, 1)), normal(50, seed=2)
    waits = _Waits()
    with waits:
        bilevel.solve(A, b, bilevel.Neumann(terms, step=0.1))
    assert waits.count < 10


_FIXED: dict[str, Callable[[int], bilevel.Solver]] = {
    "Neumann": lambda steps: bilevel.Neumann(steps, step=0.1),
    "CG": lambda steps: bilevel.CG(rtol=None, max_steps=steps),
    "CG, Jacobi": lambda steps: bilevel.CG(
        rtol=None, max_steps=steps, preconditioner=bilevel.Jacobi()
    ),
    "MINRES": lambda steps: bilevel.MINRES(rtol=None, max_steps=steps),
    "BiCGStab": lambda steps: bilevel.BiCGStab(rtol=None, max_steps=steps),
    "Chebyshev": lambda steps: bilevel.Chebyshev(rtol=None, max_steps=steps),
}


@pytest.mark.parametrize("name", _FIXED)
def test_an_implicit_gradient_of_a_fixed_budget_waits_for_no_number_in_its_iteration(
    name: str,
) -> None:
    """Counted as on a CPU, where tolerances are looked at in every step."""
    problem = QUADRATIC
    counts = []
    for steps in (10, 100):
        waits = _Waits()
        with waits, warnings.catch_warnings():
            warnings.simplefilter("error")
            bilevel.implicit_grad(
                problem.outer,
                problem.inner,
                problem.phi,
                problem.theta,
                solver=_FIXED[name](steps),
                on_failure="ignore",
            )
        counts.append(waits.count)
    assert counts[0] == counts[1] < 20
    assert math.isfinite(counts[0])
