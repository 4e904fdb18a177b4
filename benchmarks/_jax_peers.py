"""Libraries of JAX in a Python of their own, on the networks and numbers of this process."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import milliseconds
from _models import Network
from speed import Row, Wanted, error, verdict

WORKER = Path(__file__).with_name("_jax_worker.py")
ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


def ask(
    net: Network, budgets: Sequence[int], options: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the other process reports, and its gradients by contender, budget and leaf."""
    arrays = {f"phi/{key}": leaf.numpy() for key, leaf in net.phi.items()}
    arrays |= {f"theta/{key}": leaf.numpy() for key, leaf in net.theta.items()}
    names = ("x", "y", "x_validation", "y_validation")
    arrays |= dict(zip(names, (t.numpy() for t in (*net.batch, *net.validation)), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder, "in.npz")), str(Path(folder, "out.npz"))
        np.savez(source, **arrays)  # pyright: ignore[reportArgumentType]
        request = {
            "kind": net.name.partition(",")[0],
            "source": source,
            "target": target,
            "products": list(budgets),
            "repeats": options.repeats,
            "seconds": options.seconds / 5,
        }
        done = subprocess.run(
            [options.python, str(WORKER), json.dumps(request)],
            capture_output=True,
            text=True,
            check=False,
            timeout=5 * options.longest,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": ""},
        )
        if done.returncode:
            raise RuntimeError(f"{options.python} failed: {done.stderr.strip()[-500:]}")
        found = dict(np.load(target))
    return json.loads(done.stdout.splitlines()[-1]), found


def add_rows(
    net: Network, rows: list[Row], wanted: dict[int, Wanted], options: Any
) -> dict[str, str]:
    """Add those of the other process to those of one network; gives its versions back.

    The ratios are to the floor and the library in this process, in the same minute.
    """
    try:
        report, answers = ask(net, list(wanted), options)
    except subprocess.TimeoutExpired as late:
        remark = f"stopped after {late.timeout:.0f} s"
        rows += [
            {
                "problem": net.name,
                "products": budget,
                "solver": "CG",
                "contender": "libraries of JAX",
                "verdict": "no answer",
                "remark": remark,
            }
            for budget in wanted
        ]
        return {}
    here = {(row["products"], row["contender"]): row for row in rows if row["solver"] == "CG"}
    for entry in report["reports"]:
        budget, name = entry["products"], entry["contender"]
        row: Row = {
            "problem": net.name,
            "products": budget,
            "solver": "CG",
            "contender": f"{name}, jit",
        }
        if "reason" in entry:
            rows.append({**row, "verdict": "no answer", "remark": entry["reason"][:150]})
            continue
        floor, library = here[budget, "floor"], here[budget, "bilevel"]
        leaves = {key: torch.from_numpy(answers[f"{name}/{budget}/{key}"]) for key in net.phi}
        found, median = (
            error(leaves, wanted[budget].answers["CG", 0]),
            milliseconds(entry["seconds"]),
        )
        rows.append(
            {
                **row,
                "rounds": len(entry["seconds"]),
                "milliseconds": median,
                "ratio_of_medians": median / floor["milliseconds"],
                "to_bilevel": median / library["milliseconds"],
                "error": found,
                "verdict": verdict(found, floor["error"], unrolled=False),
                "remark": "",
                "first_call_seconds": entry["compiling"],
            }
        )
    return report["versions"]
