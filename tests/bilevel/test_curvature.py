"""Hessians, Jacobians and Gauss-Newton operators against torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import bilevel
from tests.bilevel.arrays import error, flat, normal
from tests.bilevel.problems import LABELS, X, data_weighting, logistic
from tests.bilevel.shapes import SHAPES, Shape

F64 = torch.float64
SQUARE = normal(6, 6, seed=1)
OTHER = normal(6, 6, seed=2)
POINT = normal(6, seed=4)


def field(x: Tensor) -> Tensor:
    """A vector field whose Jacobian is not symmetric."""
    return torch.tanh(SQUARE @ x) + x * x.roll(1)


def objective(t: Tensor) -> Tensor:
    return torch.nn.functional.softplus(OTHER @ t).sum() + (t**4).sum() / 4


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_a_hessian_is_that_of_torch(shape: Shape, hvp: Any) -> None:
    H = bilevel.hessian(lambda tree: objective(shape.unpack(tree)), shape.pack(POINT), hvp=hvp)
    matrix = torch.func.hessian(objective)(POINT)
    v = normal(6, seed=5)
    torch.testing.assert_close(shape.unpack(H @ shape.pack(v)), matrix @ v)
    order = flat(shape.pack(torch.arange(6)))
    torch.testing.assert_close(H.to_dense(), matrix[order][:, order])


def test_a_hessian_by_finite_differences_is_close_to_that_of_torch() -> None:
    H = bilevel.hessian(objective, POINT, hvp="finite_difference")
    assert error(H.to_dense(), torch.func.hessian(objective)(POINT)) < 1e-9


def test_a_hessian_passes_its_args_on() -> None:
    H = bilevel.hessian(lambda t, k: k * (t**3).sum(), POINT, args=(5.0,))
    torch.testing.assert_close(H.diagonal(), 30 * POINT)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_a_jacobian_is_that_of_torch(shape: Shape) -> None:
    J = bilevel.jacobian(lambda tree: shape.pack(field(shape.unpack(tree))), shape.pack(POINT))
    matrix, v = torch.func.jacrev(field)(POINT), normal(6, seed=5)
    torch.testing.assert_close(shape.unpack(J @ shape.pack(v)), matrix @ v)
    torch.testing.assert_close(shape.unpack(J.T @ shape.pack(v)), matrix.T @ v)


def test_a_jacobian_of_a_linear_or_a_constant_field_is_found_too() -> None:
    v = normal(6, seed=5)
    torch.testing.assert_close(bilevel.jacobian(lambda x: SQUARE @ x, POINT) @ v, SQUARE @ v)
    torch.testing.assert_close(bilevel.jacobian(lambda x: SQUARE @ x, POINT).T @ v, SQUARE.T @ v)
    constant = bilevel.jacobian(lambda x: torch.ones_like(x), POINT)
    assert not bool((constant @ v).any())
    assert not bool((constant.T @ v).any())


def test_the_problem_gives_its_curvature_with_damping_as_an_operator() -> None:
    for problem in (logistic(), data_weighting()):
        whole = bilevel.ImplicitProblem(problem.outer, problem.inner, damping=0.25)
        H = whole.operator(problem.phi, problem.theta)
        torch.testing.assert_close(
            H.to_dense(), problem.matrix + 0.25 * torch.eye(5, dtype=F64), rtol=1e-10, atol=1e-12
        )


def test_gauss_newton_is_the_jacobian_around_the_curvature_of_the_loss() -> None:
    def model(p: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(X @ t) * p.exp()

    def loss(p: Tensor, z: Tensor) -> Tensor:
        return (torch.nn.functional.softplus(z) - LABELS * z).mean()

    phi, theta = torch.tensor(0.3, dtype=F64), normal(5, seed=9)
    J = torch.func.jacrev(lambda t: model(phi, t))(theta)
    curvature = torch.func.hessian(lambda z: loss(phi, z))(model(phi, theta))
    wanted = J.T @ curvature @ J
    problem = bilevel.ImplicitProblem(
        lambda p, t: t.sum(),
        lambda p, t: loss(p, model(p, t)),
        curvature=bilevel.GaussNewton(model, loss),
    )
    G = problem.operator(phi, theta)
    torch.testing.assert_close(G.to_dense(), wanted)
    assert G.symmetric
    assert float(torch.linalg.eigvalsh(G.to_dense())[0]) > -1e-14
    full = bilevel.ImplicitProblem(problem.outer, problem.inner).operator(phi, theta)
    assert error(full.to_dense(), wanted) > 1e-3


def test_gauss_newton_adds_the_hessian_of_its_regularizer() -> None:
    def regularizer(p: Tensor, t: Tensor) -> Tensor:
        return (p.exp() * t**4).sum()

    phi, theta = normal(5, seed=10), normal(5, seed=9)
    split = bilevel.GaussNewton(lambda p, t: X @ t, lambda p, z: (z**2).sum() / 2, regularizer)
    problem = bilevel.ImplicitProblem(
        lambda p, t: t.sum(),
        lambda p, t: ((X @ t) ** 2).sum() / 2 + regularizer(p, t),
        curvature=split,
    )
    wanted = X.T @ X + torch.diag(12 * phi.exp() * theta**2)
    torch.testing.assert_close(problem.operator(phi, theta).to_dense(), wanted)


def test_dual_tensors_are_refused_as_their_tangents_would_be_dropped() -> None:
    problem = bilevel.ImplicitProblem(lambda p, t: t.sum(), lambda p, t: ((t - p) ** 4).sum())
    calls: dict[str, Any] = {
        "bilevel.hessian": lambda dual: bilevel.hessian(objective, dual),
        "bilevel.jacobian": lambda dual: bilevel.jacobian(field, dual),
        r"operator\(\)": lambda dual: problem.operator(POINT, dual),
    }
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(POINT, torch.ones_like(POINT))
        for name, call in calls.items():
            with pytest.raises(bilevel.TransformError, match=f"{name} drops the tangents"):
                call(dual)
            call(POINT)
        with pytest.raises(bilevel.TransformError, match="drops the tangents"):
            problem.operator(dual, POINT)
