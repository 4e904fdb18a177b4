"""The compiled path beside jaxopt with jit, which runs in a Python of its own.

    python -m venv jax && jax/bin/pip install jax jaxopt
    python -m benchmarks jax_peer --python jax/bin/python --sizes 1000 30000

Conjugate gradients on an MLP, 19 steps and the true residual, one thread, by the processor's time.
Without ``--python`` the rows say that the peer is missing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _floor import cg
from _harness import Contender, arguments, interleave, milliseconds, print_table, save
from _models import Network, network
from speed import SIZES, difference

import bilevel

PRODUCTS = 20
WORKER = Path(__file__).with_name("_jax_worker.py")
OPTIONS: dict[str, dict[str, Any]] = {
    "--python": {"default": None, "help": "a Python that has jax and jaxopt"},
    "--sizes": {"nargs": "+", "type": int, "choices": SIZES, "default": [1_000, 30_000, 300_000]},
}


def by_jax(net: Network, python: str, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the other process reports, and its gradient."""
    arrays = {f"phi/{key}": leaf.numpy() for key, leaf in net.phi.items()}
    arrays |= {f"theta/{key}": leaf.numpy() for key, leaf in net.theta.items()}
    names = ("x", "y", "x_validation", "y_validation")
    arrays |= dict(zip(names, (t.numpy() for t in (*net.batch, *net.validation)), strict=True))
    pinned = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, **arrays)  # pyright: ignore[reportArgumentType]
        done = subprocess.run(
            [python, str(WORKER), str(source), str(target), str(PRODUCTS), str(repeats)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **pinned, "PYTHONPATH": ""},
        )
        found = dict(np.load(target))
    return json.loads(done.stdout.splitlines()[-1]), found


def measure(net: Network, options: Any) -> list[dict[str, Any]]:
    """Floor, eager and compiled in turn, and the peer in the same minute."""
    solver = bilevel.CG(rtol=None, max_steps=PRODUCTS - 1)
    contenders: dict[str, Contender] = {"floor": lambda: cg(net, PRODUCTS)}
    for name, compile in (("eager", False), ("compiled", True)):
        problem = bilevel.ImplicitProblem(
            net.outer, net.inner, solver, on_failure="ignore", compile=compile
        )
        batches: dict[str, Any] = {"outer_args": net.validation, "inner_args": net.batch}
        contenders[name] = lambda problem=problem, batches=batches: problem.implicit_grad(
            net.phi, net.theta, **batches
        )
    seconds = interleave(contenders, options.repeats, options.device)
    floor = statistics.median(seconds["floor"])
    wanted = contenders["floor"]()
    rows = [
        {
            "problem": net.name,
            "contender": name,
            "milliseconds": milliseconds(seconds[name]),
            "ratio": statistics.median(seconds[name]) / floor,
            "difference": difference(run(), wanted),
        }
        for name, run in contenders.items()
    ]
    if options.python is None:
        missing = {"milliseconds": None, "ratio": None, "difference": None}
        return [*rows, {"problem": net.name, "contender": "jaxopt: not installed", **missing}]
    report, found = by_jax(net, options.python, options.repeats)
    leaves = {key: torch.from_numpy(found[key]) for key in net.phi}
    rows.append(
        {
            "problem": net.name,
            "contender": f"jaxopt, jit (jax {report['jax']})",
            "milliseconds": milliseconds(report["seconds"]),
            "ratio": statistics.median(report["seconds"]) / floor,
            "difference": difference(leaves, wanted),
            "compiling": report["compiling"],
        }
    )
    return rows


def main() -> None:
    """Time, print, save."""
    options = arguments("The compiled path beside jaxopt.", 15, OPTIONS)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    sizes = options.sizes[:1] if options.quick else options.sizes
    results = []
    for size in sizes:
        net = network("mlp", size, "cpu")
        rows = measure(net, options)
        cell = lambda value, form: "-" if value is None else format(value, form)  # noqa: E731
        print_table(
            net.name,
            ["contender", "ms", "to the floor", "difference"],
            [
                [
                    row["contender"],
                    cell(row["milliseconds"], ".2f"),
                    cell(row["ratio"], ".2f"),
                    cell(row["difference"], ".0e"),
                ]
                for row in rows
            ],
        )
        results += rows
    save("jax_peer", options, results)


if __name__ == "__main__":
    main()
