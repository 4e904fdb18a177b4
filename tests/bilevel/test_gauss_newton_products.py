"""Gauss-Newton products against Jacobians written out, and splits that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import bilevel
from tests.bilevel.cubes import CUBE_PHI, CUBE_THETA, OnceDifferentiable, OutsideAutograd
from tests.bilevel.problems import normal
from tests.bilevel.products_cases import (
    F64,
    NETWORK,
    PHI,
    THETA,
    X,
    Y,
    assert_near,
    dense,
    flat,
    outer,
)


def _model(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return functional_call(NETWORK, theta, (X,))


def _loss(phi: Any, outputs: Tensor) -> Tensor:
    return F.softplus(outputs - phi["targets"][0]).sum() + (outputs**4).mean()


def _penalty(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return phi["log_penalty"].exp() * flat(theta).square().sum()


def _whole(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return _loss(phi, _model(phi, theta)) + _penalty(phi, theta)


def _jacobian() -> Tensor:
    """``[outputs, parameters]``."""
    columns = torch.func.jacrev(lambda theta: _model(PHI, theta).reshape(-1))(THETA)
    assert isinstance(columns, dict)
    return torch.cat([columns[name].reshape(X.shape[0] * 2, -1) for name in THETA], dim=1)


def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_loss() -> None:
    outputs = _model(PHI, THETA)
    middle = dense(lambda z: _loss(PHI, z.view_as(outputs)), outputs.reshape(-1))
    jacobian = _jacobian()
    penalty = 2 * PHI["log_penalty"].exp() * torch.eye(jacobian.shape[1], dtype=F64)
    for regularizer, extra in ((None, 0 * penalty), (_penalty, penalty)):
        split = bilevel.GaussNewton(_model, _loss, regularizer)
        problem = bilevel.ImplicitProblem(outer, _whole, curvature=split, damping=0.5)
        wanted = jacobian.T @ middle @ jacobian + extra + 0.5 * torch.eye(len(extra), dtype=F64)
        operator = problem.operator(PHI, THETA)
        assert_near(operator.to_dense(), wanted)
        block = normal(len(extra), 2, seed=16)
        assert_near(operator @ block, wanted @ block)


def test_gauss_newton_changes_the_curvature_and_keeps_the_mixed_derivative() -> None:
    split = bilevel.GaussNewton(_model, _loss, _penalty)
    problem = bilevel.ImplicitProblem(outer, _whole, curvature=split)
    gradient, info = problem.implicit_grad(PHI, THETA, return_info=True)
    matrix = problem.operator(PHI, THETA).to_dense()
    slope = torch.func.grad(outer, 1)(PHI, THETA)
    adjoint = torch.linalg.solve(matrix, flat(slope))
    assert_near(flat(info.adjoint), adjoint, rtol=1e-8)

    def along(phi: Any) -> Tensor:
        return flat(torch.func.grad(_whole, 1)(phi, THETA)) @ adjoint

    mixed = torch.func.grad(along)(PHI)
    assert_near(flat(gradient), flat(torch.func.grad(outer)(PHI, THETA)) - flat(mixed), rtol=1e-8)


def test_gauss_newton_is_positive_where_the_hessian_is_not() -> None:
    theta = {"w": torch.tensor([1.5, 0.3], dtype=F64)}
    split = bilevel.GaussNewton(
        lambda p, t: torch.stack([t["w"][0].sin(), t["w"].sum()]), lambda p, z: (z**2).sum() / 2
    )

    def inner(p: Tensor, t: dict[str, Tensor]) -> Tensor:
        return split.loss(p, split.model(p, t)) - (p * t["w"]).sum() + 3 * t["w"][0].cos()

    phi = torch.ones(2, dtype=F64)
    plain = bilevel.ImplicitProblem(lambda p, t: t["w"].sum(), inner)
    safe = bilevel.ImplicitProblem(lambda p, t: t["w"].sum(), inner, curvature=split)
    assert torch.linalg.eigvalsh(plain.operator(phi, theta).to_dense())[0] < 0
    assert torch.linalg.eigvalsh(safe.operator(phi, theta).to_dense())[0] > 0
    with pytest.warns(bilevel.CurvatureWarning):
        plain.implicit_grad(phi, theta)
    safe.implicit_grad(phi, theta)


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    theta, phi = normal(3, seed=17), torch.tensor(0.1, dtype=F64)
    split = bilevel.GaussNewton(
        lambda p, t, x, y: x @ t,
        lambda p, z, x, y: ((z - y) ** 2).sum(),
        lambda p, t, x, y: p.exp() * (t**2).sum(),
    )

    def ridge(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ t - y) ** 2).sum() + p.exp() * (t**2).sum()

    found, wanted = (
        bilevel.implicit_grad(
            lambda p, t: (t**3).sum(), ridge, phi, theta, inner_args=(X, Y[:, 0]), curvature=curve
        )
        for curve in (split, None)
    )
    assert_near(found, wanted)


def test_a_leaf_that_the_model_does_not_use_has_no_curvature() -> None:
    theta = {"a": normal(2, seed=18), "unused": normal(3, seed=19), "z": normal(2, seed=20)}
    split = bilevel.GaussNewton(lambda p, t: t["a"] * t["z"], lambda p, z: (z**2).sum() / 2)
    problem = bilevel.ImplicitProblem(
        lambda p, t: p.sum(), lambda p, t: (p * t["a"]).sum(), damping=0.5, curvature=split
    )
    found = problem.operator(normal(2, seed=21), theta).to_dense()
    rows = torch.func.jacrev(lambda t: t["a"] * t["z"])(theta)
    jacobian = torch.cat([rows[name] for name in theta], dim=1)  # type: ignore[index]
    assert_near(found, jacobian.T @ jacobian + 0.5 * torch.eye(7, dtype=F64))


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
@pytest.mark.parametrize("where", ["model", "loss", "regularizer"])
def test_a_split_that_is_not_differentiable_twice_is_named(cube: Any, where: str) -> None:
    parts: dict[str, Callable[[Tensor], Any]] = dict.fromkeys(
        ("model", "loss", "regularizer"), lambda x: x**3
    )
    parts[where] = cube.apply
    split = bilevel.GaussNewton(
        lambda p, t: parts["model"](t),
        lambda p, z: parts["loss"](z).sum(),
        lambda p, t: parts["regularizer"](t).sum(),
    )
    with pytest.raises(RuntimeError, match=f"GaussNewton: {where} is not differentiable twice"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: ((t - p) ** 2).sum(),
            CUBE_PHI,
            CUBE_THETA,
            curvature=split,
        )


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (lambda p, t: [t], lambda p, z: z[0].sum(), "model must return a tensor"),
        (lambda p, t: t.detach(), lambda p, z: z.sum(), "depends on its theta argument"),
        (lambda p, t: t, lambda p, z: z**2, "loss returned a tensor of shape"),
        (lambda p, t: t, lambda p, z: 1.0, "loss returned a float"),
        (lambda p, t: t, lambda p, z: p.sum(), "loss does not depend on"),
    ],
)
def test_a_split_that_does_not_fit_is_named(model: Any, loss: Any, message: str) -> None:
    with pytest.raises(bilevel.InputError, match=f"GaussNewton: .*{message}"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: ((t - p) ** 2).sum(),
            CUBE_PHI,
            CUBE_THETA,
            curvature=bilevel.GaussNewton(model, loss),
        )
