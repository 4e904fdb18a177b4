"""Linear operators: what a solver multiplies by, and the algebra between them.

Inside the package an operator acts on *rows*: it maps ``[k, n]`` to ``[k, n]``, one system per row.
An operator with ``batch`` set holds a different matrix for each row (what ``vmap`` makes of it).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel._tree import Layout, Tree
from bilevel.errors import InputError

if TYPE_CHECKING:
    import scipy.sparse.linalg


class LinearOperator(abc.ABC):
    """A square linear map known by its products.

    Args:
        size: n, for an n x n operator.
        dtype: floating dtype of what it acts on.
        device: device of what it acts on.
        symmetric: whether it equals its transpose. CG, MINRES, Chebyshev and Nystrom need it.
        layout: how a tree lies in the flat vector, for operators that also act on trees.
        batch: None for one matrix; B when row i is multiplied by the i-th of B matrices.

    Example:
        >>> A = Matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> (A + 0.5 * Identity(2)) @ torch.tensor([1.0, 0.0])
        tensor([2.5000, 1.0000])
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        symmetric: bool,
        layout: Layout | None = None,
        batch: int | None = None,
    ) -> None:
        self.size = size
        self.dtype = dtype
        self.device = torch.device(device)
        self.symmetric = symmetric
        self.layout = layout
        self.batch = batch

    @abc.abstractmethod
    def rows(self, rows: Tensor) -> Tensor:
        """``A v`` for every row v of ``[k, n]``."""

    @abc.abstractmethod
    def rows_transposed(self, rows: Tensor) -> Tensor:
        """``A' v`` for every row v of ``[k, n]``."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""
        return (self.size, self.size)

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        return self if self.symmetric else _Transposed(self)

    def __matmul__(self, other: Any) -> Any:
        """``A @ v`` for a vector ``[n]``, columns ``[n, k]``, or a tree of its layout."""
        rows, back = as_rows(self, other, "the operand")
        return back(self.rows(rows))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-1.0) * other if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: float) -> LinearOperator:
        return _Scaled(self, float(factor)) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> LinearOperator:
        return self * (1.0 / factor)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def to_dense(self) -> Tensor:
        """The matrix ``[n, n]`` (``[B, n, n]`` for a batched operator), by n products."""
        identity = torch.eye(self.size, dtype=self.dtype, device=self.device)
        if self.batch is None:
            return self.rows(identity).T.contiguous()
        columns = [self.rows(unit.expand(self.batch, -1)) for unit in identity]
        return torch.stack(columns, dim=-1)

    def diagonal(self) -> Tensor:
        """The diagonal ``[n]`` (``[B, n]`` for a batched operator), by n products."""
        return self.to_dense().diagonal(dim1=-2, dim2=-1)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The same operator for ``scipy.sparse.linalg`` (NumPy arrays in and out, on the CPU).

        Raises:
            ImportError: SciPy is not installed.

        Example:
            >>> import scipy.sparse.linalg
            >>> A = Matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
            >>> x, info = scipy.sparse.linalg.cg(A.to_scipy(), [3.0, 4.0])
            >>> [round(float(v), 6) for v in x]
            [1.0, 1.0]
        """
        from bilevel.interop import to_scipy

        return to_scipy(self)

    def __repr__(self) -> str:
        kind = "symmetric" if self.symmetric else "general"
        return f"{type(self).__name__}(n={self.size}, {kind}, {self.dtype}, {self.device})"


class Matrix(LinearOperator):
    """A dense matrix as an operator.

    Args:
        matrix: ``[n, n]``, or ``[B, n, n]`` for one matrix per row.
        symmetric: None (default) compares the matrix with its transpose, to rounding.

    Raises:
        InputError: not square, not floating, not finite, or it requires grad.
    """

    def __init__(self, matrix: Tensor, symmetric: bool | None = None) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise InputError(f"matrix must be a floating tensor, found {_kind(matrix)}.")
        if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
            raise InputError(
                f"matrix has shape {tuple(matrix.shape)}; wanted [n, n], or [B, n, n] for a batch."
            )
        _refuse_grad(matrix, "matrix")
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("matrix holds a NaN or an infinity.")
        if symmetric is None:
            scale = float(matrix.abs().max()) if matrix.numel() else 0.0
            gap = float((matrix - matrix.mT).abs().max()) if matrix.numel() else 0.0
            symmetric = gap <= 8 * torch.finfo(matrix.dtype).eps * scale
        batch = matrix.shape[0] if matrix.ndim == 3 else None
        super().__init__(
            matrix.shape[-1], matrix.dtype, matrix.device, symmetric=symmetric, batch=batch
        )
        self._matrix = matrix

    def rows(self, rows: Tensor) -> Tensor:
        return _times(self._matrix, rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return _times(self._matrix.mT, rows)

    def to_dense(self) -> Tensor:
        return self._matrix.clone()


class Diagonal(LinearOperator):
    """A diagonal matrix, given by its diagonal ``[n]``."""

    def __init__(self, diagonal: Tensor) -> None:
        if not isinstance(diagonal, Tensor) or not diagonal.is_floating_point():
            raise InputError(f"diagonal must be a floating tensor, found {_kind(diagonal)}.")
        if diagonal.ndim != 1:
            raise InputError(f"diagonal has shape {tuple(diagonal.shape)}; wanted [n].")
        _refuse_grad(diagonal, "diagonal")
        super().__init__(diagonal.shape[0], diagonal.dtype, diagonal.device, symmetric=True)
        self._diagonal = diagonal

    def rows(self, rows: Tensor) -> Tensor:
        return rows * self._diagonal

    rows_transposed = rows

    def diagonal(self) -> Tensor:
        return self._diagonal.clone()


class Identity(Diagonal):
    """The identity of size n; ``A + damping * Identity(n)`` damps A.

    Args:
        size: n.
        dtype: default float32.
        device: default CPU.
    """

    def __init__(
        self, size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if size < 0:
            raise InputError(f"size must be at least 0, found {size}.")
        super().__init__(torch.ones(size, dtype=dtype, device=device))


class FunctionOperator(LinearOperator):
    """An operator given by a function ``v [n] -> A v [n]``.

    Args:
        matvec: the product.
        size: n.
        transposed: the product with A', if A is not symmetric and A' is needed.
        symmetric: whether A equals A' (default False: nothing is assumed).
        dtype: default float32.
        device: default CPU.

    Raises:
        InputError: a product has another shape or dtype than its operand.

    Example:
        >>> A = FunctionOperator(lambda v: 2 * v, 3, symmetric=True)
        >>> A @ torch.ones(3)
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        size: int,
        *,
        transposed: Callable[[Tensor], Tensor] | None = None,
        symmetric: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(size, dtype, device, symmetric=symmetric)
        self._matvec = matvec
        self._transposed = matvec if symmetric else transposed

    def rows(self, rows: Tensor) -> Tensor:
        return torch.stack([self._checked(self._matvec, row) for row in rows])

    def rows_transposed(self, rows: Tensor) -> Tensor:
        if self._transposed is None:
            raise InputError(
                "this FunctionOperator knows no product with its transpose; give transposed=."
            )
        return torch.stack([self._checked(self._transposed, row) for row in rows])

    def _checked(self, product: Callable[[Tensor], Tensor], row: Tensor) -> Tensor:
        value = product(row)
        if not isinstance(value, Tensor) or value.shape != row.shape or value.dtype != row.dtype:
            raise InputError(
                f"matvec returned {_kind(value)}; wanted {row.dtype} of shape {tuple(row.shape)}."
            )
        return value


class _Transposed(LinearOperator):
    def __init__(self, base: LinearOperator) -> None:
        super().__init__(
            base.size,
            base.dtype,
            base.device,
            symmetric=False,
            layout=base.layout,
            batch=base.batch,
        )
        self._base = base

    @property
    def T(self) -> LinearOperator:
        return self._base

    def rows(self, rows: Tensor) -> Tensor:
        return self._base.rows_transposed(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return self._base.rows(rows)

    def to_dense(self) -> Tensor:
        return self._base.to_dense().mT.contiguous()


class _Sum(LinearOperator):
    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        for name in ("size", "dtype", "device"):
            if getattr(left, name) != getattr(right, name):
                raise InputError(
                    f"cannot add operators of {name} {getattr(left, name)} and "
                    f"{getattr(right, name)}: {left!r} + {right!r}."
                )
        if left.batch and right.batch and left.batch != right.batch:
            raise InputError(f"cannot add operators of batch {left.batch} and {right.batch}.")
        super().__init__(
            left.size,
            left.dtype,
            left.device,
            symmetric=left.symmetric and right.symmetric,
            layout=left.layout or right.layout,
            batch=left.batch or right.batch,
        )
        self._left, self._right = left, right

    def rows(self, rows: Tensor) -> Tensor:
        return self._left.rows(rows) + self._right.rows(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return self._left.rows_transposed(rows) + self._right.rows_transposed(rows)


class _Scaled(LinearOperator):
    def __init__(self, base: LinearOperator, factor: float) -> None:
        super().__init__(
            base.size,
            base.dtype,
            base.device,
            symmetric=base.symmetric,
            layout=base.layout,
            batch=base.batch,
        )
        self._base, self._factor = base, factor

    def rows(self, rows: Tensor) -> Tensor:
        return self._factor * self._base.rows(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return self._factor * self._base.rows_transposed(rows)


class Damped(LinearOperator):
    """``A + damping * I``, in place on the product: one vector operation more than A.

    Args:
        base: A.
        damping: at least 0.
    """

    def __init__(self, base: LinearOperator, damping: float) -> None:
        super().__init__(
            base.size,
            base.dtype,
            base.device,
            symmetric=base.symmetric,
            layout=base.layout,
            batch=base.batch,
        )
        self._base, self._damping = base, check_damping(damping)

    def rows(self, rows: Tensor) -> Tensor:
        return torch.add(self._base.rows(rows), rows, alpha=self._damping)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return torch.add(self._base.rows_transposed(rows), rows, alpha=self._damping)


def damped(operator: LinearOperator, damping: float) -> LinearOperator:
    """``A + damping * I``; A itself when damping is 0."""
    return Damped(operator, damping) if check_damping(damping) else operator


def check_damping(damping: float) -> float:
    """The damping, refused when negative or not finite."""
    if not 0.0 <= damping < float("inf"):
        raise InputError(f"damping must be a finite number of at least 0, found {damping}.")
    return float(damping)


def as_rows(
    operator: LinearOperator, value: Any, argument: str
) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """A vector, columns or a tree as rows ``[k, n]``, and the way back.

    Raises:
        InputError: it fits the operator in none of these forms.
    """
    n = operator.size
    if isinstance(value, Tensor) and value.ndim in (1, 2) and value.shape[0] == n:
        found = (value.dtype, value.device)
        if found != (operator.dtype, operator.device):
            raise InputError(
                f"{argument} is {found[0]} on {found[1]}; the operator is {operator.dtype} on "
                f"{operator.device}."
            )
        if value.ndim == 1:
            return value.unsqueeze(0), lambda rows: rows.squeeze(0)
        return value.T.contiguous(), lambda rows: rows.T.contiguous()
    if operator.layout is None:
        raise InputError(
            f"{argument} is {_kind(value)}; wanted a vector [{n}] or columns [{n}, k] for "
            f"{operator!r}."
        )
    layout = operator.layout
    leaves = layout.matching_leaves(value, argument, "what the operator acts on")
    return layout.join(leaves).unsqueeze(0), lambda rows: layout.unflatten(rows.squeeze(0))


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    if matrix.ndim == 2:
        return rows @ matrix.mT
    return torch.einsum("bij,bj->bi", matrix, rows)


def _refuse_grad(tensor: Tensor, argument: str) -> None:
    if tensor.requires_grad:
        raise InputError(
            f"{argument} requires grad, but a solve with it is not differentiated. Use "
            "bilevel.root for a differentiable solve, or detach it."
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
