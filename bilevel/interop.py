"""SciPy operators solved by this package; ``LinearOperator.to_scipy`` is the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel import _transforms
from bilevel.errors import InputError, TransformError
from bilevel.operators import LinearOperator, Multiply, Opaque

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse.linalg


class ScipyOperator(Opaque):
    """A ``scipy.sparse.linalg.LinearOperator`` (or sparse or dense matrix) solved by this package.

    Made by :func:`from_scipy`.
    """

    def __init__(
        self,
        operator: scipy.sparse.linalg.LinearOperator,
        *,
        symmetric: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(operator.shape[0], dtype, device, symmetric=symmetric)
        self._operator = operator

    def rows(self, rows: Tensor) -> Tensor:
        return Multiply.apply(self, False, rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return Multiply.apply(self, True, rows)

    def product(self, rows: Tensor) -> Tensor:
        return self._tensor(self._operator.matmat(_columns(rows)))

    def product_transposed(self, rows: Tensor) -> Tensor:
        if self.symmetric:
            return self.product(rows)
        columns = _columns(rows)
        try:
            return self._tensor(self._operator.rmatmat(columns))
        except (NotImplementedError, TypeError) as error:
            if self._has_transposed(columns[:, 0]):
                raise
            raise InputError(
                "the SciPy operator has no rmatvec, and a product with its transpose was asked "
                "for. Give it one (rmatvec=...), or say symmetric=True if it equals its transpose."
            ) from error

    def _has_transposed(self, column: np.ndarray) -> bool:
        # SciPy's rmatmat fails in as many ways as there are kinds of operators; rmatvec in one.
        try:
            self._operator.rmatvec(column)
        except NotImplementedError:
            return False
        return True

    def _tensor(self, columns: np.ndarray) -> Tensor:
        import numpy as np

        # A copy: torch takes neither read-only memory nor strides that run backwards.
        return torch.from_numpy(np.array(columns)).T.to(self.device, self.dtype).contiguous()


def from_scipy(
    operator: object,
    *,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> LinearOperator:
    """Wrap anything ``scipy.sparse.linalg.aslinearoperator`` takes.

    Args:
        operator: a SciPy linear operator, a sparse matrix or array, or a NumPy matrix; n x n.
        symmetric: whether it equals its transpose; CG, MINRES, Chebyshev and Nystrom need it.
        dtype: of the vectors it will act on, one that NumPy has too (default float64).
        device: of those vectors (default CPU; the products themselves run on the CPU).

    Returns:
        An operator for :func:`bilevel.solve`.

    Raises:
        InputError: it is not square or not real, or NumPy lacks the dtype; later, where a product
            with the transpose is needed and the operator has no ``rmatvec``.

    Example:
        >>> import scipy.sparse
        >>> A = from_scipy(scipy.sparse.diags_array([1.0, 2.0, 4.0]), symmetric=True)
        >>> A @ torch.ones(3, dtype=torch.float64)
        tensor([1., 2., 4.], dtype=torch.float64)
    """
    import numpy as np
    import scipy.sparse.linalg

    if not dtype.is_floating_point or dtype.itemsize < 2 or dtype is torch.bfloat16:
        raise InputError(f"SciPy has no vectors of {dtype}; use float32 or float64.")
    wrapped = scipy.sparse.linalg.aslinearoperator(operator)
    if wrapped.shape[0] != wrapped.shape[1]:
        raise InputError(f"operator has shape {wrapped.shape}; wanted a square one.")
    if np.issubdtype(wrapped.dtype, np.complexfloating):
        raise InputError("operator is complex; only real operators are supported.")
    return ScipyOperator(wrapped, symmetric=symmetric, dtype=dtype, device=device)


def _columns(rows: Tensor) -> np.ndarray:
    if _transforms.active():
        raise TransformError(
            "a SciPy operator cannot be multiplied inside torch.func.vmap, jacrev or hessian. "
            "Multiply several vectors as columns [n, k], or make a bilevel.Matrix of it."
        )
    return rows.detach().T.cpu().numpy()
