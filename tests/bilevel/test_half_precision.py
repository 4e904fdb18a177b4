"""Half precision counts to 65504: sums over more numbers than that."""

from __future__ import annotations

import pytest
import torch

import bilevel
from bilevel import Neumann, Result

N = 70_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_series_of_half_precision_converges_for_a_long_vector(
    dtype: torch.dtype, columns: int
) -> None:
    values = torch.linspace(1, 2, N).to(dtype)
    b = torch.ones(N, columns, dtype=dtype)
    found = bilevel.solve(bilevel.Diagonal(values), b, Neumann(20, step=0.5))
    assert found.result is Result.TRUNCATED
    assert found.stats.relative_residual < 0.02
    torch.testing.assert_close(
        found.value.float(), 1 / values.float().unsqueeze(1) * b, rtol=0.03, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_neumann_stops_early_at_its_tolerance_for_a_long_vector(dtype: torch.dtype) -> None:
    values = torch.linspace(1, 2, N).to(dtype)
    found = bilevel.solve(
        bilevel.Diagonal(values), torch.ones(N, dtype=dtype), Neumann(50, step=0.5, rtol=0.05)
    )
    assert found.result is Result.SUCCESS
    assert found.stats.iterations < 10


@pytest.mark.parametrize("n", [20, 200, N])
@pytest.mark.parametrize("step", [2.0, 10.0, 50.0])
def test_a_series_of_half_precision_that_diverges_is_said_to(n: int, step: float) -> None:
    values = torch.linspace(1, 2, n).half()
    with pytest.warns(bilevel.ConvergenceWarning, match="DIVERGED"):
        bilevel.solve(bilevel.Diagonal(values), torch.ones(n).half(), Neumann(50, step=step))


@pytest.mark.parametrize(
    ("last", "result"), [(-1.0, Result.NEGATIVE_CURVATURE), (-1e-4, Result.SINGULAR)]
)
def test_half_precision_tells_negative_curvature_from_rounding(last: float, result: Result) -> None:
    values = torch.cat([torch.ones(N // 2), torch.full((N // 2,), last)]).half()
    found = bilevel.solve(
        bilevel.Diagonal(values), torch.ones(N).half(), Neumann(10, step=0.5), on_failure="ignore"
    )
    assert found.result is result


@pytest.mark.parametrize("solver", [bilevel.CG(), bilevel.Auto(), bilevel.MINRES()])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_krylov_solvers_of_half_precision_take_long_vectors(
    solver: bilevel.Solver, size: float
) -> None:
    values = torch.linspace(1, 2, N).half()
    found = bilevel.solve(bilevel.Diagonal(values), torch.full((N,), size).half(), solver)
    assert found.result is Result.SUCCESS
    torch.testing.assert_close(found.value.float(), size / values.float(), rtol=0.03, atol=0)
