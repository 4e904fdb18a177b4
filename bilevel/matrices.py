"""Operators made of what one has at hand: a matrix, a diagonal, a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bilevel.errors import InputError
from bilevel.operators import LinearOperator, described


class Matrix(LinearOperator):
    """A dense matrix as an operator.

    Args:
        matrix: ``[n, n]``, or ``[B, n, n]`` for a batch, which multiplies and solves ``[B, n]``.
        symmetric: None (default) compares the matrix with its transpose, to rounding.

    Raises:
        InputError: not square, not floating, not finite, or it requires grad.
    """

    def __init__(self, matrix: Tensor, symmetric: bool | None = None) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise InputError(f"matrix must be a floating tensor, found {described(matrix)}.")
        if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2]:
            raise InputError(
                f"matrix has shape {tuple(matrix.shape)}; wanted [n, n], or [B, n, n] for a batch."
            )
        _refuse_grad(matrix, "matrix")
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("matrix holds a NaN or an infinity.")
        if symmetric is None:
            symmetric = _is_symmetric(matrix)
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
            raise InputError(f"diagonal must be a floating tensor, found {described(diagonal)}.")
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
        dtype: default ``torch.get_default_dtype()``.
        device: default CPU.
    """

    def __init__(
        self, size: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
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
        dtype: default ``torch.get_default_dtype()``.
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
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        dtype = torch.get_default_dtype() if dtype is None else dtype
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
        value = product(row.clone())  # a product that works in place must not touch the solver's
        if not isinstance(value, Tensor) or value.shape != row.shape or value.dtype != row.dtype:
            raise InputError(
                f"matvec returned {described(value)}; wanted a {row.dtype} tensor of shape "
                f"{tuple(row.shape)}."
            )
        return value


def _is_symmetric(matrix: Tensor) -> bool:
    """Entry by entry, to rounding on the scale of the entry or of its row and column.

    The largest entry of all would hide what the small ones say.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    scale = torch.maximum(matrix.abs(), matrix.mT.abs())
    scale = torch.maximum(scale, diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2))
    rounding = 8 * torch.finfo(matrix.dtype).eps
    return bool(((matrix - matrix.mT).abs() <= rounding * scale).all())


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    if matrix.ndim == 2:
        return rows @ matrix.mT
    return torch.einsum("bij,bj->bi", matrix, rows)


def _refuse_grad(tensor: Tensor, argument: str) -> None:
    if tensor.requires_grad:
        raise InputError(
            f"{argument} requires grad, but a solve with it is not differentiated. Use "
            "bilevel.linear_solve, which is, or detach it."
        )
