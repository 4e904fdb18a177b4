"""Inverse-matrix-vector products: one solver, one file."""

from bilevel.solvers.auto import Auto
from bilevel.solvers.base import Outcome, Solver
from bilevel.solvers.bicgstab import BiCGStab
from bilevel.solvers.cg import CG
from bilevel.solvers.chebyshev import Chebyshev
from bilevel.solvers.exact import Exact
from bilevel.solvers.gmres import GMRES
from bilevel.solvers.minres import MINRES
from bilevel.solvers.neumann import Neumann
from bilevel.solvers.nystrom import Nystrom
from bilevel.solvers.scaled_identity import ScaledIdentity

__all__ = [
    "CG",
    "GMRES",
    "MINRES",
    "Auto",
    "BiCGStab",
    "Chebyshev",
    "Exact",
    "Neumann",
    "Nystrom",
    "Outcome",
    "ScaledIdentity",
    "Solver",
]
