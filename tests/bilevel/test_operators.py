"""Linear operators: their algebra, their curvature, and the bridge to SciPy."""

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
from tests.bilevel.problems import (
    LABELS,
    SHAPES,
    Shape,
    X,
    data_weighting,
    error,
    flat,
    logistic,
    normal,
    spd,
    with_spectrum,
)

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


# --- curvature ---------------------------------------------------------------------------------


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


# --- batches -----------------------------------------------------------------------------------

BATCH = torch.stack([spd(4, seed) + normal(4, 4, seed=seed) for seed in range(3)])


def test_a_batch_of_matrices_is_a_matrix_for_each_column() -> None:
    A = bilevel.Matrix(BATCH)
    columns = normal(4, 3, seed=5)
    wanted = torch.einsum("bij,jb->ib", BATCH, columns)
    torch.testing.assert_close(A @ columns, wanted)
    torch.testing.assert_close(A.T @ columns, torch.einsum("bji,jb->ib", BATCH, columns))
    torch.testing.assert_close(A.to_dense(), BATCH)
    torch.testing.assert_close(A.T.to_dense(), BATCH.mT)
    torch.testing.assert_close(A.diagonal(), BATCH.diagonal(dim1=1, dim2=2))
    doubled = A + 2 * bilevel.Identity(4, dtype=F64)
    torch.testing.assert_close(doubled.to_dense(), BATCH + 2 * torch.eye(4, dtype=F64))


@pytest.mark.parametrize("operand", [normal(4, seed=1), normal(4, 2, seed=1)])
def test_a_batch_of_matrices_refuses_another_number_of_columns(operand: Tensor) -> None:
    with pytest.raises(bilevel.InputError, match="a batch of 3 matrices takes one each"):
        _ = bilevel.Matrix(BATCH) @ operand


# --- to and from SciPy -------------------------------------------------------------------------

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
    H = bilevel.hessian(objective, POINT)
    largest = scipy.sparse.linalg.eigsh(H.to_scipy(), k=1, return_eigenvectors=False)
    wanted = torch.linalg.eigvalsh(torch.func.hessian(objective)(POINT))[-1]
    assert float(largest[0]) == pytest.approx(float(wanted))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"scipy"}))
def test_there_and_back_is_the_same_operator(name: str) -> None:
    A, matrix = OPERATORS[name]
    back = bilevel.from_scipy(A.to_scipy(), symmetric=A.symmetric)
    torch.testing.assert_close(back.to_dense(), matrix)
    torch.testing.assert_close(back.T.to_dense(), matrix.T)


def test_scipy_gets_both_directions_and_several_columns() -> None:
    A = bilevel.Matrix(SQUARE).to_scipy()
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
    found = bilevel.Matrix(SQUARE).to_scipy() @ awkward
    np.testing.assert_allclose(found, SQUARE.numpy() @ awkward)
    assert found.dtype == np.float64


def test_float32_operators_stay_float32_both_ways() -> None:
    A = bilevel.Matrix(SPD.float())
    assert A.to_scipy().dtype == np.float32
    assert (A.to_scipy() @ np.ones(6, dtype=np.float32)).dtype == np.float32
    back = bilevel.from_scipy(A.to_scipy(), symmetric=True, dtype=torch.float32)
    assert (back @ torch.ones(6)).dtype == torch.float32


def test_products_through_parameters_that_require_grad_reach_scipy_detached() -> None:
    weight = SPD.clone().requires_grad_()
    A = bilevel.FunctionOperator(lambda v: weight @ v, 6, symmetric=True, dtype=F64)
    np.testing.assert_allclose(A.to_scipy() @ np.ones(6), SPD.numpy().sum(1))
    v = torch.ones(6, dtype=F64, requires_grad=True)
    found = bilevel.from_scipy(SPD.numpy(), symmetric=True) @ v
    torch.testing.assert_close(found, SPD.sum(1))


# --- refusals ----------------------------------------------------------------------------------


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
    "make",
    [
        lambda: bilevel.Matrix(SPD) + 1.0,
        lambda: bilevel.Matrix(SPD) - SPD,
        lambda: bilevel.Matrix(SPD) * bilevel.Matrix(SPD),
        lambda: "2" * bilevel.Matrix(SPD),
    ],
)
def test_arithmetic_without_meaning_is_a_type_error(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        make()


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
