"""Products of a loop that draws a new minibatch for every step, with and without warm starts.

    python -m benchmarks minibatches

Logistic regression of 300 weights by ``BilevelOptimizer``, one penalty for all of them, features
of one scale or of many. The smaller the batch, the less one step's Hessian says of the next: it is
where what earlier solves have learned may be in the way. ``failed`` counts solves that ended with
anything but success.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from _harness import arguments, print_table, save
from torch import Tensor
from torch.nn.functional import softplus

import bilevel

SIZE, STEPS = 300, 60
BATCHES = (32, 128, 600, 3000)
PENALTY = 1e-3
WAYS = {"from zero": False, "as it runs by default": True}


def batches(count: int, scales: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Minibatches of a noisy linear rule, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    rule = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    while True:
        features = torch.randn(count, SIZE, generator=generator, dtype=torch.float64) * scales
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        yield features.to(dtype), (features @ rule + 0.1 * noise).sign().to(dtype)


def loss(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """The logistic loss."""
    return softplus(-labels * (features @ weights)).mean()


def spent(count: int, scales: Tensor, dtype: torch.dtype, warm_start: bool) -> tuple[int, int]:
    """Products over all steps, and how many solves failed."""
    phi = torch.tensor(PENALTY, dtype=dtype).log().requires_grad_()
    theta = torch.zeros(SIZE, dtype=dtype, requires_grad=True)
    problem = bilevel.ImplicitProblem(
        outer=lambda p, t, X, y: loss(t[0], X, y),
        inner=lambda p, t, X, y: loss(t[0], X, y) + p[0].exp() * t[0].square().sum() / 2,
        on_failure="ignore",
    )
    loop = bilevel.BilevelOptimizer(
        problem,
        torch.optim.SGD([phi], lr=0.01),
        torch.optim.SGD([theta], lr=0.1),
        warm_start=warm_start,
    )
    drawn = batches(count, scales, dtype)
    found = [
        loop.step(inner_args=next(drawn), outer_args=next(drawn)).solution for _ in range(STEPS)
    ]
    failed = sum(not each.result.ok for each in found)
    return sum(each.stats.products for each in found), failed


def main() -> None:
    """Count, print, save."""
    options = arguments("Count products along minibatches.", repeats=1)
    torch.set_num_threads(options.threads[0])
    warnings.simplefilter("ignore")
    features = {"one scale": torch.ones(SIZE), "many": torch.logspace(0, -1.5, SIZE)}
    rows: list[dict[str, Any]] = []
    for (kind, scales), dtype, count in product(
        features.items(), (torch.float32, torch.float64), BATCHES
    ):
        row: dict[str, Any] = {"features": kind, "dtype": str(dtype)[6:], "batch": count}
        for way, warm_start in WAYS.items():
            row[way], row[f"{way}, failed"] = spent(count, scales, dtype, warm_start)
        rows.append(row)
    print_table(
        f"products of {STEPS} steps, (failed solves)",
        ["features", "dtype", "batch", *WAYS, "ratio"],
        [
            [
                *(str(row[name]) for name in ("features", "dtype", "batch")),
                *(f"{row[way]} ({row[f'{way}, failed']})" for way in WAYS),
                f"{row['as it runs by default'] / row['from zero']:.2f}",
            ]
            for row in rows
        ],
    )
    save("minibatches", options, rows)


if __name__ == "__main__":
    main()
