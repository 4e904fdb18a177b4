"""Cost against accuracy of every solver, for the adjoint of two inner problems.

The error is that of the adjoint against a dense factorization; products are counted by the library.

    python benchmarks/solvers.py
    python benchmarks/solvers.py --device cuda
"""

from __future__ import annotations

from typing import Any

import torch
from _harness import arguments, interleave, milliseconds, print_table, save
from _problems import Problem, logistic, mlp

import bilevel


def solvers(floor: float) -> dict[str, bilevel.Solver]:
    """What is compared; ``floor`` is the curvature that the penalty adds everywhere."""
    return {
        "Auto()": bilevel.Auto(),
        "Exact()": bilevel.Exact(),
        "CG(rtol=1e-2)": bilevel.CG(rtol=1e-2),
        "CG(rtol=1e-5)": bilevel.CG(rtol=1e-5),
        "CG(rtol=1e-9)": bilevel.CG(rtol=1e-9),
        "CG(rtol=1e-9), Jacobi()": bilevel.CG(rtol=1e-9, preconditioner=bilevel.Jacobi()),
        "CG(rtol=1e-9), Nystrom rank 50": bilevel.CG(
            rtol=1e-9, preconditioner=bilevel.NystromPreconditioner(rank=50)
        ),
        "MINRES(rtol=1e-9)": bilevel.MINRES(rtol=1e-9),
        "GMRES(rtol=1e-9)": bilevel.GMRES(rtol=1e-9),
        "BiCGStab(rtol=1e-9)": bilevel.BiCGStab(rtol=1e-9),
        "Chebyshev(rtol=1e-5)": bilevel.Chebyshev(rtol=1e-5),
        "Neumann(20)": bilevel.Neumann(20),
        "Neumann(200)": bilevel.Neumann(200),
        "Nystrom(rank=200, rho=penalty)": bilevel.Nystrom(rank=200, rho=floor),
        "ScaledIdentity(1.0)": bilevel.ScaledIdentity(1.0),
    }


def measure(problem: Problem, repeats: int, device: str) -> list[dict[str, Any]]:
    """Every solver on the Hessian of one problem, at its minimum."""
    made = bilevel.ImplicitProblem(problem.outer, problem.inner)
    theta = made.refine(problem.phi, problem.theta, tolerance=1e-8)
    operator = made.operator(problem.phi, theta)
    slope = torch.func.grad(problem.outer, argnums=1)(problem.phi, theta)
    b = torch.cat([leaf.flatten() for leaf in slope.values()])
    exact = torch.linalg.solve(operator.to_dense(), b)

    def solve(solver: bilevel.Solver) -> bilevel.Solution:
        return bilevel.solve(operator, b, solver, on_failure="ignore")

    chosen = solvers(2.0 * min(leaf.exp().item() for leaf in problem.phi.values()))
    seconds = interleave(
        {name: lambda solver=solver: solve(solver) for name, solver in chosen.items()},
        repeats,
        device,
    )
    rows = []
    for name, solver in chosen.items():
        solution = solve(solver)
        rows.append(
            {
                "problem": problem.name,
                "solver": name,
                "result": solution.result.name,
                "products": solution.stats.products,
                "relative_residual": solution.stats.relative_residual,
                "relative_error": ((solution.value - exact).norm() / exact.norm()).item(),
                "milliseconds": milliseconds(seconds[name]),
            }
        )
    return rows


def main() -> None:
    """Time, print, save."""
    options = arguments("Compare the solvers' cost and accuracy.", repeats=5)
    torch.set_num_threads(options.threads[0])
    network = mlp(
        "MLP, 1 002 parameters", (20, 32, 10), 64, options.device, torch.float64, log_penalty=-4.0
    )
    results = []
    for problem in (logistic(options.device), network):
        rows = measure(problem, options.repeats, options.device)
        print_table(
            problem.name,
            ["solver", "result", "products", "residual", "error", "ms"],
            [
                [
                    row["solver"],
                    row["result"],
                    str(row["products"]),
                    f"{row['relative_residual']:.0e}",
                    f"{row['relative_error']:.0e}",
                    f"{row['milliseconds']:.1f}",
                ]
                for row in rows
            ],
        )
        results += rows
    save("solvers", options, results)


if __name__ == "__main__":
    main()
