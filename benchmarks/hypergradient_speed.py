"""``implicit_grad`` against a hand-written loop over a kept graph, with the same 20 products.

The loop is what one would write for this very problem: the gradient graph is built once, every
product is one backward through it, vectors are updated in place and in one call for all leaves,
nothing is checked and nothing is reported. For CG the products are 19 steps and, at the end, the
true residual.

    python benchmarks/hypergradient_speed.py --threads 1 2
    python benchmarks/hypergradient_speed.py --device cuda
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*: one call for all leaves, which torch.optim uses and a careful hand would, too.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from _harness import Contender, arguments, compare, interleave, milliseconds, print_table, save
from _problems import Leaves, Problem, both_mlps
from torch import Tensor

import bilevel

PRODUCTS = 20
TARGETS = {"MLP, 266 610 parameters": 1.10, "MLP, 1 002 parameters": 1.50}


def first_order(
    problem: Problem,
) -> tuple[list[Tensor], list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Leaves of phi and theta, the gradient of outer in theta, and that of inner with its graph."""
    phi = [leaf.detach().requires_grad_() for leaf in problem.phi.values()]
    theta = [leaf.detach().requires_grad_() for leaf in problem.theta.values()]
    trees = dict(zip(problem.phi, phi, strict=True)), dict(zip(problem.theta, theta, strict=True))
    slope = torch.autograd.grad(problem.outer(*trees), theta)
    graph = torch.autograd.grad(problem.inner(*trees), theta, create_graph=True)
    return phi, theta, slope, graph


def by_hand_neumann(problem: Problem, step: float) -> Leaves:
    """``-(d_phi d_theta inner)' v`` with v from 20 terms of the Neumann series."""
    phi, theta, slope, graph = first_order(problem)
    power = [leaf.clone() for leaf in slope]
    total = [torch.zeros_like(leaf) for leaf in slope]
    for _ in range(PRODUCTS):
        product = torch.autograd.grad(graph, theta, power, retain_graph=True)
        torch._foreach_add_(total, power, alpha=step)
        torch._foreach_add_(power, product, alpha=-step)
    mixed = torch.autograd.grad(graph, phi, total)
    return {key: -leaf for key, leaf in zip(problem.phi, mixed, strict=True)}


def by_hand_cg(problem: Problem) -> Leaves:
    """The same with v from conjugate gradients; the last product is for the true residual."""
    phi, theta, slope, graph = first_order(problem)
    solution = [torch.zeros_like(leaf) for leaf in slope]
    residual, direction = [leaf.clone() for leaf in slope], [leaf.clone() for leaf in slope]
    square = inner_product(residual, residual)
    for _ in range(PRODUCTS - 1):
        product = torch.autograd.grad(graph, theta, direction, retain_graph=True)
        length = square / inner_product(direction, product)
        torch._foreach_add_(solution, torch._foreach_mul(direction, length))
        torch._foreach_sub_(residual, torch._foreach_mul(product, length))
        square, before = inner_product(residual, residual), square
        torch._foreach_mul_(direction, square / before)
        torch._foreach_add_(direction, residual)
    product = torch.autograd.grad(graph, theta, solution, retain_graph=True)
    torch._foreach_norm(torch._foreach_sub(list(slope), list(product)))
    mixed = torch.autograd.grad(graph, phi, solution)
    return {key: -leaf for key, leaf in zip(problem.phi, mixed, strict=True)}


def inner_product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Over all leaves."""
    pairs = zip(left, right, strict=True)
    return torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in pairs]).sum()


def relative_difference(left: Leaves, right: Leaves) -> float:
    """``||left - right|| / ||right||``."""
    a, b = (torch.stack(list(tree.values())).double() for tree in (left, right))
    return ((a - b).norm() / b.norm()).item()


def contenders(problem: Problem) -> dict[str, Contender]:
    """By hand and by the library, for both solvers."""
    cg = bilevel.CG(rtol=None, max_steps=PRODUCTS - 1)
    _, info = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, solver=cg, return_info=True
    )
    assert info.solution.stats.products == PRODUCTS
    assert info.solution.stats.ritz is not None
    step = 1.0 / info.solution.stats.ritz[1]
    neumann = bilevel.Neumann(PRODUCTS, step=step)

    def library(solver: bilevel.Solver) -> Leaves:
        return bilevel.implicit_grad(
            problem.outer, problem.inner, problem.phi, problem.theta, solver=solver
        )

    return {
        "Neumann by hand": lambda: by_hand_neumann(problem, step),
        "Neumann": lambda: library(neumann),
        "CG by hand": lambda: by_hand_cg(problem),
        "CG": lambda: library(cg),
    }


def measure(problem: Problem, threads: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Both solvers on one problem."""
    torch.set_num_threads(threads)
    functions = contenders(problem)
    seconds = interleave(functions, repeats, device)
    results = []
    for solver in ("Neumann", "CG"):
        hand = f"{solver} by hand"
        results.append(
            {
                "problem": problem.name,
                "solver": solver,
                "threads": threads,
                "by_hand_ms": milliseconds(seconds[hand]),
                "bilevel_ms": milliseconds(seconds[solver]),
                **compare(seconds[solver], seconds[hand]),
                "target": TARGETS[problem.name],
                "relative_difference": relative_difference(functions[solver](), functions[hand]()),
            }
        )
    return results


def main() -> None:
    """Time, print, save."""
    options = arguments("Time implicit_grad against a hand-written loop.", repeats=40)
    results = []
    for threads in options.threads:
        for problem, factor in zip(both_mlps(options.device), (1, 5), strict=True):
            repeats = options.repeats if options.quick else factor * options.repeats
            results += measure(problem, threads, repeats, options.device)
    print_table(
        f"{PRODUCTS} products, milliseconds (medians)",
        ["problem", "threads", "solver", "by hand", "bilevel", "ratio", "quartiles", "target"],
        [
            [
                row["problem"],
                str(row["threads"]),
                row["solver"],
                f"{row['by_hand_ms']:.2f}",
                f"{row['bilevel_ms']:.2f}",
                f"{row['ratio_of_medians']:.2f}",
                f"{row['ratio_lower_quartile']:.2f}-{row['ratio_upper_quartile']:.2f}",
                f"{row['target']:.2f}",
            ]
            for row in results
        ],
    )
    save("hypergradient_speed", options, results)


if __name__ == "__main__":
    main()
