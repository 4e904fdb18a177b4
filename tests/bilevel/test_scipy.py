"""Operators from here solved by SciPy, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, normal, spd, with_spectrum

F64 = torch.float64
SQUARE = normal(6, 6, seed=1)
SPD = spd(6, 3)


SOLVE: dict[str, tuple[Callable[..., Any], bilevel.Solver]] = {
    "cg": (scipy.sparse.linalg.cg, bilevel.CG(rtol=1e-12)),
    "gmres": (scipy.sparse.linalg.gmres, bilevel.GMRES(rtol=1e-12)),
    "minres": (scipy.sparse.linalg.minres, bilevel.MINRES(rtol=1e-12)),
    "bicgstab": (scipy.sparse.linalg.bicgstab, bilevel.BiCGStab(rtol=1e-12)),
}


def matrix_for(name: str) -> Tensor:
    if name == "minres":
        return with_spectrum(torch.linspace(-2.5, 8, 12, dtype=F64), 3)
    if name == "cg":
        return spd(12, 3)
    return spd(12, 3) + (normal(12, 12, seed=4) - normal(12, 12, seed=4).T) / 3


@pytest.mark.parametrize("name", SOLVE)
def test_scipy_solves_an_operator_from_here(name: str) -> None:
    matrix, b = matrix_for(name), normal(12, seed=5)
    found, status = SOLVE[name][0](bilevel.Matrix(matrix).to_scipy(), b.numpy(), rtol=1e-12)
    assert status == 0
    assert error(torch.from_numpy(found), torch.linalg.solve(matrix, b)) < 1e-9


@pytest.mark.parametrize("name", SOLVE)
@pytest.mark.parametrize("kind", ["operator", "sparse", "dense"])
def test_an_operator_from_scipy_is_solved_here(name: str, kind: str) -> None:
    matrix, b = matrix_for(name), normal(12, seed=5)
    wrap: dict[str, Callable[[np.ndarray], Any]] = {
        "operator": scipy.sparse.linalg.aslinearoperator,
        "sparse": scipy.sparse.csc_array,
        "dense": np.asarray,
    }
    A = bilevel.from_scipy(wrap[kind](matrix.numpy()), symmetric=name in ("cg", "minres"))
    found = bilevel.solve(A, b, SOLVE[name][1])
    assert found.result is bilevel.Result.SUCCESS
    assert error(found.value, torch.linalg.solve(matrix, b)) < 1e-9


def test_scipy_finds_the_eigenvalues_of_a_hessian() -> None:
    objective = lambda t: torch.nn.functional.softplus(SQUARE @ t).sum()  # noqa: E731
    point = normal(6, seed=4)
    H = bilevel.hessian(objective, point)
    largest = scipy.sparse.linalg.eigsh(H.to_scipy(), k=1, return_eigenvectors=False)
    wanted = torch.linalg.eigvalsh(torch.func.hessian(objective)(point))[-1]
    assert float(largest[0]) == pytest.approx(float(wanted))


@pytest.mark.parametrize(
    "A", [bilevel.Matrix(SQUARE), bilevel.Matrix(SPD), 2 * bilevel.Matrix(SQUARE).T], ids=repr
)
def test_there_and_back_is_the_same_operator(A: bilevel.LinearOperator) -> None:
    matrix = A.to_dense()
    back = bilevel.from_scipy(A.to_scipy(), symmetric=A.symmetric)
    torch.testing.assert_close(back.to_dense(), matrix)
    torch.testing.assert_close(back.T.to_dense(), matrix.T)


def test_scipy_gets_both_directions_and_several_columns() -> None:
    A: Any = bilevel.Matrix(SQUARE).to_scipy()
    v, columns = normal(6, seed=5).numpy(), normal(6, 3, seed=6).numpy()
    np.testing.assert_allclose(A @ v, SQUARE.numpy() @ v)
    np.testing.assert_allclose(A.rmatvec(v), SQUARE.numpy().T @ v)
    np.testing.assert_allclose(A @ columns, SQUARE.numpy() @ columns)
    np.testing.assert_allclose(A.rmatmat(columns), SQUARE.numpy().T @ columns)
    np.testing.assert_allclose(A.matvec(v[:, None]), (SQUARE.numpy() @ v)[:, None])


@pytest.mark.parametrize(
    "awkward",
    [
        lambda v: np.broadcast_to(np.ones(1), (6,)),
        lambda v: v[::-1],
        lambda v: np.arange(6),
        lambda v: np.ones(6, dtype=np.float32),
        lambda v: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    ],
    ids=["read-only", "reversed", "integers", "float32", "list"],
)
def test_awkward_arrays_from_scipy_are_taken(awkward: Callable[[np.ndarray], Any]) -> None:
    make: Any = scipy.sparse.linalg.LinearOperator
    v = np.arange(6.0)
    for A in (
        make((6, 6), matvec=awkward, dtype=np.float64),
        make(
            (6, 6),
            matvec=awkward,
            matmat=lambda V: np.asarray(awkward(V[:, 0]))[:, None],
            dtype=np.float64,
        ),
    ):
        found = bilevel.from_scipy(A) @ torch.from_numpy(v)
        np.testing.assert_allclose(found.numpy(), np.asarray(awkward(v)))


@pytest.mark.parametrize(
    "awkward",
    [
        np.broadcast_to(np.ones(1), (6,)),
        np.arange(6.0)[::-1],
        np.arange(6),
        np.ones(6, dtype=np.float32),
        np.arange(12.0)[::2],
    ],
    ids=["read-only", "reversed", "integers", "float32", "strided"],
)
def test_awkward_arrays_to_an_operator_from_here_are_taken(awkward: np.ndarray) -> None:
    A: Any = bilevel.Matrix(SQUARE).to_scipy()
    found = A @ awkward
    np.testing.assert_allclose(found, SQUARE.numpy() @ awkward)
    assert found.dtype == np.float64


def test_float32_operators_stay_float32_both_ways() -> None:
    wrapped: Any = bilevel.Matrix(SPD.float()).to_scipy()
    assert wrapped.dtype == np.float32
    assert (wrapped @ np.ones(6, dtype=np.float32)).dtype == np.float32
    back = bilevel.from_scipy(wrapped, symmetric=True, dtype=torch.float32)
    assert (back @ torch.ones(6)).dtype == torch.float32


def test_products_through_parameters_that_require_grad_reach_scipy_detached() -> None:
    weight = SPD.clone().requires_grad_()
    A = bilevel.FunctionOperator(lambda v: weight @ v, 6, symmetric=True, dtype=F64)
    wrapped: Any = A.to_scipy()
    np.testing.assert_allclose(wrapped @ np.ones(6), SPD.numpy().sum(1))
    v = torch.ones(6, dtype=F64, requires_grad=True)
    found = bilevel.from_scipy(SPD.numpy(), symmetric=True) @ v
    torch.testing.assert_close(found, SPD.sum(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.int64, torch.complex64])
def test_vectors_of_a_kind_that_scipy_lacks_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(bilevel.InputError, match=f"no vectors of {dtype}; use float32 or float64"):
        bilevel.from_scipy(SPD.numpy(), symmetric=True, dtype=dtype)


class Forward(scipy.sparse.linalg.LinearOperator):
    """A product and nothing else."""

    def __init__(self) -> None:
        super().__init__(np.float64, (6, 6))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return SPD.numpy() @ x


def forward() -> Any:
    make: Any = scipy.sparse.linalg.LinearOperator
    return make((6, 6), matvec=lambda v: SPD.numpy() @ v, dtype=np.float64)


@pytest.mark.parametrize(
    "make", [forward, Forward, lambda: 2 * forward(), lambda: forward() + Forward()]
)
def test_a_scipy_operator_without_a_transposed_product_is_told_what_it_needs(
    make: Callable[[], Any],
) -> None:
    v = normal(6, seed=5)
    with pytest.raises(bilevel.InputError, match=r"has no rmatvec.*symmetric=True"):
        bilevel.from_scipy(make()).T @ v
    found = bilevel.from_scipy(make(), symmetric=True).T @ v
    np.testing.assert_allclose(found, make() @ v.numpy())


def test_an_error_inside_a_transposed_product_of_scipy_is_left_as_it_is() -> None:
    def wrong(v: np.ndarray) -> np.ndarray:
        raise TypeError("of the user's own")

    make: Any = scipy.sparse.linalg.LinearOperator
    A = bilevel.from_scipy(make((6, 6), matvec=wrong, rmatvec=wrong, dtype=np.float64))
    with pytest.raises(TypeError, match="of the user's own"):
        A.T @ normal(6, seed=5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_product_is_differentiated_in_its_operand_as_that_of_a_matrix(symmetric: bool) -> None:
    dense = spd(4, seed=1) if symmetric else normal(4, 4, seed=2)
    A, M = bilevel.from_scipy(dense.numpy(), symmetric=symmetric), bilevel.Matrix(dense)
    v = normal(4, seed=3).requires_grad_()
    for op, other in (
        (A, M),
        (A.T, M.T),
        (A + bilevel.Identity(4, dtype=F64), M + bilevel.Identity(4, dtype=F64)),
    ):
        found, wanted = (
            torch.autograd.grad((each @ v).pow(3).sum(), v, create_graph=True)[0]
            for each in (op, other)
        )
        torch.testing.assert_close(found, wanted)
        second, again = (torch.autograd.grad(x.sum(), v)[0] for x in (found, wanted))
        torch.testing.assert_close(second, again)
    tangent = torch.func.jvp(lambda x: A @ x, (v.detach(),), (torch.ones_like(v),))[1]
    torch.testing.assert_close(tangent, dense.sum(1))


def test_a_system_with_a_scipy_operator_in_it_has_the_derivative_of_a_matrix() -> None:
    dense, p = spd(4, seed=4), torch.tensor(2.0, dtype=F64, requires_grad=True)
    found, wanted = (
        torch.autograd.grad(
            bilevel.linear_solve(
                lambda p, x, A=A: A @ x + p * x, p, torch.ones(4, dtype=F64)
            ).sum(),
            p,
        )[0]
        for A in (bilevel.from_scipy(dense.numpy(), symmetric=True), dense)
    )
    torch.testing.assert_close(found, wanted)


def test_a_symmetric_operator_without_rmatvec_is_differentiated() -> None:
    dense = spd(3, seed=5).numpy()
    only: Any = scipy.sparse.linalg.LinearOperator  # whose constructor makes another class
    only = only((3, 3), matvec=lambda x: dense @ x, dtype=dense.dtype)
    v = normal(3, seed=6).requires_grad_()
    A = bilevel.from_scipy(only, symmetric=True)
    torch.testing.assert_close(
        torch.autograd.grad((A @ v).sum(), v)[0], torch.from_numpy(dense.sum(0))
    )


def test_vmap_of_a_product_with_a_scipy_operator_is_refused() -> None:
    A = bilevel.from_scipy(spd(3, seed=7).numpy(), symmetric=True)
    with pytest.raises(bilevel.TransformError, match=r"columns \[n, k\]"):
        torch.func.vmap(lambda v: A @ v)(torch.ones(2, 3, dtype=F64))
