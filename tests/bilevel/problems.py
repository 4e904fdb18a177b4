"""Bilevel problems with known answers.

Every answer here is linear algebra written out by hand; nothing in this file uses a derivative or a
solver that the tests are about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tests.bilevel.arrays import normal, orthogonal, spd
from tests.bilevel.shapes import Shape

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Problem:
    """A problem on flat vectors, and its hypergradient.

    Attributes:
        name: for test ids.
        kind: ``"argmin"`` of a scalar function, ``"root"`` or ``"fixed_point"`` of a vector field.
        inner: the scalar function, the condition or the map, of ``(phi, theta)``.
        outer: the outer objective.
        phi: ``[p]``.
        theta: ``[n]``, the solution for this phi to rounding.
        gradient: ``[p]``, exact.
        matrix: ``[n, n]``, the Hessian or Jacobian that is inverted.
        symmetric: whether the matrix is.
    """

    name: str
    kind: Literal["argmin", "root", "fixed_point"]
    inner: Function
    outer: Function
    phi: Tensor
    theta: Tensor
    gradient: Tensor
    matrix: Tensor
    symmetric: bool = True

    @property
    def definite(self) -> bool:
        return self.kind == "argmin"

    def in_shape(self, shape: Shape) -> Problem:
        """The same problem with phi and theta as trees of a shape."""
        unpack = shape.unpack

        def inner(phi: Any, theta: Any) -> Any:
            value = self.inner(unpack(phi), unpack(theta))
            return value if self.kind == "argmin" else shape.pack(value)

        return Problem(
            f"{self.name} as {shape.name}",
            self.kind,
            inner,
            lambda phi, theta: self.outer(unpack(phi), unpack(theta)),
            shape.pack(self.phi),
            shape.pack(self.theta),
            self.gradient,
            self.matrix,
            self.symmetric,
        )


@dataclass(frozen=True)
class Quadratic:
    """``inner = t'At/2 + t'Cp + a't``, ``outer = t'Ft/2 + p'Kt + p'Mp/2 + f't + h'p``."""

    A: Tensor
    C: Tensor
    a: Tensor
    F: Tensor
    K: Tensor
    M: Tensor
    f: Tensor
    h: Tensor

    @classmethod
    def random(cls, n: int = 6, p: int = 4, seed: int = 0) -> Quadratic:
        return cls(
            spd(n, seed),
            normal(n, p, seed=seed + 1),
            normal(n, seed=seed + 2),
            spd(n, seed + 3),
            normal(p, n, seed=seed + 4),
            spd(p, seed + 5),
            normal(n, seed=seed + 6),
            normal(p, seed=seed + 7),
        )

    def inner(self, p: Tensor, t: Tensor) -> Tensor:
        A, C, a = (m.to(t.dtype) for m in (self.A, self.C, self.a))
        return t @ A @ t / 2 + t @ C @ p + a @ t

    def outer(self, p: Tensor, t: Tensor) -> Tensor:
        F, K, M, f, h = (m.to(t.dtype) for m in (self.F, self.K, self.M, self.f, self.h))
        return t @ F @ t / 2 + p @ K @ t + p @ M @ p / 2 + f @ t + h @ p

    def solution(self, p: Tensor) -> Tensor:
        return -torch.linalg.solve(self.A, self.C @ p + self.a)

    def gradient(self, p: Tensor) -> Tensor:
        t = self.solution(p)
        slope = self.F @ t + self.K.T @ p + self.f
        return self.M @ p + self.K @ t + self.h - self.C.T @ torch.linalg.solve(self.A, slope)

    def hessian(self) -> Tensor:
        moved = torch.linalg.solve(self.A, self.C)
        return self.M - self.K @ moved - (self.K @ moved).T + moved.T @ self.F @ moved


def quadratic(n: int = 6, p: int = 4) -> Problem:
    data = Quadratic.random(n, p)
    phi = normal(p, seed=20)
    theta = data.solution(phi)
    return Problem(
        "quadratic", "argmin", data.inner, data.outer, phi, theta, data.gradient(phi), data.A
    )


class _Distance:
    """``outer = ||theta - goal||^2 / 2 + weight ||phi||^2 / 2``, for the problems below."""

    weight = 0.3

    def __init__(self, n: int) -> None:
        self.goal = normal(n, seed=99)

    def __call__(self, phi: Tensor, theta: Tensor) -> Tensor:
        away = theta - self.goal.to(theta.dtype)
        return away @ away / 2 + self.weight * (phi @ phi) / 2

    def slope(self, theta: Tensor) -> Tensor:
        return theta - self.goal

    def direct(self, phi: Tensor) -> Tensor:
        return self.weight * phi


X = normal(12, 5, seed=30)
Y = normal(12, seed=31)
LABELS = (normal(12, seed=32) > 0).double()


def ridge_penalties() -> Problem:
    """Ridge regression with one penalty ``exp(phi_j)`` a coordinate."""
    outer = _Distance(5)
    phi = 0.3 * normal(5, seed=33)
    H = X.T @ X / 12 + torch.diag(phi.exp())
    theta = torch.linalg.solve(H, X.T @ Y / 12)
    v = torch.linalg.solve(H, outer.slope(theta))
    gradient = outer.direct(phi) - phi.exp() * theta * v

    def inner(p: Tensor, t: Tensor) -> Tensor:
        away = X.to(t.dtype) @ t - Y.to(t.dtype)
        return away @ away / 24 + (p.exp() * t * t).sum() / 2

    return Problem("ridge, penalty each", "argmin", inner, outer, phi, theta, gradient, H)


def ridge_solution(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Solution and Hessian of ridge regression with the scalar penalty ``lam``."""
    H = X.T @ X / 12 + lam * torch.eye(5, dtype=torch.float64)
    return torch.linalg.solve(H, X.T @ Y / 12), H


def ridge_inner(lam: Tensor, t: Tensor) -> Tensor:
    away = X.to(t.dtype) @ t - Y.to(t.dtype)
    return away @ away / 24 + lam * (t @ t) / 2


def ridge_scalar() -> Problem:
    """Ridge regression with one penalty: ``d theta / d lam = -H^-1 theta``."""
    outer = _Distance(5)
    phi = torch.tensor([0.7], dtype=torch.float64)
    theta, H = ridge_solution(phi[0])
    gradient = outer.direct(phi) - outer.slope(theta) @ torch.linalg.solve(H, theta)
    return Problem(
        "ridge, one penalty",
        "argmin",
        lambda p, t: ridge_inner(p[0], t),
        outer,
        phi,
        theta,
        gradient,
        H,
    )


def _logistic(t: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the weighted mean logistic loss."""
    p = torch.sigmoid(X @ t)
    return X.T @ (weights * (p - LABELS)) / 12, X.T @ ((weights * p * (1 - p))[:, None] * X) / 12


def _losses(t: Tensor) -> Tensor:
    logits = X.to(t.dtype) @ t
    return torch.nn.functional.softplus(logits) - LABELS.to(t.dtype) * logits


def _newton(step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    t = torch.zeros(5, dtype=torch.float64)
    for _ in range(30):
        gradient, H = step(t)
        t = t - torch.linalg.solve(H, gradient)
    return t


def logistic() -> Problem:
    """Logistic regression with one penalty ``exp(phi_j)`` a coordinate."""
    outer = _Distance(5)
    phi = 0.3 * normal(5, seed=34) - 1.0
    ones = torch.ones(12, dtype=torch.float64)

    def step(t: Tensor) -> tuple[Tensor, Tensor]:
        gradient, H = _logistic(t, ones)
        return gradient + phi.exp() * t, H + torch.diag(phi.exp())

    theta = _newton(step)
    H = step(theta)[1]
    v = torch.linalg.solve(H, outer.slope(theta))
    gradient = outer.direct(phi) - phi.exp() * theta * v

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return _losses(t).mean() + (p.exp() * t * t).sum() / 2

    return Problem("logistic", "argmin", inner, outer, phi, theta, gradient, H)


def data_weighting() -> Problem:
    """A weight ``sigma(phi_i)`` on each example's loss."""
    outer = _Distance(5)
    phi = normal(12, seed=35)
    weights = torch.sigmoid(phi)
    penalty = 0.2 * torch.eye(5, dtype=torch.float64)

    def step(t: Tensor) -> tuple[Tensor, Tensor]:
        gradient, H = _logistic(t, weights)
        return gradient + penalty @ t, H + penalty

    theta = _newton(step)
    H = step(theta)[1]
    v = torch.linalg.solve(H, outer.slope(theta))
    each = (torch.sigmoid(X @ theta) - LABELS)[:, None] * X
    gradient = outer.direct(phi) - weights * (1 - weights) * (each @ v) / 12

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return (torch.sigmoid(p) * _losses(t)).mean() + 0.1 * (t @ t)

    return Problem("data weighting", "argmin", inner, outer, phi, theta, gradient, H)


def proximal_meta_learning() -> Problem:
    """``inner = l(theta) + lam/2 ||theta - phi||^2``: ``dF = (I + d2l/lam)^-1 grad f``."""
    outer = _Distance(5)
    lam = 0.4
    phi = normal(5, seed=36)
    ones, eye = torch.ones(12, dtype=torch.float64), torch.eye(5, dtype=torch.float64)

    def step(t: Tensor) -> tuple[Tensor, Tensor]:
        gradient, H = _logistic(t, ones)
        return gradient + lam * (t - phi), H + lam * eye

    theta = _newton(step)
    d2l = _logistic(theta, ones)[1]
    gradient = outer.direct(phi) + torch.linalg.solve(eye + d2l / lam, outer.slope(theta))

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return _losses(t).mean() + lam * ((t - p) ** 2).sum() / 2

    return Problem(
        "proximal meta-learning", "argmin", inner, outer, phi, theta, gradient, d2l + lam * eye
    )


def distillation() -> Problem:
    """Learn the targets of a ridge regression: ``dF/dY = X (X'X + lam I)^-1 grad f``."""
    outer = _Distance(5)
    phi = normal(12, seed=37)
    H = X.T @ X + 2.0 * torch.eye(5, dtype=torch.float64)
    theta = torch.linalg.solve(H, X.T @ phi)
    gradient = outer.direct(phi) + X @ torch.linalg.solve(H, outer.slope(theta))

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return ((X.to(t.dtype) @ t - p) ** 2).sum() / 2 + t @ t

    return Problem("distillation", "argmin", inner, outer, phi, theta, gradient, H)


def scalar() -> Problem:
    """``inner = a t^2 / 2 - p t``: ``t* = p / a``, ``dt/dp = 1 / a``."""
    outer = _Distance(1)
    phi, a = torch.tensor([1.7], dtype=torch.float64), 3.0
    theta = phi / a
    gradient = outer.direct(phi) + outer.slope(theta) / a

    def inner(p: Tensor, t: Tensor) -> Tensor:
        return (a * t * t / 2 - p * t).sum()

    H = torch.tensor([[a]], dtype=torch.float64)
    return Problem("scalar", "argmin", inner, outer, phi, theta, gradient, H)


def linear_fixed_point() -> Problem:
    """``z = W z + U x + b`` with a W that is not symmetric; phi holds W, U and b."""
    outer = _Distance(4)
    W = 0.5 * orthogonal(4, seed=40) + 0.1 * torch.triu(normal(4, 4, seed=41))
    U, b, x = normal(4, 2, seed=42), normal(4, seed=43), normal(2, seed=44)
    phi = torch.cat([W.flatten(), U.flatten(), b])
    A = torch.eye(4, dtype=torch.float64) - W
    theta = torch.linalg.solve(A, U @ x + b)
    adjoint = torch.linalg.solve(A.T, outer.slope(theta))
    moved = [torch.outer(adjoint, theta).flatten(), torch.outer(adjoint, x).flatten(), adjoint]
    gradient = outer.direct(phi) + torch.cat(moved)

    def step(p: Tensor, z: Tensor) -> Tensor:
        w, u, c = p[:16].reshape(4, 4), p[16:24].reshape(4, 2), p[24:]
        return w @ z + u @ x.to(z.dtype) + c

    return Problem("linear fixed point", "fixed_point", step, outer, phi, theta, gradient, A, False)


def cosine_fixed_point() -> Problem:
    """``z = cos z + p``: ``dz/dp = 1 / (1 + sin z)``."""
    outer = _Distance(1)
    phi = torch.tensor([0.4], dtype=torch.float64)
    z = torch.ones(1, dtype=torch.float64)
    for _ in range(50):
        z = z - (z - z.cos() - phi) / (1 + z.sin())
    gradient = outer.direct(phi) + outer.slope(z) / (1 + z.sin())
    A = (1 + z.sin()).reshape(1, 1)
    return Problem(
        "cosine fixed point", "fixed_point", lambda p, z: z.cos() + p, outer, phi, z, gradient, A
    )


def constrained_qp() -> Problem:
    """``min x'Qx/2 + c'x`` subject to ``Ax = b`` through its KKT conditions; phi holds all four."""
    Q, c = spd(4, seed=50), normal(4, seed=51)
    A, b = normal(2, 4, seed=52), normal(2, seed=53)
    phi = torch.cat([Q.flatten(), c, A.flatten(), b])
    kkt = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, A.new_zeros(2, 2)], 1)])
    theta = torch.linalg.solve(kkt, torch.cat([-c, b]))
    x, nu = theta[:4], theta[4:]
    outer = _Distance(6)
    d = -torch.linalg.solve(kkt, outer.slope(theta))
    d_x, d_nu = d[:4], d[4:]
    dQ = (torch.outer(d_x, x) + torch.outer(x, d_x)) / 2
    dA = torch.outer(d_nu, x) + torch.outer(nu, d_x)
    gradient = outer.direct(phi) + torch.cat([dQ.flatten(), d_x, dA.flatten(), -d_nu])

    def condition(p: Tensor, t: Tensor) -> Tensor:
        q, linear = p[:16].reshape(4, 4), p[16:20]
        a, right = p[20:28].reshape(2, 4), p[28:]
        q = (q + q.T) / 2
        return torch.cat([q @ t[:4] + linear + a.T @ t[4:], a @ t[:4] - right])

    return Problem("constrained QP", "root", condition, outer, phi, theta, gradient, kkt)


MINIMA = [
    quadratic(),
    ridge_penalties(),
    ridge_scalar(),
    logistic(),
    data_weighting(),
    proximal_meta_learning(),
    distillation(),
    scalar(),
]
EQUATIONS = [linear_fixed_point(), cosine_fixed_point(), constrained_qp()]
PROBLEMS = MINIMA + EQUATIONS
