"""The problems of ``accuracy``: made ones of known condition, and real ones.

Each has an inner Hessian that is positive definite, and its exact hypergradient in double
precision. The penalties of the real problems are about those that do best on their validation set.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear

import bilevel

DOUBLE = torch.float64
SIZE, LEADING = 400, 40
CONDITIONS = (1e2, 1e4, 1e6)


@dataclass(frozen=True)
class Problem:
    """Two objectives, where phi starts, and how theta is found and phi is moved.

    Attributes:
        name: what tables and pictures call it.
        outer: of flat phi and theta.
        inner: of flat phi and theta.
        phi: where the trajectory starts, and the single solves are made.
        theta: near the inner solution there.
        minimise: ``(phi, theta before) -> theta``, the inner solution to rounding.
        optimizer: ``(leaves, pace) ->`` the outer one; a pace of 1 is a usual step size.
        steps: what it is at that pace, in words.
    """

    name: str
    outer: Callable[[Tensor, Tensor], Tensor]
    inner: Callable[[Tensor, Tensor], Tensor]
    phi: Tensor
    theta: Tensor
    minimise: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[list[Tensor], float], torch.optim.Optimizer]
    steps: str

    def slope(self, phi: Tensor, theta: Tensor) -> Tensor:
        """The right-hand side of the adjoint system."""
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.outer(phi, theta), theta)[0]

    def hypergradient(self, phi: Tensor, theta: Tensor) -> Tensor:
        """As exact as double precision gives it."""
        solver = bilevel.Auto(rtol=1e-13, max_steps=5000)
        return bilevel.implicit_grad(
            self.outer, self.inner, phi, theta, solver=solver, on_failure="ignore"
        )

    def trajectory(self, steps: int, pace: float) -> list[tuple[Tensor, Tensor]]:
        """Phi and the inner solution at every outer step, made by exact hypergradients."""
        phi, theta = self.phi.clone(), self.theta
        optimizer = self.optimizer([phi], pace)
        points = []
        for _ in range(steps):
            theta = self.minimise(phi, theta)
            points.append((phi.clone(), theta))
            phi.grad = self.hypergradient(phi, theta)
            optimizer.step()
        return points

    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of the inner Hessian at the start."""
        operator = bilevel.ImplicitProblem(self.outer, self.inner).operator(self.phi, self.theta)
        if operator.size <= 2000:
            values = torch.linalg.eigvalsh(operator.to_dense())
            return float(values[0]), float(values[-1])
        solver = bilevel.Auto(rtol=1e-13, max_steps=5000)
        b = self.slope(self.phi, self.theta)
        ritz = bilevel.solve(operator, b, solver, on_failure="ignore").stats.ritz
        assert ritz is not None
        return ritz


def problems(
    conditions: Sequence[float], real: bool, names: Sequence[str], done: Sequence[str]
) -> Iterator[Problem]:
    """Those named (all, of none) that are not done; one without its data is left out, aloud."""
    makers: dict[str, Callable[[], Problem]] = {
        f"quadratic, condition {condition:.0e}": functools.partial(quadratic, condition)
        for condition in conditions
    }
    if real:
        makers |= {
            "logistic, digits": digits,
            "network, digits": network,
            "logistic, rcv1sub": rcv1,
        }
    for name, make in makers.items():
        if name in done or (names and name not in names):
            continue
        if make is rcv1 and not os.environ.get("STRUCTURED_DATA"):
            print(f"\n{name} is left out: STRUCTURED_DATA names no folder that holds rcv1sub")
            continue
        yield make()


def matrix(condition: float) -> Tensor:
    """Symmetric, ``[n, n]``: a decaying head, and a flat tail at ``1 / condition``."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=DOUBLE)).Q
    steps = torch.arange(SIZE, dtype=DOUBLE) / LEADING
    values = 10.0 ** (-steps * 3) + 1.0 / condition
    return (basis * (values / values.max())) @ basis.T


def quadratic(condition: float) -> Problem:
    """``t'At/2 - t'p`` with a decaying spectrum, and the distance to a goal."""
    A, goal = matrix(condition), torch.linspace(-1, 1, SIZE, dtype=DOUBLE)
    phi = A @ torch.ones(SIZE, dtype=DOUBLE)

    def minimise(phi: Tensor, theta: Tensor) -> Tensor:
        return torch.linalg.solve(A, phi)

    # The outer Hessian is A^-2: a quarter of the largest step that is stable.
    rate = 0.5 / condition**2
    return Problem(
        f"quadratic, condition {condition:.0e}",
        lambda p, t: ((t - goal) ** 2).sum() / 2,
        lambda p, t: t @ A @ t / 2 - t @ p,
        phi,
        minimise(phi, phi),
        minimise,
        lambda leaves, pace: torch.optim.SGD(leaves, lr=pace * rate),
        "gradient descent, a quarter of the largest stable step",
    )


def digits(count: int = 300, log_penalty: float = -9.0) -> Problem:
    """Multinomial logistic regression with a penalty for each of 650 weights."""
    x, y, x_validation, y_validation = _digits(count)

    def logits(theta: Tensor, x: Tensor) -> Tensor:
        return linear(x, theta[:640].view(10, 64), theta[640:])

    return _penalized(
        "logistic, digits",
        lambda theta: cross_entropy(logits(theta, x), y),
        lambda theta: cross_entropy(logits(theta, x_validation), y_validation),
        torch.zeros(650, dtype=DOUBLE),
        log_penalty,
    )


def network(count: int = 300, log_penalty: float = -8.0, width: int = 8) -> Problem:
    """A tanh network at a minimum, with a penalty for each of its 610 weights."""
    x, y, x_validation, y_validation = _digits(count)
    shapes = ((width, 64), (width,), (10, width), (10,))
    sizes = [torch.Size(shape).numel() for shape in shapes]
    generator = torch.Generator().manual_seed(0)
    start = [
        torch.randn(shape, generator=generator, dtype=DOUBLE) / shape[-1] ** 0.5 for shape in shapes
    ]

    def logits(theta: Tensor, x: Tensor) -> Tensor:
        w1, b1, w2, b2 = (
            part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)
        )
        return linear(torch.tanh(linear(x, w1, b1)), w2, b2)

    return _penalized(
        "network, digits",
        lambda theta: cross_entropy(logits(theta, x), y),
        lambda theta: cross_entropy(logits(theta, x_validation), y_validation),
        torch.cat([part.flatten() for part in start]),
        log_penalty,
    )


def rcv1(count: int = 2000, log_penalty: float = -11.0) -> Problem:
    """Is a newswire story about companies? Sparse features, and a penalty for each that occurs."""
    from scipy import sparse

    from structured.data import load

    split = load("rcv1sub", download=False).split("stratified3")
    parts = [split["train"], split["validation"]]
    tables: list[Any] = [sparse.csr_array(part.X[:count]) for part in parts]
    used = (tables[0] != 0).sum(0).nonzero()[0]
    label = split["train"].label_names.index("CCAT")
    y, y_validation = (
        torch.from_numpy(part.Y[:count].toarray()[:, label]).to(DOUBLE) for part in parts
    )
    x, x_validation = (_Table.of(table[:, used]) for table in tables)

    def loss(theta: Tensor, x: _Table, y: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(x(theta[:-1]) + theta[-1], y)

    return _penalized(
        "logistic, rcv1sub",
        lambda theta: loss(theta, x, y),
        lambda theta: loss(theta, x_validation, y_validation),
        torch.zeros(len(used) + 1, dtype=DOUBLE),
        log_penalty,
    )


def _penalized(
    name: str,
    loss: Callable[[Tensor], Tensor],
    validation: Callable[[Tensor], Tensor],
    start: Tensor,
    log_penalty: float,
) -> Problem:
    """A loss with one L2 penalty ``exp(phi_j)`` per weight, tuned on a validation loss."""

    def inner(phi: Tensor, theta: Tensor) -> Tensor:
        return loss(theta) + (phi.exp() * theta**2).sum() / 2

    def outer(phi: Tensor, theta: Tensor) -> Tensor:
        return validation(theta)

    made = bilevel.ImplicitProblem(outer, inner)

    def minimise(phi: Tensor, theta: Tensor) -> Tensor:
        return made.refine(phi, theta, tolerance=1e-10, max_steps=300)

    phi = torch.full_like(start, log_penalty)
    return Problem(
        name,
        outer,
        inner,
        phi,
        minimise(phi, start),
        minimise,
        lambda leaves, pace: torch.optim.Adam(leaves, lr=0.02 * pace),
        "Adam at 0.02 on log penalties",
    )


def _digits(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of scikit-learn's digits and their classes, to train and to validate."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(found.data)[order] / 16
    y = torch.from_numpy(found.target)[order].long()
    return x[:count], y[:count], x[count : 2 * count], y[count : 2 * count]


@dataclass(frozen=True)
class _Table:
    """A sparse matrix and its transpose, differentiable in what they multiply."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, table: Any) -> _Table:
        return cls(*(_sparse(part.tocsr()) for part in (table, table.T)))

    def __call__(self, vector: Tensor) -> Tensor:
        product: Tensor = _Multiply.apply(vector, self.rows, self.columns)  # pyright: ignore
        return product


class _Multiply(torch.autograd.Function):
    """``A v``; its derivative multiplies by A', as often as it is asked for."""

    @staticmethod
    def forward(vector: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return rows @ vector

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.rows, ctx.columns = inputs

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        return _Multiply.apply(slopes[0], ctx.columns, ctx.rows), None, None


def _sparse(table: Any) -> Tensor:
    parts = (torch.from_numpy(part) for part in (table.indptr, table.indices, table.data))
    pointers, indices, data = parts
    return torch.sparse_csr_tensor(
        pointers.long(), indices.long(), data.to(DOUBLE), size=table.shape
    )
