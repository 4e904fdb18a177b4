"""What solves have met of an operator, as a preconditioner of the next: limited-memory BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.errors import InputError
from bilevel.operators import LinearOperator
from bilevel.preconditioners import Preconditioner
from bilevel.solution import State

_PAIRS = 100  # more save few products and cost as much in every step
_ENTRIES = 2**22  # of the directions: 16 MiB in single precision, 32 MiB in double; images the same
_NOISE = 0.01  # of a curvature; what rounding has blurred more than that is left out


@dataclass(frozen=True)
class Recycled(Preconditioner):
    """The BFGS inverse of pairs ``(s, A s)``, the oldest first, and a multiple of I elsewhere.

    It costs no products, and follows an operator that moves: the latest pairs count most. Its state
    is empty until :func:`recycled` has made one, and stays positive definite, as ``s'As`` is 1.

    Reference:
        Morales and Nocedal, Automatic preconditioning by limited memory quasi-Newton updating,
        2000; Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices, 1994, eq. 2.6.
    """

    def init(self, operator: LinearOperator) -> State:
        return {}

    def apply(self, state: State, rows: Tensor) -> Tensor:
        directions, images, level = (state[name] for name in ("directions", "images", "level"))
        upper, gram = state["upper"], state["gram"]
        along, across = (rows @ directions.T).T.to(upper), (rows @ images.T).T.to(upper)
        inner = torch.linalg.solve_triangular(upper, along, upper=True)
        outer = upper.diagonal().unsqueeze(1) * inner + level * (gram @ inner - across)
        outer = torch.linalg.solve_triangular(upper.T, outer, upper=False)
        own = level.to(rows)
        return own * (rows - inner.T.to(rows) @ images) + outer.T.to(rows) @ directions


def check_state(state: State, rows: Tensor) -> None:
    """Refuse a state made from problems of another size or dtype."""
    pairs, double = len(state["directions"]), torch.float64
    wanted = {
        "directions": ((pairs, rows.shape[1]), rows.dtype),
        "images": ((pairs, rows.shape[1]), rows.dtype),
        "upper": ((pairs, pairs), double),
        "gram": ((pairs, pairs), double),
        "level": ((), double),
    }
    for name, kind in wanted.items():
        found = tuple(state[name].shape), state[name].dtype
        if found != kind:
            raise InputError(
                f"state[{name!r}] is {found[1]} of shape {found[0]}; wanted {kind[1]} of shape "
                f"{kind[0]}. Pass the state of a solve of the same size and dtype, or None."
            )


def recycled(
    residuals: Tensor, preconditioned: Tensor, alpha: Tensor, beta: Tensor, last: Tensor, old: State
) -> State:
    """The state with the pairs of a solve by conjugate gradients, and as many as fit of the old.

    Args:
        residuals: those that the steps started from, over the root of ``r'z``: ``[m, n]``.
        preconditioned: z the same, ``[m, n]``.
        alpha: lengths of the steps, ``[m]``, all positive.
        beta: what turned the directions after them, ``[m]``.
        last: the residual after the last step, over the last root of ``r'z``: ``[n]``.
        old: the state that the solve ran with.
    """
    # With z the preconditioned residuals, z'Az is L L' with L bidiagonal (Golub and Van Loan,
    # Matrix computations, section 11.3). So the directions, scaled to s'As = 1, are L^-1 z, and
    # their images are differences of residuals: nothing had to be kept for them.
    lengths = alpha.sqrt().unsqueeze(1)
    directions = preconditioned * lengths
    for index, part in enumerate((beta[:-1] * alpha[1:] / alpha[:-1]).sqrt(), start=1):
        directions[index].addcmul_(part, directions[index - 1])
    after = torch.cat([residuals[1:] * beta[:-1].sqrt().unsqueeze(1), last.unsqueeze(0)])
    images = (residuals - after) / lengths
    directions, images = directions[-_PAIRS:], images[-_PAIRS:]
    # What is left at last, the pairs do not hold: its curvature z'Az / z'z stands for all they do
    # not. The old level is no part of it: over many solves, products of such would drift away.
    curvature = alpha[-1].reciprocal() + (beta[-2] / alpha[-2] if len(alpha) > 1 else 0.0)
    level = preconditioned[-1].double().square().sum() / curvature.double()

    squares, sizes = directions.square().sum(1), images.square().sum(1)
    clear = squares * sizes.max() < _NOISE / torch.finfo(directions.dtype).eps
    return _joined(directions[clear], images[clear], level, old)


def _joined(directions: Tensor, images: Tensor, level: Tensor, old: State) -> State:
    upper, gram = (directions @ images.T).double().triu(), (images @ images.T).double()
    if old:
        corner = (old["directions"] @ images.T).double()
        side = (old["images"] @ images.T).double()
        below = torch.zeros_like(corner.T)
        upper = torch.cat([torch.cat([old["upper"], corner], 1), torch.cat([below, upper], 1)])
        gram = torch.cat([torch.cat([old["gram"], side], 1), torch.cat([side.T, gram], 1)])
        directions = torch.cat([old["directions"], directions])
        images = torch.cat([old["images"], images])
    kept = -min(_PAIRS, max(1, _ENTRIES // directions.shape[1]))
    return {
        "directions": directions[kept:].clone(),
        "images": images[kept:].clone(),
        "upper": upper[kept:, kept:].clone(),
        "gram": gram[kept:, kept:].clone(),
        "level": level,
    }
