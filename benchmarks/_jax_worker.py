"""Implicit gradients by libraries of JAX, compiled as a whole, in a Python that has them.

Reads a request as JSON (``kind``, ``source``, ``target``, ``products``, ``repeats``, ``seconds``)
and numbers from an ``.npz``; writes the gradients to another, and prints the times as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

Tree = dict[str, Any]


def _linear(theta: Tree, name: str, x: Any) -> Any:
    return x @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]


def mlp(theta: Tree, x: Any) -> Any:
    """Linear layers with tanh between them."""
    layers = sorted({key.partition(".")[0] for key in theta}, key=int)
    for layer in layers:
        x = _linear(theta, layer, x)
        x = jnp.tanh(x) if layer != layers[-1] else x
    return x


def _pool(x: Any, block: int) -> Any:
    *outside, height, width = x.shape
    blocks = x.reshape(*outside, height // block, block, width // block, block)
    return blocks.mean((-3, -1))


def conv(theta: Tree, x: Any) -> Any:
    """Two convolutions, each averaged over blocks, and a linear layer."""
    for layer, block in (("0", 2), ("3", 3)):
        weight, bias = theta[f"{layer}.weight"], theta[f"{layer}.bias"]
        x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME") + bias[:, None, None]
        x = _pool(jnp.tanh(x), block)
    return _linear(theta, "7", x.reshape(x.shape[0], -1))


def lstm(theta: Tree, x: Any) -> Any:
    """A bidirectional LSTM, its outputs averaged over time, and a linear layer."""

    def direction(ending: str, reverse: bool) -> Any:
        w_input, w_hidden, b_input, b_hidden = (
            theta[f"lstm.{name}_l0{ending}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        from_input = jnp.swapaxes(x, 0, 1) @ w_input.T + b_input + b_hidden

        def step(state: Any, entering: Any) -> Any:
            hidden, cell = state
            i, f, g, o = jnp.split(entering + hidden @ w_hidden.T, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        nothing = jnp.zeros((x.shape[0], w_hidden.shape[1]), x.dtype)
        return jax.lax.scan(step, (nothing, nothing), from_input, reverse=reverse)[1].mean(0)

    both = [direction("", False), direction("_reverse", True)]
    return _linear(theta, "last", jnp.concatenate(both, axis=-1))


def transformer(theta: Tree, x: Any) -> Any:
    """One block of attention."""
    x = _linear(theta, "first", x)
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normal = normal * theta["norm.weight"] + theta["norm.bias"]
    q, k, v = jnp.split(_linear(theta, "mix", normal), 3, axis=-1)
    x = x + jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / q.shape[-1] ** 0.5, axis=-1) @ v
    x = x + _linear(theta, "down", jnp.tanh(_linear(theta, "up", x)))
    return _linear(theta, "last", x.mean(1))


NETWORKS = {"mlp": mlp, "conv": conv, "lstm": lstm, "transformer": transformer}


def objectives(network: Callable[[Tree, Any], Any]) -> tuple[Callable[..., Any], ...]:
    """The outer and the inner objective of ``_models.network``."""

    def outer(theta: Tree, x: Any, y: Any) -> Any:
        return ((network(theta, x) - y) ** 2).mean()

    def inner(theta: Tree, phi: Tree, x: Any, y: Any) -> Any:
        penalty = sum((jnp.exp(phi[key]) * leaf**2).sum() for key, leaf in theta.items())
        return outer(theta, x, y) + penalty

    return outer, inner


def by_jaxopt(outer: Any, inner: Any, products: int) -> Callable[..., Any]:
    """``root_vjp`` with conjugate gradients: a first residual, the other products for steps."""
    from jaxopt import implicit_diff, linear_solve  # pyright: ignore[reportMissingImports]

    def solve(matvec: Any, b: Any) -> Any:
        return linear_solve.solve_cg(matvec, b, maxiter=products - 1, tol=0.0)

    def run(phi: Any, theta: Any, x: Any, y: Any, *validation: Any) -> Any:
        slope = jax.grad(outer)(theta, *validation)
        return implicit_diff.root_vjp(jax.grad(inner), theta, (phi, x, y), slope, solve=solve)[0]

    return run


def _stay(inputs: Any) -> Any:
    return inputs[1], None


def _condition(root: Any, residual: Any, inputs: Any) -> Any:
    inner, _, phi, x, y, *_ = inputs  # and the loop, which nobody needs here
    return jax.grad(inner)(root, phi, x, y)


def by_optimistix(outer: Any, inner: Any, products: int) -> Callable[..., Any]:
    """``ImplicitAdjoint`` around lineax' CG, at a root that is there already."""
    import lineax  # pyright: ignore[reportMissingImports]
    import optimistix  # pyright: ignore[reportMissingImports]

    solver = lineax.CG(rtol=0.0, atol=0.0, stabilise_every=None, max_steps=products - 1)
    adjoint = optimistix.ImplicitAdjoint(solver)
    tags = frozenset({lineax.positive_semidefinite_tag})

    def run(phi: Any, theta: Any, x: Any, y: Any, *validation: Any) -> Any:
        def value(phi: Any) -> Any:
            inputs = (jax.tree_util.Partial(inner), theta, phi, x, y)
            root, _ = adjoint.apply(_stay, _condition, inputs, tags)
            return outer(root, *validation)

        return jax.grad(value)(phi)

    return run


MAKERS = {"jaxopt": by_jaxopt, "optimistix": by_optimistix}


def timed(run: Callable[[], Any], repeats: int, seconds: float) -> tuple[Any, dict[str, Any]]:
    """The answer, the time of the first call, and those of calls until there are enough."""
    begin = time.process_time()
    found = run()
    report: dict[str, Any] = {"compiling": time.process_time() - begin, "seconds": []}
    times = report["seconds"]
    while not times or (len(times) < repeats and sum(times) < seconds):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return found, report


def reason(error: Exception) -> str:
    """What an error says, without the frames of a callback that it came through."""
    lines = [line for line in str(error).splitlines() if line.strip() and line[0] != " "]
    told = [line for line in lines if "most recent call last" not in line]
    return f"{type(error).__name__}: {' '.join(told)}"


def main(request: dict[str, Any]) -> None:
    """Time every library that is here at every budget."""
    data = dict(np.load(request["source"]))
    tree = lambda prefix: {  # noqa: E731
        key.removeprefix(prefix): jnp.asarray(value)
        for key, value in data.items()
        if key.startswith(prefix)
    }
    names = ("x", "y", "x_validation", "y_validation")
    inputs = (tree("phi/"), tree("theta/"), *(jnp.asarray(data[name]) for name in names))
    outer, inner = objectives(NETWORKS[request["kind"]])
    reports, answers = [], {}
    here = [name for name in MAKERS if find_spec(name) is not None]
    for products in request["products"]:
        for name in here:
            report = {"contender": name, "products": products}
            try:
                compiled = jax.jit(MAKERS[name](outer, inner, products))
                run = lambda compiled=compiled: jax.block_until_ready(compiled(*inputs))  # noqa: E731
                found, times = timed(run, request["repeats"], request["seconds"])
                answers |= {f"{name}/{products}/{key}": np.asarray(g) for key, g in found.items()}
                report |= times
            except Exception as error:  # whatever keeps it from running is its row
                report["reason"] = reason(error)
            reports.append(report)
    np.savez(request["target"], **answers)
    versions = {name: version(name) for name in ("jax", *here)}
    print(json.dumps({"versions": versions, "reports": reports}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
