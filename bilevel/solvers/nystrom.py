"""The Nystrom inverse: low rank plus a multiple of the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._spectrum import low_rank
from bilevel.errors import InputError
from bilevel.operators import LinearOperator
from bilevel.preconditioners import low_rank_inverse
from bilevel.solution import State
from bilevel.solvers.base import NEGATIVE, Outcome, Solver, check_count


@dataclass(frozen=True)
class Nystrom(Solver):
    """Invert ``U diag(eigenvalues) U' + rho (I - U U')``, a randomized picture of A.

    All products are made at once, before the solve, and the picture can be used again. Exact when
    ``rank >= n``; otherwise as good as A is close to low rank plus a multiple of the identity,
    which a damped Hessian often is. Semidefinite operators only.

    Args:
        rank: eigenvalues to keep, one product each.
        rho: what stands for the eigenvalues left out; None (default) takes the smallest one kept.
            With a damping above most of the spectrum, the damping is the natural choice.
        seed: of the random test matrix (a generator of its own).

    Reference:
        Hataya and Yamada, Nystrom method for accurate and scalable implicit differentiation, 2023;
        Frangella, Tropp and Udell, Randomized Nystrom preconditioning, 2021.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Diagonal(torch.tensor([4.0, 1.0], dtype=torch.float64))
        >>> bilevel.solve(A, torch.ones(2, dtype=torch.float64), Nystrom(rank=2)).value
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """

    rank: int
    rho: float | None = None
    seed: int = 0

    needs_symmetric = True

    def __post_init__(self) -> None:
        check_count("Nystrom", "rank", self.rank)
        if self.rho is not None and not 0.0 < self.rho < math.inf:
            raise InputError(f"Nystrom: rho must be finite and above 0, found {self.rho}.")

    def init(self, operator: LinearOperator) -> State:
        basis, values, smallest = low_rank(operator, self.rank, self.seed)
        return {"basis": basis, "eigenvalues": values, "smallest": smallest}

    def compute(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        target: Tensor,
        state: State,
    ) -> Outcome:
        values, smallest = state["eigenvalues"], state["smallest"]
        if values.numel() == 0:
            value = rhs / self.rho if self.rho else torch.zeros_like(rhs)
        else:
            rest = values[-1] if self.rho is None else self.rho
            value = low_rank_inverse(state["basis"], values, rest, rhs)
        noise = 1e3 * torch.finfo(rhs.dtype).eps * (values[0] if values.numel() else 1.0)
        flag = torch.where(smallest < -noise, NEGATIVE, 0).expand(rhs.shape[0])
        iterations = torch.ones_like(flag)
        return Outcome(value, iterations, flag, smallest.expand(rhs.shape[0]))
