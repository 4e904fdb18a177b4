"""A dense factorization, for operators small enough to write down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import zero_below_rounding
from bilevel.errors import InputError
from bilevel.operators import LinearOperator, finite
from bilevel.solution import State
from bilevel.solvers.base import SINGULAR, Outcome, Solver, check_count, resolve_rtol


@dataclass(frozen=True)
class Exact(Solver):
    """Build the matrix by n products and factor it: Cholesky when it is positive definite, else LU.

    Indefinite and non-symmetric operators are solved just as well; a singular one gets the
    least-norm solution, and says so unless b lies in its range. The factorization can be used again
    (``state=``): on an operator that has moved since, the residual tells how far.

    Args:
        max_size: largest n to factor (default 4096: 128 MiB in float64, some seconds).

    Raises:
        InputError: n is above ``max_size``.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Matrix(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        >>> bilevel.solve(A, torch.tensor([1.0, 4.0]), Exact()).value
        tensor([2., 1.])
    """

    max_size: int = 4096

    def __post_init__(self) -> None:
        check_count("Exact", "max_size", self.max_size)

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        return resolve_rtol("auto", dtype), 0.0

    def init(self, operator: LinearOperator) -> State:
        n = operator.size
        if n > self.max_size:
            gib = n * n * torch.finfo(operator.dtype).bits / 8 / 2**30
            raise InputError(
                f"Exact: the operator is {n} x {n}, {gib:.3g} GiB as a matrix and {n} products to "
                f"build; max_size is {self.max_size}. Use CG, or raise max_size."
            )
        matrix = finite(operator.to_dense())
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()  # there are no half-precision factorizations
        if operator.symmetric:
            matrix = (matrix + matrix.mT) / 2
            factor, info = torch.linalg.cholesky_ex(matrix)
            pivots = factor.diagonal(dim1=-2, dim2=-1).square()
            if not bool(info.any()) and _well_posed(pivots):
                return {"cholesky": factor}
        state: State = {}
        if operator.symmetric:
            values = torch.linalg.eigvalsh(matrix)
            size = values.abs().amax(-1)
            noise = n * torch.finfo(matrix.dtype).eps
            state["smallest"] = zero_below_rounding(values[..., 0], size, noise)
        factor, pivots, info = torch.linalg.lu_factor_ex(matrix)
        if bool(info.any()) or not _well_posed(factor.diagonal(dim1=-2, dim2=-1).abs()):
            return {**state, "pseudoinverse": torch.linalg.pinv(matrix)}
        return {**state, "lu": factor, "pivots": pivots}

    def compute(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        target: Tensor,
        state: State,
    ) -> Outcome:
        # Columns of one matrix, or one column for each matrix of a batch.
        columns = rhs.unsqueeze(-1) if operator.batch else rhs.T
        flag = torch.zeros(rhs.shape[0], dtype=torch.int64, device=rhs.device)
        if "cholesky" in state:
            factor = state["cholesky"]
            value = torch.cholesky_solve(columns.to(factor.dtype), factor)
        elif "lu" in state:
            factor = state["lu"]
            value = torch.linalg.lu_solve(factor, state["pivots"], columns.to(factor.dtype))
        else:
            factor = state["pseudoinverse"]
            value = factor @ columns.to(factor.dtype)
            flag = flag + SINGULAR
        value = (value.squeeze(-1) if operator.batch else value.T).to(rhs.dtype).contiguous()
        smallest = state.get("smallest")
        if smallest is None:
            curvature = torch.full_like(flag, math.inf, dtype=rhs.dtype)
        else:
            curvature = smallest.to(rhs.dtype).expand(rhs.shape[0])
        return Outcome(value, torch.ones_like(flag), flag, curvature)


def _well_posed(pivots: Tensor) -> bool:
    """Whether the pivots stand clear of rounding; a matrix singular to rounding fails."""
    floor = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
    return bool((pivots.amin(-1) > floor * pivots.amax(-1)).all())
