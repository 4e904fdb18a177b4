"""Products until the hypergradient is right: ill-conditioned quadratics of a decaying spectrum.

    python -m benchmarks accuracy

``inner = t'At/2 - t'p`` with eigenvalues from 1 down to ``1 / condition``, most of them near the
small end (as of a trained network with a penalty), ``outer = ||t - goal||^2 / 2``. For every solver
the loosest tolerance is looked for whose hypergradient is within 1e-3 and 1e-6 of the exact one.
Then 50 outer steps on a moving phi, from zero and from the last adjoint, and with a preconditioner
that is made once and kept.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from _harness import arguments, print_table, save
from torch import Tensor

import bilevel

SIZE, LEADING = 400, 40
CONDITIONS = (1e2, 1e4, 1e6)
TARGETS = (1e-3, 1e-6)
TOLERANCES = [10.0 ** (-k / 2) for k in range(1, 27)]


def matrix(condition: float) -> Tensor:
    """Symmetric, ``[n, n]``: a decaying head, and a flat tail at ``1 / condition``."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
    steps = torch.arange(SIZE, dtype=torch.float64) / LEADING
    values = torch.clamp(10.0 ** (-steps * 3), min=0.0) + 1.0 / condition
    return (basis * (values / values.max())) @ basis.T


def solvers(rtol: float) -> dict[str, bilevel.Solver]:
    """What is compared, at a tolerance."""
    nystrom = bilevel.NystromPreconditioner(rank=2 * LEADING)
    options: dict[str, Any] = {"rtol": rtol, "max_steps": 4 * SIZE}
    return {
        "Auto": bilevel.Auto(**options),
        "CG": bilevel.CG(**options),
        "CG, Jacobi of 20 probes": bilevel.CG(**options, preconditioner=bilevel.Jacobi(probes=20)),
        "CG, Nystrom of rank 80": bilevel.CG(**options, preconditioner=nystrom),
        "MINRES": bilevel.MINRES(**options),
        "GMRES": bilevel.GMRES(**options),
        "BiCGStab": bilevel.BiCGStab(**options),
        "Neumann": bilevel.Neumann(4 * SIZE, rtol=rtol),
    }


def to_accuracy(condition: float) -> list[dict[str, Any]]:
    """Products of every solver until each target."""
    A, goal = matrix(condition), torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    phi = torch.linspace(0, 1, SIZE, dtype=torch.float64).cos()
    theta = torch.linalg.solve(A, phi)
    exact = torch.linalg.solve(A, theta - goal)
    rows = []
    for name in solvers(0.1):
        for target in TARGETS:
            row = {"condition": condition, "solver": name, "target": target, "products": None}
            for rtol in TOLERANCES:
                found, info = bilevel.implicit_grad(
                    lambda p, t: ((t - goal) ** 2).sum() / 2,
                    lambda p, t: t @ A @ t / 2 - t @ p,
                    phi,
                    theta,
                    solver=solvers(rtol)[name],
                    on_failure="ignore",
                    return_info=True,
                )
                if (found - exact).norm() <= target * exact.norm():
                    stats = info.solution.stats
                    prepared = 80 if "Nystrom" in name else 20 if "Jacobi" in name else 0
                    row |= {"products": stats.products, "prepared": prepared}
                    break
            rows.append(row)
    return rows


def along(condition: float) -> list[dict[str, Any]]:
    """Products of 50 outer steps, each to a residual of 1e-6."""
    A, goal = matrix(condition), torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    rows = []
    for warm in (False, True):
        for kept in (False, True):
            preconditioner = bilevel.NystromPreconditioner(rank=2 * LEADING) if kept else None
            problem = bilevel.ImplicitProblem(
                lambda p, t: ((t - goal) ** 2).sum() / 2,
                lambda p, t: t @ A @ t / 2 - t @ p,
                bilevel.CG(rtol=1e-6, max_steps=4 * SIZE, preconditioner=preconditioner),
            )
            phi, products = A @ torch.ones(SIZE, dtype=torch.float64), 0
            initial, state = None, None
            for _ in range(50):
                theta = torch.linalg.solve(A, phi)
                slope, info = problem.implicit_grad(
                    phi, theta, initial=initial, state=state, return_info=True
                )
                phi = phi - 0.5 / condition**2 * slope  # a quarter of what is stable
                products += info.solution.stats.products
                initial = info.adjoint if warm else None
                state = info.state if kept else None
            rows.append({"condition": condition, "warm": warm, "kept": kept, "products": products})
    return rows


def main() -> None:
    """Count, print, save."""
    own = {"--conditions": {"nargs": "+", "type": float, "default": list(CONDITIONS)}}
    options = arguments("Products until the hypergradient is right.", 1, own)
    torch.set_num_threads(options.threads[0])
    warnings.simplefilter("ignore")
    conditions = options.conditions[:1] if options.quick else options.conditions
    counted = [row for condition in conditions for row in to_accuracy(condition)]
    print_table(
        "Products until the hypergradient is within the target (to prepare: included)",
        ["solver", "condition", "target", "products", "to prepare"],
        [
            [
                row["solver"],
                f"{row['condition']:.0e}",
                f"{row['target']:.0e}",
                str(row["products"] or "not reached"),
                str(row.get("prepared", "-")),
            ]
            for row in counted
        ],
    )
    trajectories = [row for condition in conditions for row in along(condition)]
    print_table(
        "Products of 50 outer steps by CG to a residual of 1e-6",
        ["start", "Nystrom kept", "condition", "products"],
        [
            [
                "last adjoint" if row["warm"] else "zero",
                "yes" if row["kept"] else "no",
                f"{row['condition']:.0e}",
                str(row["products"]),
            ]
            for row in trajectories
        ],
    )
    save("accuracy", options, {"to_accuracy": counted, "trajectories": trajectories})


if __name__ == "__main__":
    main()
