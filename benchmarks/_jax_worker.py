"""jaxopt's implicit gradient of an MLP, compiled as a whole, for ``jax_peer.py``.

Reads an ``.npz`` of numbers, writes the gradient to another, and prints the times as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
from jaxopt import implicit_diff, linear_solve  # pyright: ignore[reportMissingImports]


def main(source: str, target: str, products: int, repeats: int) -> None:
    """Time conjugate gradients of ``products - 1`` steps."""
    data = dict(np.load(source))
    tree = lambda prefix: {  # noqa: E731
        key.removeprefix(prefix): jnp.asarray(value)
        for key, value in data.items()
        if key.startswith(prefix)
    }
    phi, theta = tree("phi/"), tree("theta/")
    layers = sorted({key.partition(".")[0] for key in theta}, key=int)

    def network(theta: Any, x: Any) -> Any:
        for layer in layers:
            x = x @ theta[f"{layer}.weight"].T + theta[f"{layer}.bias"]
            x = jnp.tanh(x) if layer != layers[-1] else x
        return x

    def outer(theta: Any, x: Any, y: Any) -> Any:
        return ((network(theta, x) - y) ** 2).mean()

    def inner(theta: Any, phi: Any, x: Any, y: Any) -> Any:
        penalty = sum((jnp.exp(phi[key]) * leaf**2).sum() for key, leaf in theta.items())
        return outer(theta, x, y) + penalty

    def solve(matvec: Any, b: Any) -> Any:
        return linear_solve.solve_cg(matvec, b, maxiter=products - 1, tol=0.0)

    @jax.jit
    def run(phi: Any, theta: Any, x: Any, y: Any, x_validation: Any, y_validation: Any) -> Any:
        slope = jax.grad(outer)(theta, x_validation, y_validation)
        return implicit_diff.root_vjp(jax.grad(inner), theta, (phi, x, y), slope, solve=solve)[0]

    batches = [jnp.asarray(data[key]) for key in ("x", "y", "x_validation", "y_validation")]
    begin = time.process_time()
    found = jax.block_until_ready(run(phi, theta, *batches))
    compiling = time.process_time() - begin
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        jax.block_until_ready(run(phi, theta, *batches))
        seconds.append(time.process_time() - begin)
    np.savez(target, **{key: np.asarray(leaf) for key, leaf in found.items()})  # pyright: ignore[reportArgumentType]
    print(json.dumps({"seconds": seconds, "compiling": compiling, "jax": jax.__version__}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
