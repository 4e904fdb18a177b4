"""The linear solve that can be differentiated."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

import bilevel
from bilevel.solvers.base import Outcome
from tests.bilevel.custom_cases import F64, PHI, Function, assert_near, outer
from tests.bilevel.problems import normal, spd
from tests.bilevel.traces import Untouched

A = normal(4, 4, seed=7) + 4 * torch.eye(4, dtype=F64)
B = normal(4, seed=8)
ROWS = normal(3, 4, seed=9)


def times(phi: Tensor, x: Tensor) -> Tensor:
    return phi @ x


def linear(phi: Tensor, b: Tensor, **options: Any) -> Tensor:
    return bilevel.linear_solve(times, phi, b, **options)


def by_inverse(phi: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.inv(phi) @ b


SOLVERS: dict[str, bilevel.Solver] = {
    "Auto": bilevel.Auto(),
    "GMRES": bilevel.GMRES(rtol=1e-13),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-13),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_system_that_is_not_symmetric_is_solved_and_differentiated_twice(
    solver: bilevel.Solver,
) -> None:
    phi, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    assert_near(linear(A, B, solver=solver), by_inverse(A, B))
    solution = lambda phi, b: linear(phi, b, solver=solver)  # noqa: E731
    assert torch.autograd.gradcheck(solution, (phi, b), atol=1e-7)
    assert torch.autograd.gradgradcheck(solution, (phi, b), atol=1e-7)


SYSTEMS: dict[str, Callable[[Function], Any]] = {
    "grad": lambda f: grad(f, (0, 1))(A, B),
    "jvp": lambda f: jvp(f, (A, B), (A.sin(), B.sin()))[1],
    "hessian": lambda f: hessian(f, (0, 1))(A, B),
    "vmap": lambda f: vmap(f)(torch.stack([A, 2 * A, A.T]), ROWS),
    "vmap of grad": lambda f: vmap(grad(f), (None, 1))(A, ROWS.T),
    "vmap of vmap": lambda f: vmap(vmap(f, (None, 0)), (0, None))(torch.stack([A, A.T]), ROWS),
    "grad of vmap": lambda f: grad(lambda b: vmap(f, (None, 0))(A, b).square().sum())(ROWS),
    "vmap of hessian": lambda f: vmap(hessian(f, 1), (0, None))(torch.stack([A, A.T]), B),
}


@pytest.mark.parametrize("transform", SYSTEMS.values(), ids=SYSTEMS)
def test_a_linear_solve_composes_with_transforms(transform: Callable[[Function], Any]) -> None:
    def of(solution: Callable[..., Tensor]) -> Function:
        return lambda phi, b: (solution(phi, b) ** 3).sum()

    assert_near(transform(of(linear)), transform(of(by_inverse)))


def test_right_hand_sides_args_and_phi_may_be_trees() -> None:
    def matvec(phi: Any, x: Any, factor: Tensor) -> Any:
        # Another order of the keys than that of b.
        return {
            "v": factor * x["v"] + phi["c"] * x["u"].sum(),
            "u": phi["d"] * x["u"],
        }

    phi = {"d": normal(2, seed=10).exp(), "c": torch.tensor(0.5, dtype=F64)}
    b = {"u": normal(2, seed=11), "v": normal(3, 2, seed=12)}
    factor = torch.tensor(3.0, dtype=F64)

    def solution(phi: Any, b: Any, factor: Tensor) -> Any:
        return bilevel.linear_solve(matvec, phi, b, args=(factor,))

    def exact(phi: Any, b: Any, factor: Tensor) -> Any:
        u = b["u"] / phi["d"]
        return {"u": u, "v": (b["v"] - phi["c"] * u.sum()) / factor}

    assert_near(solution(phi, b, factor), exact(phi, b, factor))

    def of(solved: Function) -> Function:
        return lambda *inputs: sum((x**2).sum() for x in solved(*inputs).values())

    for take in (grad, hessian):
        assert_near(
            take(of(solution), (0, 1, 2))(phi, b, factor),
            take(of(exact), (0, 1, 2))(phi, b, factor),
        )


def test_there_may_be_no_phi_and_the_matrix_be_constant() -> None:
    solution = lambda b: bilevel.linear_solve(lambda _, x: A @ x, (), b)  # noqa: E731
    assert_near(jacrev(solution)(B), torch.linalg.inv(A))


def test_a_symmetric_system_too_large_to_be_dense_is_solved_by_products() -> None:
    n = 200
    b, phi = normal(n, seed=13), torch.linspace(1, 4, n, dtype=F64)
    products = []

    def matvec(phi: Tensor, x: Tensor) -> Tensor:
        products.append(x)
        return phi * x + 0.1 * x.sum() / n

    def solution(phi: Tensor, **options: Any) -> Tensor:
        options = {"symmetric": True, "solver": bilevel.CG(rtol=1e-12), **options}
        return bilevel.linear_solve(matvec, phi, b, **options)

    exact = lambda phi: torch.linalg.inv(phi.diag() + 0.1 / n) @ b  # noqa: E731
    assert_near(
        grad(lambda p: outer(solution(p)[:3]))(phi), grad(lambda p: outer(exact(p)[:3]))(phi)
    )
    cold = len(products)
    assert cold < n
    products.clear()
    found = solution(phi, initial=exact(phi))
    assert_near(found, exact(phi))
    assert len(products) <= 5  # zero, that of the guess, and what tells whether it has arrived


def test_a_first_guess_changes_no_derivative() -> None:
    guess = (B / 3).requires_grad_()
    phi = A.clone().requires_grad_()
    found = linear(phi, B, initial=guess, solver=bilevel.GMRES(rtol=1e-13))
    slopes = torch.autograd.grad(outer(found[:3]), (phi, guess), allow_unused=True)
    assert_near(slopes[0], grad(lambda phi: outer(by_inverse(phi, B)[:3]))(A))
    assert slopes[1] is None
    batched = vmap(lambda guess: linear(A, B, initial=guess))(ROWS)
    assert_near(batched, by_inverse(A, B).expand(3, 4))


class NormalEquations(bilevel.Solver):
    """A solver that needs products with the transpose."""

    def compute(self, operator: Any, rhs: Tensor, target: Tensor, state: Any) -> Outcome:
        matrix = torch.stack(
            [operator.rows_transposed(row[None])[0] for row in torch.eye(4).to(rhs)]
        )
        value = torch.linalg.lstsq(matrix, rhs.T).solution.T
        zero = torch.zeros(len(rhs), dtype=torch.long)
        return Outcome(value, zero, zero, torch.full((len(rhs),), torch.inf, dtype=F64))


def test_a_solver_may_ask_for_products_with_the_transpose() -> None:
    assert_near(linear(A, B, solver=NormalEquations()), by_inverse(A, B))


def test_a_product_that_is_not_linear_is_refused() -> None:
    affine = lambda phi, x: phi @ x + 1  # noqa: E731
    with pytest.raises(
        bilevel.InputError, match=r"matvec\(phi, 0\) has an entry of size 1.00e\+00"
    ):
        bilevel.linear_solve(affine, A, B)
    with pytest.raises(bilevel.InputError, match="not linear in x"):
        vmap(lambda b: bilevel.linear_solve(affine, A, b))(ROWS)


def test_what_does_not_fit_a_linear_solve_is_refused() -> None:
    with pytest.raises(bilevel.InputError, match=r"what matvec returned has shape \(2,\), but b"):
        bilevel.linear_solve(lambda phi, x: x[:2], A, B)
    with pytest.raises(bilevel.InputError, match=r"b is torch\.float32.*phi is torch\.float64"):
        linear(A, B.float())
    with pytest.raises(bilevel.InputError, match=r"initial has shape \(3,\), but b has \(4,\)"):
        linear(A, B, initial=PHI)
    with pytest.raises(bilevel.InputError, match="CG needs a symmetric operator"):
        linear(A, B, solver=bilevel.CG())
    with pytest.raises(bilevel.InputError, match="matvec must be a function"):
        bilevel.linear_solve(A, A, B)  # type: ignore[arg-type]
    with pytest.raises(bilevel.InputError, match="args is a Tensor"):
        linear(A, B, args=B)
    with pytest.raises(bilevel.NonFiniteError, match="b holds a NaN"):
        linear(A, B * torch.nan)
    lost = A.clone().requires_grad_()
    with pytest.raises(bilevel.InputError, match="part of neither phi nor args"):
        bilevel.linear_solve(lambda phi, x: lost @ x, (), B)
    with pytest.raises(bilevel.TransformError, match="part of neither phi nor args"):
        grad(lambda lost: bilevel.linear_solve(lambda phi, x: lost @ x, (), B).sum())(A)
    with pytest.raises(
        bilevel.TransformError, match=r"matvec closes over a tensor that torch\.func"
    ):
        vmap(lambda lost: bilevel.linear_solve(lambda phi, x: lost @ x, (), B))(torch.stack([A]))


def test_a_failed_solve_is_reported_as_asked() -> None:
    one = bilevel.GMRES(max_steps=1)
    with pytest.warns(bilevel.ConvergenceWarning, match="GMRES: BUDGET"):
        linear(A, B, solver=one)
    with pytest.raises(bilevel.SolveError, match="GMRES: BUDGET"):
        linear(A, B, solver=one, on_failure="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(A, B, solver=one, on_failure="ignore")


def test_a_matrix_that_is_symmetric_only_in_word_is_reported() -> None:
    with pytest.warns(bilevel.ConvergenceWarning):
        linear(A, B, symmetric=True)


def test_a_system_of_spd_form_keeps_its_gradient_under_every_symmetric_solver() -> None:
    matrix = spd(4, seed=14)
    for solver in (bilevel.CG(rtol=1e-13), bilevel.MINRES(rtol=1e-13)):
        options: dict[str, Any] = {"solver": solver, "symmetric": True}
        found = grad(lambda b, o=options: outer(linear(matrix, b, **o)[:3]))(B)
        assert_near(found, grad(lambda b: outer(by_inverse(matrix, b)[:3]))(B))


def test_an_empty_batch_is_refused() -> None:
    solve = torch.func.vmap(lambda b: bilevel.linear_solve(lambda p, x: 2 * x, (), b))
    with pytest.raises(bilevel.InputError, match="empty batch"):
        solve(torch.zeros(0, 3))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_argument_is_a_constant(layout: torch.layout) -> None:
    b = B.clone().requires_grad_()
    found, wanted = (
        bilevel.linear_solve(lambda _, x, M: M @ x, (), b, args=(M,))
        for M in (A.to_sparse(layout=layout), A)
    )
    assert_near(found, wanted)
    assert_near(torch.autograd.grad(found.sum(), b)[0], torch.autograd.grad(wanted.sum(), b)[0])
    phi = spd(4, seed=3).requires_grad_()
    attached = bilevel.argmin(
        lambda p, x, M: x @ p @ x / 2 - (M @ x).sum(),
        phi,
        torch.linalg.solve(phi, A.sum(0)).detach(),
        args=(A.to_sparse(layout=layout),),
    )
    wanted = torch.linalg.solve((phi + phi.T) / 2, A.sum(0))
    one, other = (torch.autograd.grad(x.square().sum(), phi)[0] for x in (attached, wanted))
    assert_near((one + one.T) / 2, other)


def test_every_product_of_a_solve_sees_the_same_random_numbers_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(4, dtype=F64)
    untouched = Untouched(norm)

    def matvec(phi: Tensor, x: Tensor) -> Tensor:
        norm(phi)
        return phi @ x + torch.nn.functional.dropout(torch.ones_like(x)) * x

    x = bilevel.linear_solve(matvec, A, B, solver=bilevel.GMRES(rtol=1e-12))
    untouched.check()
    assert_near(matvec(A, x), B)
