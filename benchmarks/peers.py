"""``speed``'s networks, sizes and budgets with other libraries beside the floor and the library.

Only those that are installed take part; none is needed by the project:

    pip install torchopt betty-ml hypergrad curvlinops-for-pytorch higher
    python -m venv jax && jax/bin/pip install jax jaxopt optimistix lineax
    python -m benchmarks peers --python jax/bin/python
    python -m benchmarks peers --kinds mlp --sizes 1000 --budgets 20

Libraries of PyTorch call the same objectives and take their turn in the same rounds. Those of JAX,
compiled as a whole, get the same networks in their own words and the same numbers, in a Python of
their own. Everybody makes as many Hessian products. The error is that to the floor's answer after
as many steps in double precision; a wrong one is called wrong, and who cannot run says why.
Unrolled training steps give another estimate: theirs is the distance to the Neumann series of as
many terms.
"""

from __future__ import annotations

import warnings
from typing import Any

from _harness import arguments, save
from _jax_peers import add_rows
from _models import Network
from _peers import PEERS, installed, versions
from speed import OPTIONS, Row, Wanted, suite

OWN: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "--python": {"default": None, "help": "a Python that has jax, and jaxopt or optimistix"},
}


def main() -> None:
    """Time, print, save."""
    options = arguments("Time fixed budgets by other libraries too.", 9, OWN)
    warnings.simplefilter("ignore")  # those of the peers
    peers = installed()
    found = versions(peers)
    missing = {peer.package for peer in PEERS} - found.keys()
    if options.python is None or options.device != "cpu":
        missing.add("jax: --python names no Python of its own, or the device is not the CPU")

    def others(net: Network, rows: list[Row], wanted: dict[int, Wanted]) -> None:
        found.update(add_rows(net, rows, wanted, options))

    for name in sorted(missing):
        print(f"left out: {name}")

    def keep(rows: list[Row]) -> None:
        results = {"versions": found, "left_out": sorted(missing), "timings": rows}
        save(f"peers{options.label}", options, results)

    beside = options.python is not None and options.device == "cpu" and "CG" in options.solvers
    suite(options, keep, peers, others if beside else None)


if __name__ == "__main__":
    main()
