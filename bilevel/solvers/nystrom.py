"""The Nystrom inverse: low rank plus a multiple of the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._checks import check_positive
from bilevel._spectrum import low_rank
from bilevel.operators import LinearOperator
from bilevel.preconditioners import low_rank_inverse
from bilevel.solution import State
from bilevel.solvers.base import NEGATIVE, OK, SINGULAR, Outcome, Solver, check_count


@dataclass(frozen=True)
class Nystrom(Solver):
    """Invert ``U diag(eigenvalues) U' + rho (I - U U')``, a randomized approximation of A.

    All products are made at once, before the solve, and can be used again. Exact when
    ``rank >= n``, and where A is of a lower rank than ``rank`` plus a multiple of the identity;
    otherwise as good as it is close to that, which a damped Hessian often is. Semidefinite
    operators only.

    Args:
        rank: eigenvalues to keep, one product each.
        rho: what stands for the eigenvalues left out; None (default) takes the smallest curvature
            met. Where A is a semidefinite matrix plus damping, the damping is the natural choice.
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
        if self.rho is not None:
            check_positive("Nystrom", "rho", self.rho)

    def init(self, operator: LinearOperator) -> State:
        return vars(low_rank(operator, self.rank, self.seed, self.rho)).copy()

    def compute(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        target: Tensor,
        state: State,
    ) -> Outcome:
        values, rest, smallest = state["eigenvalues"], state["rest"], state["smallest"]
        value = low_rank_inverse(state["basis"], values, rest, rhs)
        noise = 1e3 * torch.finfo(rhs.dtype).eps * (values[0] if values.numel() else 1.0)
        flag = torch.where(smallest < -noise, NEGATIVE, torch.where(rest == 0, SINGULAR, OK))
        flag = flag.expand(rhs.shape[0])
        return Outcome(
            value, torch.ones_like(flag), flag, smallest.to(rhs.dtype).expand(rhs.shape[0])
        )
