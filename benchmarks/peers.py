"""``implicit_grad`` beside other libraries in the same process, each with 20 products or steps.

Only those that are installed take part; none is needed by the project:

    pip install torchopt betty-ml jax jaxopt
    python benchmarks/peers.py

jax compiles the whole computation once, before the timed rounds. Libraries of torch call the same
two objectives; jax gets the same network in its own words and the same numbers. The difference is
that to the hand-written loop: near zero where a library computes what its solver is named for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _harness import Contender, arguments, compare, interleave, milliseconds, print_table, save
from _problems import Leaves, Problem, both_mlps
from hypergradient_speed import PRODUCTS, by_hand_cg, by_hand_neumann, relative_difference

import bilevel


def with_torchopt(problem: Problem, step: float) -> dict[str, Contender]:
    """``torchopt.diff.implicit.custom_root`` with its CG."""
    import torchopt  # pyright: ignore[reportMissingImports]

    def condition(theta: Any, phi: Any) -> Any:
        trees = (
            dict(zip(problem.phi, phi, strict=True)),
            dict(zip(problem.theta, theta, strict=True)),
        )
        return tuple(torch.func.grad(problem.inner, argnums=1)(*trees).values())

    solve = torchopt.linear_solve.solve_cg(maxiter=PRODUCTS, rtol=0.0, atol=0.0)
    root = torchopt.diff.implicit.custom_root(condition, argnums=1, solve=solve)(
        lambda theta, phi: theta
    )

    def hypergradient() -> Leaves:
        phi = tuple(leaf.detach().requires_grad_() for leaf in problem.phi.values())
        theta = root(tuple(problem.theta.values()), phi)
        value = problem.outer(problem.phi, dict(zip(problem.theta, theta, strict=True)))
        return dict(zip(problem.phi, torch.autograd.grad(value, phi), strict=True))

    return {"CG: torchopt": hypergradient}


def with_betty(problem: Problem, step: float) -> dict[str, Contender]:
    """Betty's hypergradient functions, without its training engine around them."""
    from betty.hypergradient.cg import cg  # pyright: ignore[reportMissingImports]
    from betty.hypergradient.neumann import neumann  # pyright: ignore[reportMissingImports]

    def hypergradient(rule: Callable[..., Any]) -> Leaves:
        phi = {key: leaf.detach().requires_grad_() for key, leaf in problem.phi.items()}
        theta = {key: leaf.detach().requires_grad_() for key, leaf in problem.theta.items()}
        leaves = list(theta.values())
        slope = torch.autograd.grad(problem.outer(phi, theta), leaves)
        lower = SimpleNamespace(
            paths=[],
            cur_batch=None,
            config=SimpleNamespace(
                neumann_iterations=PRODUCTS - 1,  # its count leaves the first term out
                neumann_alpha=step,
                cg_iterations=PRODUCTS,
                cg_alpha=1.0,
            ),
            training_step_exec=lambda batch: problem.inner(phi, theta),
            trainable_parameters=lambda: leaves,
            parameters=lambda: leaves,
        )
        upper = SimpleNamespace(trainable_parameters=lambda: list(phi.values()))
        return dict(zip(phi, rule(slope, lower, upper), strict=True))

    return {
        "CG: betty": lambda: hypergradient(cg),
        "Neumann: betty": lambda: hypergradient(neumann),
    }


def with_jaxopt(problem: Problem, step: float) -> dict[str, Contender]:
    """``jaxopt.implicit_diff.root_vjp`` with its CG, compiled as a whole."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    from jaxopt import implicit_diff, linear_solve  # pyright: ignore[reportMissingImports]

    def to_jax(tensor: torch.Tensor) -> Any:
        return jnp.asarray(tensor.detach().cpu().numpy())

    depth = len(problem.theta) // 2

    def network(theta: Any, x: Any) -> Any:
        for layer in range(depth):
            x = x @ theta[f"weight{layer}"].T + theta[f"bias{layer}"]
            x = jnp.tanh(x) if layer < depth - 1 else x
        return x

    def inner(theta: Any, phi: Any, x: Any, y: Any) -> Any:
        penalty = sum(jnp.exp(phi[key]) * (theta[key] ** 2).sum() for key in theta)
        return ((network(theta, x) - y) ** 2).mean() + penalty

    def outer(theta: Any, x: Any, y: Any) -> Any:
        return ((network(theta, x) - y) ** 2).mean()

    def solve(matvec: Any, b: Any) -> Any:
        return linear_solve.solve_cg(matvec, b, maxiter=PRODUCTS, tol=0.0)

    @jax.jit
    def compiled(phi: Any, theta: Any, x: Any, y: Any, x_validation: Any, y_validation: Any) -> Any:
        slope = jax.grad(outer)(theta, x_validation, y_validation)
        return implicit_diff.root_vjp(jax.grad(inner), theta, (phi, x, y), slope, solve=solve)[0]

    data = tuple(map(to_jax, problem.data))
    phi, theta = (
        {key: to_jax(leaf) for key, leaf in tree.items()} for tree in (problem.phi, problem.theta)
    )

    def hypergradient() -> Leaves:
        found = jax.block_until_ready(compiled(phi, theta, *data))
        return {key: torch.from_numpy(np.array(found[key])) for key in problem.phi}

    return {"CG: jaxopt, jit": hypergradient}


PEERS = {"torchopt": with_torchopt, "betty": with_betty, "jaxopt": with_jaxopt}
PACKAGES = {"torchopt": "torchopt", "betty": "betty-ml", "jaxopt": "jaxopt"}


def measure(problem: Problem, installed: list[str], repeats: int, device: str) -> list[Any]:
    """All contenders on one problem, each against the hand-written loop of its kind."""
    cg = bilevel.CG(rtol=None, max_steps=PRODUCTS)
    arguments = (problem.outer, problem.inner, problem.phi, problem.theta)
    _, info = bilevel.implicit_grad(*arguments, solver=cg, return_info=True)
    assert info.solution.stats.ritz is not None
    step = 1.0 / info.solution.stats.ritz[1]
    neumann = bilevel.Neumann(PRODUCTS, step=step)
    contenders: dict[str, Contender] = {
        "CG: by hand": lambda: by_hand_cg(problem),
        "CG: bilevel": lambda: bilevel.implicit_grad(*arguments, solver=cg),
        "Neumann: by hand": lambda: by_hand_neumann(problem, step),
        "Neumann: bilevel": lambda: bilevel.implicit_grad(*arguments, solver=neumann),
    }
    for name in installed:
        contenders |= PEERS[name](problem, step)
    seconds = interleave(contenders, repeats, device)
    rows = []
    for name, run in sorted(contenders.items()):
        reference = f"{name.partition(':')[0]}: by hand"
        rows.append(
            {
                "problem": problem.name,
                "contender": name,
                "milliseconds": milliseconds(seconds[name]),
                **compare(seconds[name], seconds[reference]),
                "relative_difference": relative_difference(run(), contenders[reference]()),
            }
        )
    return rows


def main() -> None:
    """Time, print, save."""
    options = arguments("Time implicit_grad beside other libraries.", repeats=20)
    torch.set_num_threads(options.threads[0])
    warnings.simplefilter("ignore")  # those of the peers
    installed = [name for name in PEERS if find_spec(name) is not None]
    if options.device != "cpu" and "jaxopt" in installed:
        installed.remove("jaxopt")  # it would compute on another device
    for name in PEERS.keys() - set(installed):
        print(
            f"{name} is left out: not installed for {options.device} (pip install {PACKAGES[name]})"
        )
    results = []
    for problem in both_mlps(options.device):
        rows = measure(problem, installed, options.repeats, options.device)
        print_table(
            problem.name,
            ["contender", "ms", "ratio to by hand", "difference"],
            [
                [
                    row["contender"],
                    f"{row['milliseconds']:.2f}",
                    f"{row['ratio_of_medians']:.2f}",
                    f"{row['relative_difference']:.0e}",
                ]
                for row in rows
            ],
        )
        results += rows
    versions = {name: version(PACKAGES[name]) for name in installed}
    save("peers", options, {"versions": versions, "timings": results})


if __name__ == "__main__":
    main()
