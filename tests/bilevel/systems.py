"""Solvers by name, linear systems to try them on, and what is known about both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import bilevel
from tests.bilevel.problems import Problem

F64 = torch.float64
TIGHT = 1e-13


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def diagonal(*numbers: float) -> bilevel.LinearOperator:
    return bilevel.Diagonal(vector(*numbers))


class Counting:
    """An operator given by a function that counts its calls."""

    def __init__(self, matrix: Tensor, symmetric: bool = True) -> None:
        self.calls = 0
        self.matrix = matrix
        self.operator = bilevel.FunctionOperator(
            self._multiply, matrix.shape[0], symmetric=symmetric, dtype=matrix.dtype
        )

    def _multiply(self, v: Tensor) -> Tensor:
        self.calls += 1
        return self.matrix @ v


SYMMETRIC: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=TIGHT),
    "CG Jacobi": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "CG Jacobi probed": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.Jacobi(probes=3)),
    "CG Nystrom": bilevel.CG(rtol=TIGHT, preconditioner=bilevel.NystromPreconditioner(4)),
    "CG callable": bilevel.CG(rtol=TIGHT, preconditioner=lambda r: 3 * r),
    "MINRES": bilevel.MINRES(rtol=TIGHT),
    "MINRES Jacobi": bilevel.MINRES(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "Chebyshev": bilevel.Chebyshev(rtol=TIGHT),
    "Chebyshev bounds": bilevel.Chebyshev(rtol=TIGHT, lower=1.0, upper=8.0),
    "Neumann": bilevel.Neumann(terms=2000, rtol=TIGHT),
    "Nystrom": bilevel.Nystrom(rank=40),
}
GENERAL: dict[str, bilevel.Solver] = {
    "Exact": bilevel.Exact(),
    "GMRES": bilevel.GMRES(rtol=TIGHT),
    "GMRES restarted": bilevel.GMRES(rtol=TIGHT, restart=8, max_steps=400),
    "GMRES Jacobi": bilevel.GMRES(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "BiCGStab": bilevel.BiCGStab(rtol=TIGHT),
    "BiCGStab Jacobi": bilevel.BiCGStab(rtol=TIGHT, preconditioner=bilevel.Jacobi()),
    "Neumann fixed step": bilevel.Neumann(terms=2000, step=0.2, rtol=TIGHT),
    "Auto": bilevel.Auto(rtol=TIGHT),
}
ALL = SYMMETRIC | GENERAL
ITERATIVE = {name: s for name, s in ALL.items() if name not in ("Exact", "Auto", "Nystrom")}


def krylov(A: Tensor, b: Tensor, steps: int) -> Tensor:
    """An orthonormal basis of the Krylov space, ``[n, steps]``."""
    basis = [b / b.norm()]
    for _ in range(steps - 1):
        w = A @ basis[-1]
        for _ in range(2):
            for v in basis:
                w = w - (v @ w) * v
        basis.append(w / w.norm())
    return torch.stack(basis, dim=1)


def _weigh(row: Tensor) -> Tensor:
    """A positive definite preconditioner of the user's own."""
    return row * torch.linspace(1.0, 2.0, row.numel(), dtype=row.dtype)


def solvers(problem: Problem, rtol: float = TIGHT) -> dict[str, bilevel.Solver]:
    """Every solver that fits a problem, by the name it has in test ids."""
    n = problem.theta.numel() if isinstance(problem.theta, Tensor) else problem.matrix.shape[0]
    found: dict[str, bilevel.Solver] = {
        "Auto": bilevel.Auto(rtol=rtol),
        "Exact": bilevel.Exact(),
        "GMRES": bilevel.GMRES(rtol=rtol),
        "GMRES restarted": bilevel.GMRES(rtol=rtol, restart=3, max_steps=2000),
        "GMRES preconditioned": bilevel.GMRES(rtol=rtol, preconditioner=_weigh),
        "BiCGStab": bilevel.BiCGStab(rtol=rtol),
    }
    if problem.symmetric:
        found["MINRES"] = bilevel.MINRES(rtol=rtol)
        found["MINRES preconditioned"] = bilevel.MINRES(rtol=rtol, preconditioner=_weigh)
    if problem.definite:
        largest = float(torch.linalg.eigvalsh(problem.matrix)[-1])
        found |= {
            "CG": bilevel.CG(rtol=rtol),
            "CG Jacobi": bilevel.CG(rtol=rtol, preconditioner=bilevel.Jacobi()),
            "CG Jacobi probed": bilevel.CG(rtol=rtol, preconditioner=bilevel.Jacobi(probes=4)),
            "CG Nystrom": bilevel.CG(rtol=rtol, preconditioner=bilevel.NystromPreconditioner(2)),
            "CG callable": bilevel.CG(rtol=rtol, preconditioner=_weigh),
            "Chebyshev": bilevel.Chebyshev(rtol=rtol),
            "Neumann": bilevel.Neumann(terms=4000, rtol=rtol),
            "Neumann fixed step": bilevel.Neumann(terms=4000, step=1.5 / largest, rtol=rtol),
            "Nystrom": bilevel.Nystrom(rank=n),
        }
    if problem.kind == "fixed_point":
        found["Neumann"] = bilevel.Neumann(terms=4000, step=1.0, rtol=rtol)
    return found


def cases(problems: list[Problem]) -> Iterator[tuple[Problem, str, bilevel.Solver]]:
    """Every problem with every solver that fits it."""
    for problem in problems:
        for name, solver in solvers(problem).items():
            yield problem, name, solver
