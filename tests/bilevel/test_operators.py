"""Linear operators: their algebra, batches, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

import bilevel
from tests.bilevel.arrays import normal, spd
from tests.bilevel.shapes import SHAPES

F64 = torch.float64
SQUARE = normal(6, 6, seed=1)
OTHER = normal(6, 6, seed=2)
SPD = spd(6, 3)


def field(x: Tensor) -> Tensor:
    """A vector field whose Jacobian is not symmetric."""
    return torch.tanh(SQUARE @ x) + x * x.roll(1)


def objective(t: Tensor) -> Tensor:
    return torch.nn.functional.softplus(OTHER @ t).sum() + (t**4).sum() / 4


POINT = normal(6, seed=4)
OPERATORS: dict[str, tuple[bilevel.LinearOperator, Tensor]] = {
    "matrix": (bilevel.Matrix(SQUARE), SQUARE),
    "symmetric matrix": (bilevel.Matrix(SPD), SPD),
    "diagonal": (bilevel.Diagonal(POINT), torch.diag(POINT)),
    "identity": (bilevel.Identity(6, dtype=F64), torch.eye(6, dtype=F64)),
    "function": (
        bilevel.FunctionOperator(
            lambda v: SQUARE @ v, 6, transposed=lambda v: SQUARE.T @ v, dtype=F64
        ),
        SQUARE,
    ),
    "symmetric function": (
        bilevel.FunctionOperator(lambda v: SPD @ v, 6, symmetric=True, dtype=F64),
        SPD,
    ),
    "hessian": (bilevel.hessian(objective, POINT), torch.func.hessian(objective)(POINT)),
    "jacobian": (bilevel.jacobian(field, POINT), torch.func.jacrev(field)(POINT)),
    "scipy": (bilevel.from_scipy(scipy.sparse.csr_array(SQUARE.numpy())), SQUARE),
    "transpose": (bilevel.Matrix(SQUARE).T, SQUARE.T),
    "sum": (bilevel.Matrix(SQUARE) + bilevel.Matrix(SPD), SQUARE + SPD),
    "difference": (bilevel.Matrix(SQUARE) - bilevel.Matrix(SPD), SQUARE - SPD),
    "multiple": (-2.5 * bilevel.Matrix(SQUARE) / 2, -1.25 * SQUARE),
    "damped": (
        bilevel.Matrix(SPD) + 0.5 * bilevel.Identity(6, dtype=F64),
        SPD + 0.5 * torch.eye(6, dtype=F64),
    ),
    "expression": (
        (2 * bilevel.Matrix(SQUARE).T - bilevel.Diagonal(POINT)).T + bilevel.Matrix(SPD) * 3,
        2 * SQUARE - torch.diag(POINT) + 3 * SPD,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_the_matrix_it_says_it_is(name: str) -> None:
    A, matrix = OPERATORS[name]
    v, columns = normal(6, seed=5), normal(6, 3, seed=6)
    assert A.shape == (6, 6)
    torch.testing.assert_close(A.to_dense(), matrix)
    torch.testing.assert_close(A.diagonal(), matrix.diagonal())
    torch.testing.assert_close(A @ v, matrix @ v)
    torch.testing.assert_close(A @ columns, matrix @ columns)
    torch.testing.assert_close(A @ columns[:, :1], matrix @ columns[:, :1])


@pytest.mark.parametrize("name", OPERATORS)
def test_every_transpose_is_the_transposed_matrix(name: str) -> None:
    A, matrix = OPERATORS[name]
    v, columns = normal(6, seed=5), normal(6, 3, seed=6)
    torch.testing.assert_close(A.T.to_dense(), matrix.T)
    torch.testing.assert_close(A.T.diagonal(), matrix.diagonal())
    torch.testing.assert_close(A.T @ v, matrix.T @ v)
    torch.testing.assert_close(A.T @ columns, matrix.T @ columns)
    torch.testing.assert_close(A.T.T @ v, matrix @ v)
    assert (A.T is A) == A.symmetric


@pytest.mark.parametrize("name", OPERATORS)
def test_every_transpose_is_the_adjoint(name: str) -> None:
    A, _ = OPERATORS[name]
    u, v = normal(6, seed=7), normal(6, seed=8)
    torch.testing.assert_close(u @ (A @ v), (A.T @ u) @ v)


@pytest.mark.parametrize("name", OPERATORS)
def test_symmetry_is_known_where_it_holds_and_claimed_nowhere_else(name: str) -> None:
    A, matrix = OPERATORS[name]
    assert A.symmetric == torch.allclose(matrix, matrix.T)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_product_changes_nothing_it_is_given(name: str) -> None:
    v = normal(6, seed=5)
    before = v.clone()
    product = OPERATORS[name][0] @ v
    product += 1.0
    assert torch.equal(v, before)
    torch.testing.assert_close(OPERATORS[name][0] @ v, product - 1.0)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_dense_copy_can_be_written_to_without_touching_the_operator(name: str) -> None:
    A, matrix = OPERATORS[name]
    A.to_dense().zero_()
    torch.testing.assert_close(A.to_dense(), matrix)
    A.T.to_dense().zero_()
    torch.testing.assert_close(A.to_dense(), matrix)


def test_operators_of_trees_take_and_return_trees() -> None:
    shape = SHAPES[-1]
    H = bilevel.hessian(lambda tree: objective(shape.unpack(tree)), shape.pack(POINT))
    matrix, v = torch.func.hessian(objective)(POINT), normal(6, seed=5)
    product = H @ shape.pack(v)
    assert product["deep"]["empty"].shape == (0,)
    assert product["scalar"].shape == ()
    torch.testing.assert_close(shape.unpack(product), matrix @ v)
    damped = H + 2 * bilevel.Identity(6, dtype=F64)
    torch.testing.assert_close(shape.unpack(damped @ shape.pack(v)), matrix @ v + 2 * v)
    solution = bilevel.solve(damped, shape.pack(v), bilevel.MINRES(rtol=1e-12))
    torch.testing.assert_close(shape.unpack(damped @ solution.value), v)


BATCH = torch.stack([spd(4, seed) + normal(4, 4, seed=seed) for seed in range(3)])


def test_a_batch_of_matrices_multiplies_a_vector_each() -> None:
    A = bilevel.Matrix(BATCH)
    vectors = normal(3, 4, seed=5)
    torch.testing.assert_close(A @ vectors, torch.einsum("bij,bj->bi", BATCH, vectors))
    torch.testing.assert_close(A.T @ vectors, torch.einsum("bji,bj->bi", BATCH, vectors))
    torch.testing.assert_close(A.to_dense(), BATCH)
    torch.testing.assert_close(A.T.to_dense(), BATCH.mT)
    torch.testing.assert_close(A.diagonal(), BATCH.diagonal(dim1=1, dim2=2))
    doubled = A + 2 * bilevel.Identity(4, dtype=F64)
    torch.testing.assert_close(doubled.to_dense(), BATCH + 2 * torch.eye(4, dtype=F64))


@pytest.mark.parametrize("operand", [normal(4, seed=1), normal(2, 4, seed=1), normal(4, 3, seed=1)])
def test_a_batch_of_matrices_refuses_another_number_of_vectors(operand: Tensor) -> None:
    with pytest.raises(bilevel.InputError, match=r"wanted \[3, 4\], a vector for each of the 3"):
        _ = bilevel.Matrix(BATCH) @ operand


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bilevel.Matrix(torch.ones(2, 3)), r"matrix has shape \(2, 3\); wanted \[n, n\]"),
        (lambda: bilevel.Matrix(torch.ones(3)), r"matrix has shape \(3,\)"),
        (lambda: bilevel.Matrix(torch.ones(2, 2, dtype=torch.int64)), "floating"),
        (lambda: bilevel.Matrix([[1.0]]), "a list"),  # type: ignore[arg-type]
        (lambda: bilevel.Matrix(torch.tensor([[math.nan]])), "NaN or an infinity"),
        (lambda: bilevel.Matrix(torch.ones(2, 2).requires_grad_()), "matrix requires grad"),
        (lambda: bilevel.Diagonal(torch.ones(2, 2)), r"diagonal has shape \(2, 2\)"),
        (lambda: bilevel.Diagonal(torch.ones(2).requires_grad_()), "diagonal requires grad"),
        (lambda: bilevel.Diagonal(torch.ones(2, dtype=torch.int32)), "floating"),
        (lambda: bilevel.Identity(-1), "size must be at least 0"),
        (lambda: bilevel.Matrix(SPD) + bilevel.Identity(5, dtype=F64), "size 6 and 5"),
        (
            lambda: bilevel.Matrix(SPD) + bilevel.Identity(6),
            "dtype torch.float64 and torch.float32",
        ),
        (
            lambda: bilevel.Matrix(BATCH) + bilevel.Matrix(BATCH[:2]),
            "batch 3 and 2",
        ),
        (lambda: bilevel.Matrix(SPD) @ torch.ones(6), "the operand is torch.float32"),
        (lambda: bilevel.Matrix(SPD) @ torch.ones(5, dtype=F64), r"wanted a vector \[6\]"),
        (lambda: bilevel.Matrix(SPD) @ [1.0], "a list"),
        (lambda: bilevel.Matrix(SPD) @ torch.ones(6, 1, 1, dtype=F64), "shape"),
        (lambda: bilevel.Matrix(BATCH).to_scipy(), "one at a time"),
        (lambda: bilevel.Identity(2, dtype=torch.bfloat16).to_scipy(), "bfloat16"),
        (lambda: bilevel.from_scipy(np.ones((2, 3))), r"shape \(2, 3\); wanted a square"),
        (lambda: bilevel.from_scipy(1j * np.ones((2, 2))), "complex"),
        (
            lambda: bilevel.FunctionOperator(lambda v: v, 3).T @ torch.ones(3),
            "give transposed=",
        ),
        (
            lambda: bilevel.FunctionOperator(lambda v: v[:2], 3) @ torch.ones(3),
            r"matvec returned a torch.float32 tensor of shape \(2,\)",
        ),
        (
            lambda: bilevel.FunctionOperator(lambda v: v.double(), 3) @ torch.ones(3),
            "matvec returned a torch.float64",
        ),
        (
            lambda: bilevel.FunctionOperator(lambda v: 1.0, 3) @ torch.ones(3),  # type: ignore[arg-type, return-value]
            "matvec returned a float",
        ),
        (lambda: bilevel.jacobian(lambda x: x[:2], POINT), r"has shape \(2,\)"),
        (lambda: bilevel.jacobian(lambda x: [x], POINT), "another tree structure"),
        (lambda: bilevel.hessian(lambda t: t, POINT), r"shape \(6,\); wanted a 0-d"),
        (
            lambda: bilevel.hessian(lambda t: objective(t["a"]), {"a": POINT}) @ {"b": POINT},
            "another tree structure",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        make()


@pytest.mark.parametrize(
    "combine",
    [lambda A: A + 1.0, lambda A: A - SPD, lambda A: A * A, lambda A: "2" * A],
    ids=["plus a number", "minus a tensor", "times an operator", "times a string"],
)
def test_arithmetic_without_meaning_is_a_type_error(combine: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        combine(bilevel.Matrix(SPD))


def test_an_operator_says_what_it_is() -> None:
    assert repr(bilevel.Matrix(SPD)) == "Matrix(n=6, symmetric, torch.float64, cpu)"
    assert repr(bilevel.Matrix(SQUARE)) == "Matrix(n=6, general, torch.float64, cpu)"


def test_a_matrix_symmetric_to_rounding_is_symmetric_and_a_claim_is_believed() -> None:
    off = SPD.clone()
    off[0, 1] *= 1 + 4e-16
    assert bilevel.Matrix(off).symmetric
    off[0, 1] *= 1 + 1e-6
    assert not bilevel.Matrix(off).symmetric
    assert bilevel.Matrix(off, symmetric=True).symmetric
