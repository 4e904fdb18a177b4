"""Implicit differentiation and bilevel optimization in PyTorch."""

from bilevel._verdict import GradientCheck
from bilevel.check import check_gradient
from bilevel.curvature import GaussNewton, hessian, jacobian
from bilevel.custom import custom_argmin, custom_fixed_point, custom_root
from bilevel.errors import (
    BilevelError,
    CompileWarning,
    ConvergenceWarning,
    CurvatureWarning,
    InputError,
    NonFiniteError,
    ProductWarning,
    SolveError,
    TransformError,
)
from bilevel.hypergradient import implicit_grad
from bilevel.implicit import argmin, fixed_point, root
from bilevel.implicit_linear import linear_solve
from bilevel.interop import from_scipy
from bilevel.linear import solve
from bilevel.matrices import Diagonal, FunctionOperator, Identity, Matrix
from bilevel.operators import LinearOperator
from bilevel.optimizer import BilevelOptimizer
from bilevel.preconditioners import Jacobi, NystromPreconditioner, Preconditioner
from bilevel.problem import ImplicitProblem
from bilevel.report import HypergradientInfo
from bilevel.solution import ColumnStats, Result, Solution, Stats
from bilevel.solvers import (
    CG,
    GMRES,
    MINRES,
    Auto,
    BiCGStab,
    Chebyshev,
    Exact,
    Neumann,
    Nystrom,
    Outcome,
    ScaledIdentity,
    Solver,
)

__version__ = "0.1.0"

__all__ = [
    "CG",
    "GMRES",
    "MINRES",
    "Auto",
    "BiCGStab",
    "BilevelError",
    "BilevelOptimizer",
    "Chebyshev",
    "ColumnStats",
    "CompileWarning",
    "ConvergenceWarning",
    "CurvatureWarning",
    "Diagonal",
    "Exact",
    "FunctionOperator",
    "GaussNewton",
    "GradientCheck",
    "HypergradientInfo",
    "Identity",
    "ImplicitProblem",
    "InputError",
    "Jacobi",
    "LinearOperator",
    "Matrix",
    "Neumann",
    "NonFiniteError",
    "Nystrom",
    "NystromPreconditioner",
    "Outcome",
    "Preconditioner",
    "ProductWarning",
    "Result",
    "ScaledIdentity",
    "Solution",
    "SolveError",
    "Solver",
    "Stats",
    "TransformError",
    "argmin",
    "check_gradient",
    "custom_argmin",
    "custom_fixed_point",
    "custom_root",
    "fixed_point",
    "from_scipy",
    "hessian",
    "implicit_grad",
    "jacobian",
    "linear_solve",
    "root",
    "solve",
]
