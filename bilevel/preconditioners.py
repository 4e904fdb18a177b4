"""Preconditioners: cheap approximate inverses that make CG and its kin need fewer steps."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._checks import check_count
from bilevel._spectrum import low_rank
from bilevel.errors import InputError
from bilevel.operators import LinearOperator
from bilevel.solution import State


class Preconditioner(abc.ABC):
    """An approximate inverse: ``init`` once per operator, ``apply`` in every step."""

    @abc.abstractmethod
    def init(self, operator: LinearOperator) -> State:
        """Prepare for an operator; the result can be used again for operators near it."""

    @abc.abstractmethod
    def apply(self, state: State, rows: Tensor) -> Tensor:
        """``M^-1 r`` for every row r of ``[k, n]``."""


PreconditionerLike = Preconditioner | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """Divide by the diagonal.

    Args:
        probes: None (default) takes the exact diagonal by n products; a number estimates it by
            that many products with random signs (Hutchinson). Absolute values are used, floored
            at 1e-6 of the largest, so that M stays positive definite.
        seed: of the random signs.

    Reference:
        Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, 2007.

    Example:
        >>> import bilevel, torch
        >>> A = bilevel.Diagonal(torch.tensor([1.0, 100.0]))
        >>> s = bilevel.solve(A, torch.ones(2), bilevel.CG(preconditioner=Jacobi()))
        >>> s.stats.iterations
        1
    """

    probes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes is not None:
            check_count("Jacobi", "probes", self.probes)

    def init(self, operator: LinearOperator) -> State:
        diagonal = operator.diagonal() if self.probes is None else self._estimate(operator)
        diagonal = diagonal.abs()
        floor = 1e-6 * diagonal.amax(-1, keepdim=True)
        return {"diagonal": torch.maximum(diagonal, torch.where(floor > 0, floor, 1.0))}

    def _estimate(self, operator: LinearOperator) -> Tensor:
        assert self.probes is not None
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros((), dtype=operator.dtype, device=operator.device)
        for _ in range(self.probes):
            signs = torch.randint(
                0, 2, (operator.batch or 1, operator.size), generator=generator, device="cpu"
            )
            signs = (2 * signs - 1).to(operator.dtype).to(operator.device)
            total = total + signs * operator.rows(signs)
        mean = total / self.probes
        return mean if operator.batch else mean.squeeze(0)

    def apply(self, state: State, rows: Tensor) -> Tensor:
        return rows / state["diagonal"]


@dataclass(frozen=True)
class NystromPreconditioner(Preconditioner):
    """The randomized Nystrom preconditioner: the leading eigenvalues flattened to one level.

    ``M^-1 = l U diag(1 / eigenvalues) U' + (I - U U')`` with l the smallest eigenvalue kept.

    Args:
        rank: eigenvalues to keep, one product each (default 20).
        seed: of the random test matrix.

    Reference:
        Frangella, Tropp and Udell, Randomized Nystrom preconditioning, 2021, equation 1.3.
    """

    rank: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("NystromPreconditioner", "rank", self.rank)

    def init(self, operator: LinearOperator) -> State:
        if not operator.symmetric:
            raise InputError("NystromPreconditioner needs a symmetric operator.")
        approximation = low_rank(operator, self.rank, self.seed)
        values = approximation.eigenvalues
        return {"basis": approximation.basis, "relative": values / values[-1:]}

    def apply(self, state: State, rows: Tensor) -> Tensor:
        relative = state["relative"]
        return low_rank_inverse(state["basis"], relative, relative.new_ones(()), rows)


def low_rank_inverse(basis: Tensor, values: Tensor, rest: Tensor, rows: Tensor) -> Tensor:
    """``(U diag(values) U' + rest (I - U U'))^-1`` on rows ``[k, n]``; a rest of 0 inverts to 0."""
    wide = rows.to(basis.dtype)
    inside = wide @ basis
    outside = (wide - inside @ basis.T) * torch.where(rest > 0, 1 / rest, 0.0)
    return (outside + (inside / values) @ basis.T).to(rows.dtype)


def prepare(preconditioner: PreconditionerLike | None, operator: LinearOperator) -> State:
    """The state of a preconditioner; empty for none and for a plain function."""
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.init(operator)
    if preconditioner is not None and (
        isinstance(preconditioner, type) or not callable(preconditioner)
    ):
        raise InputError(
            f"preconditioner is {preconditioner!r}; wanted an object such as bilevel.Jacobi(), or "
            "a function of a vector [n]."
        )
    return {}


def precondition(preconditioner: PreconditionerLike | None, state: State, rows: Tensor) -> Tensor:
    """Apply whatever was given: nothing, a :class:`Preconditioner`, or a function on ``[n]``."""
    if preconditioner is None:
        return rows
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.apply(state, rows)
    applied = torch.stack([preconditioner(row.clone()) for row in rows])
    if applied.shape != rows.shape or applied.dtype != rows.dtype:
        raise InputError(
            f"the preconditioner returned {applied.dtype} of shape {tuple(applied.shape[1:])}; "
            f"wanted {rows.dtype} of shape {tuple(rows.shape[1:])}."
        )
    return applied
