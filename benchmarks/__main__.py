"""Runs benchmarks by name: ``python -m benchmarks speed peers --quick --json folder``.

Without a name, all of them. ``--json`` says where the figures go; every other option goes to each
benchmark (``python -m benchmarks speed --help`` lists those of one).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("speed", "hvp_modes", "solvers", "peers", "jax_peer", "accuracy", "minibatches")


def main() -> None:
    """Run what was asked for, one after the other, each as the script it is."""
    words = ["--output" if word == "--json" else word for word in sys.argv[1:]]
    names = []
    while words and words[0] in NAMES:
        names.append(words.pop(0))
    if words and not words[0].startswith("-"):
        sys.exit(f"no benchmark is called {words[0]!r}; there are {', '.join(NAMES)}")
    if not names and words[:1] in (["--help"], ["-h"]):
        print(f"{__doc__}\nBenchmarks: {', '.join(NAMES)}")
        return
    sys.path.insert(0, str(HERE))
    for name in names or NAMES:
        print(f"\n== {name}")
        sys.argv = [f"{name}.py", *words]
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
