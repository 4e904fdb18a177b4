"""The floor is not left: a solve costs what its products cost, in time and in memory.

Ratios to a loop written by hand, in the same process and by the processor's time; wide enough for
a busy machine, tight enough for a graph that is built anew in every product.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bilevel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PRODUCTS = 20
STEP = 0.1


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmarks' own network, floor and counter of memory."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import _floor  # pyright: ignore[reportMissingImports]
        import _live  # pyright: ignore[reportMissingImports]
        import _models  # pyright: ignore[reportMissingImports]

        return _floor, _live, _models
    finally:
        sys.path.remove(str(BENCHMARKS))


def _library(net: Any, solver: bilevel.Solver) -> Any:
    return bilevel.implicit_grad(
        net.outer, net.inner, net.phi, net.theta, solver=solver, on_failure="ignore",
        outer_args=net.validation, inner_args=net.batch,
    )  # fmt: skip


def _ratio(one: Callable[[], Any], other: Callable[[], Any], rounds: int = 9) -> float:
    ratios = []
    for _ in range(rounds):
        seconds = []
        for run in (one, other):
            begin = time.process_time()
            run()
            seconds.append(time.process_time() - begin)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


@pytest.mark.parametrize(("size", "limit"), [(30_000, 1.5), (1_000, 2.2)])
def test_a_solve_stays_near_a_loop_written_by_hand(bench: Any, size: int, limit: float) -> None:
    floor, _, models = bench
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = models.network("mlp", size, "cpu")
        solver = bilevel.Neumann(PRODUCTS, step=STEP)
        wanted = floor.neumann(net, PRODUCTS, STEP)
        torch.testing.assert_close(_library(net, solver), wanted, rtol=1e-3, atol=1e-7)
        assert (
            _ratio(lambda: _library(net, solver), lambda: floor.neumann(net, PRODUCTS, STEP))
            < limit
        )
        # What the limit is there to catch lies beyond it.
        assert (
            _ratio(
                lambda: floor.rebuilt(net, PRODUCTS, STEP),
                lambda: floor.neumann(net, PRODUCTS, STEP),
                rounds=3,
            )
            > limit
        )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "solver",
    [
        lambda steps: bilevel.Neumann(steps, step=STEP),
        lambda steps: bilevel.CG(rtol=None, max_steps=steps),
    ],
    ids=["Neumann", "CG"],
)
def test_memory_is_that_of_the_floor_and_does_not_grow_with_the_steps(
    bench: Any, solver: Callable[[int], bilevel.Solver]
) -> None:
    floor, live, models = bench
    net = models.network("mlp", 30_000, "cpu")
    vector = 4 * net.size

    def peak(run: Callable[[], Any]) -> int:
        with live.LivePeak() as counted:
            run()
        return counted.peak

    few = peak(lambda: _library(net, solver(10)))
    many = peak(lambda: _library(net, solver(100)))
    # A handful of numbers is kept of every step, no vector.
    assert many - few < 100 * 200
    by_hand = peak(lambda: floor.neumann(net, 10, STEP))
    assert few - by_hand < 6 * vector
