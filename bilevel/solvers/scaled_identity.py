"""The inverse taken to be a multiple of the identity."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bilevel._checks import check_positive
from bilevel.operators import LinearOperator
from bilevel.solution import State
from bilevel.solvers.base import Outcome, Solver


@dataclass(frozen=True)
class ScaledIdentity(Solver):
    """``A^-1 ~ scale * I``: no product with A at all.

    With ``scale`` the inner learning rate this is the "one step" (T1-T2) approximation, the first
    term of the Neumann series. Its residual is still computed, by one product, and reported.

    Args:
        scale: finite and above 0 (default 1).

    Reference:
        Luketina, Berglund, Greff and Raiko, Scalable gradient-based tuning of continuous
        regularization hyperparameters, 2016.

    Example:
        >>> import bilevel, torch
        >>> bilevel.solve(bilevel.Identity(2), torch.ones(2), ScaledIdentity(0.1)).value
        tensor([0.1000, 0.1000])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("ScaledIdentity", "scale", self.scale)

    def compute(
        self, operator: LinearOperator, rhs: Tensor, target: Tensor, state: State
    ) -> Outcome:
        return Outcome.after(self.scale * rhs, steps=1)
