"""Products and seconds until the hypergradient is right, once and along 50 outer steps.

    python -m benchmarks accuracy
    python -m benchmarks accuracy --problems "quadratic, condition 1e+04" --outer-steps 20

For every solver, with and without a preconditioner, tolerances are tightened by half a decade at a
time (ranks and terms doubled) until the hypergradient is within 1e-3 and then 1e-6 of the exact one
in double precision. Products include those that prepare. Then 50 outer steps, the inner problem
solved anew at each, in several ways: CG from zero, from the last adjoint, as ``BilevelOptimizer``
runs it (from a prediction), and with a Nystrom preconditioner that is made once and kept; ``Auto``
from zero, and as ``BilevelOptimizer`` runs it (from a prediction, and with what the solves before
have learned). All meet the same systems, along a trajectory of exact hypergradients. Figures are
saved after every problem; ``--resume`` goes on from there.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _accuracy_pictures import pictures
from _accuracy_problems import CONDITIONS, Problem, problems
from _accuracy_tables import conclusions, print_to_accuracy, print_trajectories
from _harness import arguments, save
from torch import Tensor

import bilevel


@dataclass(frozen=True)
class Way:
    """How the solves along a trajectory are made.

    Attributes:
        solver: of each of them.
        last: whether it starts from the last adjoint.
        nystrom: whether a preconditioner is made at the first step, and kept.
        loop: whether ``BilevelOptimizer`` makes them.
    """

    solver: type[bilevel.CG] | type[bilevel.Auto]
    last: bool = False
    nystrom: bool = False
    loop: bool = False


TARGETS = (1e-3, 1e-6)
TOLERANCES = [10.0 ** (-k / 2) for k in range(1, 23)]
BUDGET = 1000  # products; what needs more has not reached its target
RANK = 80
WAYS: dict[str, Way] = {
    "zero": Way(bilevel.CG),
    "last": Way(bilevel.CG, last=True),
    "predicted": Way(bilevel.CG, loop=True),
    "kept": Way(bilevel.CG, nystrom=True),
    "both": Way(bilevel.CG, nystrom=True, loop=True),
    "Auto": Way(bilevel.Auto),
    "learned": Way(bilevel.Auto, loop=True),
}
Made = Iterator[bilevel.Solver]


def solvers(size: int) -> dict[str, Callable[[], Made]]:
    """What is compared: a name, and ever more accurate versions of a solver."""

    def tightened(kind: Callable[..., bilevel.Solver], per_step: int = 1, **options: Any) -> Any:
        return lambda: (
            kind(rtol=rtol, max_steps=BUDGET // per_step, **options) for rtol in TOLERANCES
        )

    def doubled(kind: Callable[[int], bilevel.Solver], least: int, most: int) -> Any:
        counts = [least * 2**k for k in range(20) if least * 2**k <= most]
        return lambda: (kind(count) for count in counts)

    found: dict[str, Any] = {
        "Auto": tightened(bilevel.Auto),
        "CG": tightened(bilevel.CG),
        "MINRES": tightened(bilevel.MINRES),
        "GMRES": tightened(bilevel.GMRES),
        "GMRES, restart 200": tightened(bilevel.GMRES, restart=200),
        "BiCGStab": tightened(bilevel.BiCGStab, 2),
        "Chebyshev": tightened(bilevel.Chebyshev),
        "Neumann": doubled(bilevel.Neumann, 25, BUDGET),
        "Nystrom": doubled(bilevel.Nystrom, 20, min(size, BUDGET)),
    }
    nystrom = bilevel.NystromPreconditioner(RANK)
    for name, per_step in (("CG", 1), ("MINRES", 1), ("GMRES", 1), ("BiCGStab", 2)):
        kind = getattr(bilevel, name)
        found[f"{name}, Nystrom of rank {RANK}"] = tightened(kind, per_step, preconditioner=nystrom)
    for rank in (RANK // 4, RANK // 2):
        rough = bilevel.NystromPreconditioner(rank)
        found[f"CG, Nystrom of rank {rank}"] = tightened(bilevel.CG, preconditioner=rough)
    jacobi = bilevel.Jacobi(probes=20)
    found["CG, Jacobi of 20 probes"] = tightened(bilevel.CG, preconditioner=jacobi)
    if size <= BUDGET:
        found["Exact"] = lambda: iter([bilevel.Exact()])
    return found


def to_accuracy(problem: Problem) -> list[dict[str, Any]]:
    """Every solver until each target, and the curve on the way there."""
    exact = problem.hypergradient(problem.phi, problem.theta)
    rows = []
    for name, versions in solvers(problem.theta.numel()).items():
        curve: list[tuple[int, float]] = []
        reached: dict[float, dict[str, Any]] = {}
        for solver in versions():
            made = bilevel.ImplicitProblem(
                problem.outer, problem.inner, solver, on_failure="ignore"
            )
            begin = time.process_time()
            found, info = made.implicit_grad(problem.phi, problem.theta, return_info=True)
            seconds = time.process_time() - begin
            products = info.solution.stats.products
            error = float((found - exact).norm() / exact.norm())
            curve.append((products, error))
            for target in TARGETS:
                if error <= target and target not in reached:
                    kept = products - _prepared(problem, made, info)
                    reached[target] = {"products": products, "kept": kept, "seconds": seconds}
            if len(reached) == len(TARGETS) or not info.solution.result.ok:
                break
        for target in TARGETS:
            price = reached.get(target, {"products": None, "kept": None, "seconds": None})
            row = {"problem": problem.name, "solver": name, "target": target}
            rows.append(row | price)
        rows[-1]["curve"] = curve  # once is enough
    return rows


def _prepared(problem: Problem, made: bilevel.ImplicitProblem, info: Any) -> int:
    """Products that a prepared state saves."""
    if not info.state or info.solution.recyclable:
        return 0
    again = made.implicit_grad(problem.phi, problem.theta, state=info.state, return_info=True)[1]
    return info.solution.stats.products - again.solution.stats.products


def along(problem: Problem, steps: int, pace: float) -> list[dict[str, Any]]:
    """Products of every outer step, for every way to start it and to prepare for it."""
    points = problem.trajectory(steps, pace)
    rows = []
    for rtol in TARGETS:
        for name, way in WAYS.items():
            options: dict[str, Any] = {}
            if way.nystrom:
                options["preconditioner"] = bilevel.NystromPreconditioner(RANK)
            solver = way.solver(rtol=rtol, max_steps=BUDGET, **options)
            made = bilevel.ImplicitProblem(
                problem.outer, problem.inner, solver, on_failure="ignore"
            )
            spend = _by_the_loop if way.loop else _one_by_one
            begin = time.process_time()
            each = spend(made, points, way)
            seconds = time.process_time() - begin
            row = {"problem": problem.name, "pace": pace, "rtol": rtol, "way": name}
            rows.append(row | {"products": sum(each), "seconds": seconds, "each": each})
    return rows


def _one_by_one(
    made: bilevel.ImplicitProblem, points: list[tuple[Tensor, Tensor]], way: Way
) -> list[int]:
    """Products at each point of a trajectory that is given."""
    products, initial, state = [], None, None
    for point in points:
        _, info = made.implicit_grad(*point, initial=initial, state=state, return_info=True)
        products.append(info.solution.stats.products)
        initial = info.adjoint if way.last else None
        state = info.state if way.nystrom else None
    return products


def _by_the_loop(
    made: bilevel.ImplicitProblem, points: list[tuple[Tensor, Tensor]], way: Way
) -> list[int]:
    """The same as ``BilevelOptimizer`` does it, told where to go instead of stepping there."""
    phi, theta = (leaf.clone().requires_grad_() for leaf in points[0])
    loop = bilevel.BilevelOptimizer(
        made,
        torch.optim.SGD([phi], lr=0.0),
        torch.optim.SGD([theta], lr=0.0),
        phi=phi,
        theta=theta,
        inner_steps=0,
        reuse_state=len(points) if way.nystrom else 1,
    )
    products = []
    for point in points:
        with torch.no_grad():
            phi.copy_(point[0])
            theta.copy_(point[1])
        products.append(loop.step().solution.stats.products)
    return products


def main() -> None:
    """Measure, print, save, draw."""
    own: dict[str, dict[str, Any]] = {
        "--problems": {"nargs": "+", "default": [], "help": "names; all of them by default"},
        "--outer-steps": {"type": int, "default": 50, "help": "length of the trajectories"},
        "--paces": {"nargs": "+", "type": float, "default": [1.0, 0.1], "help": "outer step sizes"},
        "--resume": {"action": "store_true", "help": "leave out problems that the JSON file has"},
        "--plots": {"default": "", "help": "folder for the pictures; none are drawn without it"},
    }
    options = arguments("Products and seconds until the hypergradient is right.", 1, own)
    torch.set_num_threads(options.threads[0])
    warnings.simplefilter("ignore")
    results: dict[str, list[dict[str, Any]]] = {
        "problems": [],
        "to_accuracy": [],
        "trajectories": [],
    }
    saved = options.output / "accuracy.json"
    if options.resume and saved.exists():
        results |= json.loads(saved.read_text(encoding="utf-8"))["results"]
    done = [fact["problem"] for fact in results["problems"]]
    for problem in problems(
        (1e4,) if options.quick else CONDITIONS, not options.quick, options.problems, done
    ):
        low, high = problem.extremes()
        fact = {
            "problem": problem.name,
            "parameters": problem.theta.numel(),
            "condition": high / low,
            "outer": problem.steps,
        }
        print(
            f"\n{problem.name}: {fact['parameters']} parameters, condition number "
            f"{fact['condition']:.1e}; trajectory by {problem.steps}",
            flush=True,
        )
        rows = to_accuracy(problem)
        results["to_accuracy"] += rows
        print_to_accuracy(rows)
        for pace in options.paces[:1] if options.quick else options.paces:
            rows = along(problem, 10 if options.quick else options.outer_steps, pace)
            results["trajectories"] += rows
            print_trajectories(rows)
        results["problems"].append(fact)
        save("accuracy", options, results)
    conclusions(results["to_accuracy"], results["trajectories"])
    if options.plots:
        pictures(results, options.plots)


if __name__ == "__main__":
    main()
