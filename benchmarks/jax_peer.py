"""The compiled path beside jaxopt and optimistix with jit, which run in a Python of their own.

    python -m venv jax && jax/bin/pip install jax jaxopt optimistix lineax
    python -m benchmarks jax_peer --python jax/bin/python --sizes 1000 30000

Conjugate gradients, one thread, by the processor's time. Without ``--python`` only the floor and
the library are timed.
"""

from __future__ import annotations

import warnings
from typing import Any

from _harness import arguments, save
from _jax_peers import add_rows
from _models import Network
from speed import OPTIONS, Row, Wanted, suite

OWN: dict[str, dict[str, Any]] = {
    **{
        name: OPTIONS[name]
        for name in ("--kinds", "--sizes", "--budgets", "--seconds", "--longest")
    },
    "--python": {"default": None, "help": "a Python that has jax, and jaxopt or optimistix"},
}
OWN["--kinds"] = {**OWN["--kinds"], "default": ["mlp"]}
OWN["--sizes"] = {**OWN["--sizes"], "default": [1_000, 30_000, 300_000]}
OWN["--budgets"] = {**OWN["--budgets"], "default": [20]}


def main() -> None:
    """Time, print, save."""
    options = arguments("The compiled path beside libraries of JAX.", 15, OWN)
    options.solvers, options.compile = ["CG"], True
    warnings.simplefilter("ignore", DeprecationWarning)
    versions: dict[str, str] = {}

    def others(net: Network, rows: list[Row], wanted: dict[int, Wanted]) -> None:
        versions.update(add_rows(net, rows, wanted, options))

    def keep(rows: list[Row]) -> None:
        save("jax_peer", options, {"versions": versions, "timings": rows})

    if options.python is None:
        print("left out: jax (--python names no Python of its own)")
    suite(options, keep, others=others if options.python is not None else None)


if __name__ == "__main__":
    main()
