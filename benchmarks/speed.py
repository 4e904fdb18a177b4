"""Fixed budgets on four kinds of networks and four sizes, beside the hand-written floor.

    python -m benchmarks speed --quick
    python -m benchmarks speed --kinds mlp lstm --sizes 1000 30000 --budgets 20 --compile

The floor, the library and, with ``--compile``, the compiled path do the same products; the
difference is that to the floor. Compiling takes up to a minute for every network and solver.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from _floor import cg, flat, neumann
from _harness import Contender, arguments, compare, interleave, milliseconds, print_table, save
from _models import WIDTHS, Leaves, Network, network

import bilevel

SIZES = (1_000, 30_000, 300_000, 2_000_000)
OPTIONS: dict[str, dict[str, Any]] = {
    "--kinds": {"nargs": "+", "choices": list(WIDTHS), "default": list(WIDTHS)},
    "--sizes": {"nargs": "+", "type": int, "choices": SIZES, "default": list(SIZES)},
    "--budgets": {"nargs": "+", "type": int, "default": [10, 20, 50]},
    "--compile": {"action": "store_true", "help": "also the compiled path"},
}


def measure(net: Network, budget: int, options: Any) -> list[dict[str, Any]]:
    """Both solvers by everybody, in turn."""
    step = 0.1
    solvers = {
        "Neumann": bilevel.Neumann(budget, step=step),
        "CG": bilevel.CG(rtol=None, max_steps=budget - 1),
    }
    floors: dict[str, Contender] = {
        "Neumann": lambda: neumann(net, budget, step),
        "CG": lambda: cg(net, budget),
    }
    contenders: dict[str, Contender] = {f"{name}: floor": run for name, run in floors.items()}
    compiling: dict[str, float] = {}
    for name, solver in solvers.items():
        for path in ("eager", "compiled") if options.compile else ("eager",):
            problem = bilevel.ImplicitProblem(
                net.outer, net.inner, solver, on_failure="ignore", compile=path == "compiled"
            )
            batches: dict[str, Any] = {"outer_args": net.validation, "inner_args": net.batch}
            run = lambda problem=problem, batches=batches: problem.implicit_grad(  # noqa: E731
                net.phi, net.theta, **batches
            )
            begin = time.perf_counter()
            run()
            compiling[f"{name}: {path}"] = time.perf_counter() - begin
            contenders[f"{name}: {path}"] = run
    seconds = interleave(contenders, options.repeats, options.device)
    rows = []
    for name, run in contenders.items():
        floor = f"{name.partition(':')[0]}: floor"
        rows.append(
            {
                "problem": net.name,
                "products": budget,
                "contender": name,
                "milliseconds": milliseconds(seconds[name]),
                **compare(seconds[name], seconds[floor]),
                "relative_difference": difference(run(), contenders[floor]()),
                "first_call_seconds": compiling.get(name),
            }
        )
    return rows


def difference(found: Leaves, wanted: Leaves) -> float:
    """``||found - wanted|| / ||wanted||``."""
    a, b = flat(list(found.values())).double(), flat(list(wanted.values())).double()
    return ((a - b).norm() / b.norm()).item()


def main() -> None:
    """Time, print, save."""
    options = arguments("Time fixed budgets beside a hand-written floor.", 9, OPTIONS)
    torch.set_num_threads(options.threads[0])
    warnings.simplefilter("ignore", DeprecationWarning)
    if options.quick:
        options.sizes, options.budgets = options.sizes[:1], options.budgets[:1]
    results = []
    for kind in options.kinds:
        for size in options.sizes:
            net = network(kind, size, options.device)
            rows = [row for n in options.budgets for row in measure(net, n, options)]
            print_table(
                net.name,
                [
                    "contender",
                    "products",
                    "ms",
                    "ratio to the floor",
                    "difference",
                    "first call, s",
                ],
                [
                    [
                        row["contender"],
                        str(row["products"]),
                        f"{row['milliseconds']:.2f}",
                        f"{row['ratio_of_medians']:.2f}",
                        f"{row['relative_difference']:.0e}",
                        f"{row['first_call_seconds'] or 0:.1f}",
                    ]
                    for row in rows
                ],
            )
            results += rows
    save("speed", options, results)


if __name__ == "__main__":
    main()
