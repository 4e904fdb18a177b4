"""What a Hessian-vector product costs in each mode, counted in gradients, and how exact it is.

python benchmarks/hvp_modes.py
python benchmarks/hvp_modes.py --device cuda
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from _harness import arguments, compare, interleave, milliseconds, print_table, save
from _problems import Leaves, Problem, mlp

import bilevel
from bilevel.products import HVP

MODES = [mode for mode in get_args(HVP) if mode != "auto"]


def gradient(problem: Problem) -> Leaves:
    """One gradient of the inner objective: the unit of account."""
    theta = {key: leaf.detach().requires_grad_() for key, leaf in problem.theta.items()}
    found = torch.autograd.grad(problem.inner(problem.phi, theta), list(theta.values()))
    return dict(zip(theta, found, strict=True))


def operator(problem: Problem, mode: HVP) -> bilevel.LinearOperator:
    """The Hessian in one mode; the kept graph is built here."""
    made = bilevel.ImplicitProblem(problem.outer, problem.inner, hvp=mode)
    return made.operator(problem.phi, problem.theta)


def flat(tree: Leaves) -> torch.Tensor:
    """All leaves in one vector, in double precision."""
    return torch.cat([leaf.flatten() for leaf in tree.values()]).double()


def measure(problem: Problem, exact: Problem, repeats: int, device: str) -> list[dict[str, Any]]:
    """All modes on one problem; ``exact`` is the same problem in double precision."""
    vector = gradient(problem)
    ready = {mode: operator(problem, mode) for mode in MODES}
    seconds = interleave(
        {"gradient": lambda: gradient(problem)}
        | {f"build {mode}": lambda mode=mode: operator(problem, mode) for mode in MODES}
        | {f"product {mode}": lambda mode=mode: ready[mode] @ vector for mode in MODES},
        repeats,
        device,
    )
    wanted = flat(operator(exact, "reverse") @ {k: leaf.double() for k, leaf in vector.items()})
    rows = []
    for mode in MODES:
        missed = flat(ready[mode] @ vector) - wanted
        rows.append(
            {
                "problem": problem.name,
                "mode": mode,
                "gradient_ms": milliseconds(seconds["gradient"]),
                "build": compare(seconds[f"build {mode}"], seconds["gradient"]),
                "product": compare(seconds[f"product {mode}"], seconds["gradient"]),
                "relative_error": (missed.norm() / wanted.norm()).item(),
            }
        )
    return rows


def main() -> None:
    """Time, print, save."""
    options = arguments("Time the ways to multiply by a Hessian.", repeats=40)
    torch.set_num_threads(options.threads[0])
    results = []
    for name, widths, batch in (
        ("MLP, 266 610 parameters", (784, 300, 100, 10), 256),
        ("MLP, 1 002 parameters", (20, 32, 10), 64),
    ):
        problem, exact = (
            mlp(name, widths, batch, options.device, dtype)
            for dtype in (torch.float32, torch.float64)
        )
        results += measure(problem, exact, options.repeats, options.device)
    print_table(
        "in gradients of the inner objective (ratios of medians)",
        ["problem", "mode", "gradient, ms", "build", "product", "relative error"],
        [
            [
                row["problem"],
                row["mode"],
                f"{row['gradient_ms']:.2f}",
                f"{row['build']['ratio_of_medians']:.2f}",
                f"{row['product']['ratio_of_medians']:.2f}",
                f"{row['relative_error']:.0e}",
            ]
            for row in results
        ],
    )
    save("hvp_modes", options, results)


if __name__ == "__main__":
    main()
