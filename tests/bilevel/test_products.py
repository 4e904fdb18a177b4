"""The ways to multiply by a Hessian agree."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

import bilevel
from bilevel.products import HVP
from tests.bilevel.problems import normal
from tests.bilevel.products_cases import (
    F64,
    PHI,
    THETA,
    X,
    assert_near,
    dense,
    every_mode,
    flat,
    inner,
    outer,
)


@every_mode
def test_the_operator_is_the_hessian(hvp: HVP) -> None:
    problem = bilevel.ImplicitProblem(outer, inner, hvp=hvp, damping=0.25)
    n = flat(THETA).numel()

    def of_flat(vector: Tensor) -> Tensor:
        pieces = vector.split([leaf.numel() for leaf in THETA.values()])
        shaped = [piece.view_as(leaf) for piece, leaf in zip(pieces, THETA.values(), strict=True)]
        return inner(PHI, dict(zip(THETA, shaped, strict=True)))

    wanted = dense(of_flat, flat(THETA)) + 0.25 * torch.eye(n, dtype=F64)
    operator = problem.operator(PHI, THETA)
    assert_near(operator.to_dense(), wanted, hvp)
    assert_near(flat(operator @ THETA), wanted @ flat(THETA), hvp)
    block = normal(n, 3, seed=3)
    assert_near(operator @ block, wanted @ block, hvp)


@every_mode
@pytest.mark.parametrize("solver", [bilevel.Exact(), bilevel.CG(rtol=1e-12, atol=1e-300)])
def test_the_hypergradient_is_the_same_however_products_are_made(
    hvp: HVP, solver: bilevel.Solver
) -> None:
    wanted = bilevel.implicit_grad(outer, inner, PHI, THETA, damping=1.0)
    found, info = bilevel.implicit_grad(
        outer, inner, PHI, THETA, damping=1.0, hvp=hvp, return_info=True,
        solver=solver, on_failure="ignore",
    )  # fmt: skip
    assert_near(flat(found), flat(wanted), hvp)
    assert info.hvp == ("reverse" if hvp == "auto" else hvp)
    assert info.solution.stats.products > 0


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_theta_and_of_the_outer_value_changes_no_digit_but_rounding(
    hvp: HVP, dtype: torch.dtype
) -> None:
    # inner = a t^2 / 2 - p t at any scale of t; outer = s t, so the answer is s / a.
    a = torch.tensor([2.0, 5.0], dtype=dtype)
    for scale in (1e-12, 1.0, 1e12):
        for size in (1e-6, 1.0, 1e6):
            phi = torch.full((2,), size, dtype=dtype)
            found = bilevel.implicit_grad(
                lambda p, t, s=scale: (s * t).sum(),
                lambda p, t: (a * t**2).sum() / 2 - (p * t).sum(),
                phi,
                phi / a,
                hvp=hvp,
            )
            rtol = 1e-8 if dtype == F64 else 3e-4
            torch.testing.assert_close(found, scale / a, rtol=rtol, atol=0)


def test_a_kept_graph_evaluates_each_function_once() -> None:
    counts = {"inner": 0, "outer": 0}

    def counted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            counts[name] += 1
            return function(*args)

        return call

    functions = counted("outer", outer), counted("inner", inner)
    bilevel.implicit_grad(*functions, PHI, THETA, solver=bilevel.CG(rtol=1e-6), damping=1.0)
    assert counts == {"inner": 1, "outer": 1}


@every_mode
def test_unused_leaves_of_phi_get_zeros_and_an_unused_phi_is_refused(hvp: HVP) -> None:
    phi, theta = [PHI["log_penalty"], torch.ones(2, 2, dtype=F64)], normal(3, seed=4)
    gradient = bilevel.implicit_grad(
        lambda p, t: t.sum(), lambda p, t: (t**2).sum() * p[0].exp(), phi, theta, hvp=hvp
    )
    assert torch.equal(gradient[1], torch.zeros(2, 2, dtype=F64))
    assert bool(gradient[0].isfinite())
    with pytest.raises(bilevel.InputError, match="depends on phi"):
        bilevel.implicit_grad(lambda p, t: t.sum(), lambda p, t: (t**2).sum(), phi, theta, hvp=hvp)


@every_mode
def test_an_objective_linear_in_theta_has_a_zero_hessian(hvp: HVP) -> None:
    theta, phi = normal(3, seed=5), normal(3, seed=6)
    problem = bilevel.ImplicitProblem(
        lambda p, t: (t**2).sum(), lambda p, t: (p.sin() * t).sum(), hvp=hvp, damping=2.0
    )
    assert_near(problem.operator(phi, theta).to_dense(), 2 * torch.eye(3, dtype=F64), hvp)
    assert_near(problem.implicit_grad(phi, theta), -phi.cos() * theta, hvp)


@every_mode
def test_empty_and_scalar_thetas_have_products(hvp: HVP) -> None:
    def value(p: Tensor, t: Any) -> Tensor:
        return ((t[0] - p) ** 2).sum() + (t[1] ** 2).sum()

    theta = [torch.tensor(2.0, dtype=F64), torch.zeros(0, 3, dtype=F64)]
    phi = torch.tensor(2.0, dtype=F64)
    found = bilevel.implicit_grad(lambda p, t: t[0] ** 2, value, phi, theta, hvp=hvp)
    assert_near(found, torch.tensor(4.0, dtype=F64), hvp)
    nothing = torch.zeros(0, dtype=F64)
    found = bilevel.implicit_grad(
        lambda p, t: t.sum() + p**2, lambda p, t: (t**2).sum() * p, phi, nothing, hvp=hvp
    )
    assert_near(found, 2 * phi, hvp)


def _input_penalty(p: Tensor, t: Tensor) -> Tensor:
    x = X.clone().requires_grad_()
    out = torch.tanh(x @ t) * p[0]
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return (out**2).mean() + (slope**2).sum() + p[1].exp() * (t**2).sum()


def _input_penalty_by_hand(p: Tensor, t: Tensor) -> Tensor:
    out = torch.tanh(X @ t) * p[0]
    slope = (p[0] * (1 - torch.tanh(X @ t) ** 2)).unsqueeze(1) * t
    return (out**2).mean() + (slope**2).sum() + p[1].exp() * (t**2).sum()


def _theta_penalty(p: Tensor, t: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad((p[0].sin() * t**3).sum(), t, create_graph=True)
    return (slope**2).sum() + p[1].exp() * (t**2).sum()


def _theta_penalty_by_hand(p: Tensor, t: Tensor) -> Tensor:
    return ((3 * p[0].sin() * t**2) ** 2).sum() + p[1].exp() * (t**2).sum()


@pytest.mark.parametrize(
    ("penalised", "by_hand"),
    [(_input_penalty, _input_penalty_by_hand), (_theta_penalty, _theta_penalty_by_hand)],
    ids=["in an input", "in theta"],
)
@pytest.mark.parametrize("hvp", ["auto", "reverse", "finite_difference"])
def test_a_gradient_penalty_inside_inner_is_differentiated_through(
    penalised: Callable[..., Tensor], by_hand: Callable[..., Tensor], hvp: HVP
) -> None:
    theta, phi = normal(3, seed=12), torch.tensor([0.7, 0.4], dtype=F64)
    found, wanted = (
        bilevel.implicit_grad(
            lambda p, t: (t**2).sum(), function, phi, theta, hvp=hvp, on_failure="ignore"
        )
        for function in (penalised, by_hand)
    )
    assert_near(found, wanted, hvp)
    attached = phi.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(
            bilevel.argmin(function, attached, theta, on_failure="ignore").sum(), attached
        )[0]
        for function in (penalised, by_hand)
    ]
    assert_near(slopes[0], slopes[1])


def test_forward_over_reverse_refuses_a_gradient_penalty() -> None:
    theta, phi = normal(3, seed=12), torch.tensor([0.7, 0.4], dtype=F64)
    for function in (_input_penalty, _theta_penalty):
        with pytest.raises(RuntimeError, match=r"requires_grad|require grad"):
            bilevel.implicit_grad(
                lambda p, t: t.sum(), function, phi, theta, hvp="forward_over_reverse"
            )


def _dropped(p: Tensor, t: Tensor) -> Tensor:
    return (F.dropout(t, 0.5) * p).square().sum() + (t**2).sum() / 2 - (p * t).sum()


@every_mode
@pytest.mark.parametrize("solver", [bilevel.Exact(), bilevel.CG(rtol=1e-8)])
def test_one_dropout_mask_is_seen_by_the_adjoint_the_hessian_and_the_mixed_product(
    hvp: HVP, solver: bilevel.Solver
) -> None:
    theta, phi = normal(12, seed=13), normal(12, seed=14)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(12, dtype=F64), 0.5)
    assert set(mask.tolist()) == {0.0, 2.0}
    torch.manual_seed(3)
    found = bilevel.implicit_grad(
        lambda p, t: (F.dropout(t, 0.5) ** 2).sum(), _dropped, phi, theta, hvp=hvp, solver=solver
    )
    # Everything is diagonal: v = d_t outer / H, and the answer is -(d_t d_p inner) v.
    adjoint = 2 * mask**2 * theta / (2 * mask**2 * phi**2 + 1)
    assert_near(found, -(4 * mask**2 * phi * theta - 1) * adjoint, hvp, rtol=1e-7)


EMBEDDED = torch.tensor([0, 2, 2, 1])


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse", "finite_difference"])
def test_an_outer_objective_may_look_up_a_sparse_embedding(hvp: Any) -> None:
    theta = normal(3, 2, seed=1)

    def gradient(sparse: bool) -> torch.Tensor:
        return bilevel.implicit_grad(
            lambda p, t: (F.embedding(EMBEDDED, t, sparse=sparse) ** 2).sum(),
            lambda p, t: 0.5 * ((t - p.exp() * theta) ** 2).sum(),
            torch.zeros((), dtype=theta.dtype),
            theta,
            hvp=hvp,
            solver=bilevel.CG(rtol=1e-7),
        )

    torch.testing.assert_close(gradient(sparse=True), gradient(sparse=False))
    # theta moves along itself: twice its square, as often as it is looked up.
    torch.testing.assert_close(gradient(sparse=True), 2 * (theta[EMBEDDED] ** 2).sum())


def test_an_inner_objective_whose_gradient_is_sparse_is_refused_by_name() -> None:
    theta, phi = normal(3, 2, seed=1), torch.zeros((), dtype=torch.float64, requires_grad=True)

    def inner(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return ((F.embedding(EMBEDDED, t, sparse=True) - p) ** 2).sum()

    with pytest.raises(bilevel.InputError, match="inner has a sparse gradient"):
        bilevel.implicit_grad(lambda p, t: (t**2).sum(), inner, phi.detach(), theta)
    solution = bilevel.argmin(inner, phi, theta)
    with pytest.raises(bilevel.InputError, match="inner has a sparse gradient"):
        torch.autograd.grad(solution.sum(), phi)


def test_a_vector_that_was_given_other_memory_is_multiplied_anew() -> None:
    A = normal(6, 6, seed=3)
    A = A @ A.T
    operator = bilevel.hessian(lambda t: t @ A @ t / 2 + (t**4).sum(), normal(6, seed=4))
    wanted = operator.to_dense()
    buffer = normal(12, seed=5)
    changes: list[Callable[[Tensor], Any]] = [
        lambda row: setattr(row, "data", normal(1, 6, seed=6)),
        lambda row: row.set_(normal(1, 6, seed=7)),  # pyright: ignore[reportArgumentType]
        lambda row: row.as_strided_((1, 6), (6, 1), 6),
        lambda row: row.mul_(2.0),
        lambda row: row.data.add_(1.0),
    ]
    for change in changes:
        row = buffer.clone()[:6].view(1, 6)
        operator.rows(row)
        change(row)
        assert_near(operator.rows(row), row @ wanted)


def test_an_operator_holds_neither_its_last_operand_nor_what_that_came_from() -> None:
    operator = bilevel.hessian(lambda t: (t**4).sum(), normal(6, seed=4))
    source = normal(6, seed=5).requires_grad_()
    for make in (source.sin, lambda: source.sin().detach()):
        row = make().view(1, 6)
        kept = weakref.ref(row)
        operator.rows(row)
        del row
        assert kept() is None


@pytest.mark.parametrize("kind", ["hessian", "symmetric jacobian", "jacobian", "transposed", "gn"])
def test_a_product_is_differentiated_along_its_operand(kind: str) -> None:
    A, x = normal(4, 4, seed=1), normal(4, seed=2)
    symmetric = A + A.T
    if kind == "hessian":
        operator = bilevel.hessian(lambda t: t @ symmetric @ t / 2 + (t**4).sum(), x)
    elif kind == "gn":
        split = bilevel.GaussNewton(lambda p, t: (A @ t).sin(), lambda p, z: (z**2).sum())
        problem = bilevel.ImplicitProblem(
            lambda p, t: p.sum(), lambda p, t: (p * t).sum(), curvature=split, damping=0.1
        )
        operator = problem.operator(normal(4, seed=5), x)
    else:
        matrix = A if kind in ("jacobian", "transposed") else symmetric
        operator = bilevel.jacobian(lambda t: matrix @ t, x, symmetric="symmetric" in kind)
    if kind == "transposed":
        operator = operator.T
    matrix, v = operator.to_dense(), normal(4, seed=3).requires_grad_()
    composed = operator + 0.5 * operator  # also through what is made of it

    def form(w: Tensor) -> Tensor:
        return (composed @ w) @ w

    wanted = 1.5 * (matrix + matrix.T)
    (slope,) = torch.autograd.grad(form(v), v, create_graph=True)
    assert_near(slope, wanted @ v)
    assert_near(torch.autograd.grad(slope.sum(), v)[0], wanted.sum(0))
    assert_near(torch.func.grad(form)(v.detach()), wanted @ v)
    assert_near(torch.func.hessian(form)(v.detach()), wanted)
    batch = normal(3, 4, seed=6)
    assert_near(torch.func.vmap(torch.func.grad(form))(batch), batch @ wanted)


@pytest.mark.parametrize("leaves", [1, 2])
@pytest.mark.parametrize("hvp", ["reverse", "forward_over_reverse", "finite_difference"])
def test_an_operator_stays_that_of_the_point_it_was_made_at(hvp: HVP, leaves: int) -> None:
    phi = torch.tensor(2.0, dtype=F64)
    theta = [normal(3, seed=seed) for seed in range(leaves)]

    def cubes(p: Tensor, t: list[Tensor]) -> Tensor:
        return sum(((p * leaf**4).sum() for leaf in t), start=torch.zeros((), dtype=F64))

    problem = bilevel.ImplicitProblem(lambda p, t: t[0].sum(), cubes, hvp=hvp)
    made = {
        "hessian": lambda: bilevel.hessian(lambda t: cubes(phi.clone(), t), theta, hvp=hvp),
        "jacobian": lambda: bilevel.jacobian(lambda t: [leaf**3 for leaf in t], theta),
        "operator": lambda: problem.operator(phi, theta),
    }
    for name, make in made.items():
        operator, wanted = make(), make().to_dense()
        before = [leaf.clone() for leaf in (phi, *theta)]
        for leaf in (phi, *theta) if name == "operator" else theta:
            leaf.mul_(3.0)
        assert_near(operator.to_dense(), wanted)
        for leaf, old in zip((phi, *theta), before, strict=True):
            leaf.copy_(old)


@every_mode
def test_leaves_whose_entries_share_memory_are_differentiated(hvp: HVP) -> None:
    theta = torch.ones(1, dtype=F64).expand(3)
    found = bilevel.implicit_grad(
        lambda p, t: (t**2).sum(), lambda p, t: ((t - p) ** 2).sum(), PHI_ONES, theta, hvp=hvp
    )
    assert_near(found, torch.full((3,), 2.0, dtype=F64))


PHI_ONES = torch.ones(3, dtype=F64)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_product_carries_a_forward_derivative(damping: float) -> None:
    problem = bilevel.ImplicitProblem(
        lambda p, t: t.sum(), lambda p, t: (t**3).sum(), damping=damping
    )
    theta = torch.tensor([1.0, 2.0], dtype=F64)
    operator = problem.operator(torch.tensor(0.0, dtype=F64), theta)
    along = torch.tensor([3.0, 5.0], dtype=F64)
    with forward_ad.dual_level():
        found = operator @ forward_ad.make_dual(torch.ones(2, dtype=F64), along)
        assert_near(forward_ad.unpack_dual(found).tangent, (6 * theta + damping) * along)
