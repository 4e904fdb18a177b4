"""Linear operators: what a solver multiplies by, and the algebra between them.

Inside the package an operator acts on *rows*: it maps ``[k, n]`` to ``[k, n]``, one system per row.
An operator with ``batch`` set holds a different matrix for each row (what ``vmap`` makes of it).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel._tree import Layout, Tree
from bilevel.errors import InputError, NonFiniteError
from bilevel.solution import Result

if TYPE_CHECKING:
    import scipy.sparse.linalg


# Products made at once where many are needed: a block of them, not all n, has to fit in memory.
_BLOCK = 128


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
        >>> from bilevel import Identity, Matrix
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
        if not isinstance(device, torch.device) or device.type != "cpu":
            device = torch.empty(0, device=device).device  # "cuda" means one of them
        self.device = device
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
        """``A @ v`` for a vector ``[n]``, columns ``[n, k]``, or a tree of its layout.

        A batch of B matrices takes ``[B, n]``, a vector for each.
        """
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
            blocks = [self.rows(units) for units in identity.split(_BLOCK)]
            return torch.cat(blocks).T.contiguous() if self.size else identity
        columns = [self.rows(unit.expand(self.batch, -1)) for unit in identity]
        return torch.stack(columns, dim=-1)

    def diagonal(self) -> Tensor:
        """The diagonal ``[n]`` (``[B, n]`` for a batched operator), by n products."""
        if self.batch is not None or self.size <= _BLOCK:
            return self.to_dense().diagonal(dim1=-2, dim2=-1)
        entries = []
        for start in range(0, self.size, _BLOCK):
            places = torch.arange(start, min(start + _BLOCK, self.size), device=self.device)
            units = torch.zeros(len(places), self.size, dtype=self.dtype, device=self.device)
            units.scatter_(1, places.unsqueeze(1), 1.0)
            entries.append(self.rows(units).gather(1, places.unsqueeze(1)).squeeze(1))
        return torch.cat(entries)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The same operator for ``scipy.sparse.linalg`` (NumPy arrays in and out, on the CPU).

        Raises:
            ImportError: SciPy is not installed.

        Example:
            >>> import scipy.sparse.linalg
            >>> from bilevel import Matrix
            >>> A = Matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
            >>> x, info = scipy.sparse.linalg.cg(A.to_scipy(), [3.0, 4.0])
            >>> [round(float(v), 6) for v in x]
            [1.0, 1.0]
        """
        import numpy as np
        import scipy.sparse.linalg

        if self.batch is not None:
            raise InputError(
                "a batched operator holds several matrices; SciPy takes one at a time."
            )
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(f"SciPy has no {self.dtype}; use float32 or float64.")

        def tensor(array: np.ndarray) -> Tensor:
            # A copy: torch takes neither read-only memory nor strides that run backwards.
            columns = torch.from_numpy(np.array(array.reshape(self.size, -1)))
            return columns.to(self.device, self.dtype)

        def product(array: np.ndarray) -> np.ndarray:
            return (self @ tensor(array)).detach().cpu().numpy().reshape(array.shape)

        def transposed(array: np.ndarray) -> np.ndarray:
            return (self.T @ tensor(array)).detach().cpu().numpy().reshape(array.shape)

        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        # The stubs know the base class alone, not the constructor that takes functions.
        make: Any = scipy.sparse.linalg.LinearOperator
        return make(
            self.shape,
            matvec=product,
            rmatvec=transposed,
            matmat=product,
            rmatmat=transposed,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        kind = "symmetric" if self.symmetric else "general"
        return f"{type(self).__name__}(n={self.size}, {kind}, {self.dtype}, {self.device})"


class _Transposed(LinearOperator):
    def __init__(self, base: LinearOperator) -> None:
        super().__init__(**facts(base))
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
        super().__init__(**facts(base))
        self._base, self._factor = base, factor

    def rows(self, rows: Tensor) -> Tensor:
        return self._factor * self._base.rows(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return self._factor * self._base.rows_transposed(rows)


class Damped(LinearOperator):
    """``A + damping * I``: one vector operation more than A.

    Args:
        base: A.
        damping: at least 0.
    """

    def __init__(self, base: LinearOperator, damping: float) -> None:
        super().__init__(**facts(base))
        self._base, self._damping = base, check_damping(damping)

    def rows(self, rows: Tensor) -> Tensor:
        return torch.add(self._base.rows(rows), rows, alpha=self._damping)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        return torch.add(self._base.rows_transposed(rows), rows, alpha=self._damping)


class Opaque(LinearOperator):
    """An operator whose products autograd cannot follow: by a kept graph, or outside of PyTorch.

    They can be differentiated all the same: they are linear, so that the derivative along the
    operand is another product.
    """

    @abc.abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """``A v`` for every row v of ``[k, n]``, without a derivative."""

    def product_transposed(self, rows: Tensor) -> Tensor:
        """``A' v``, the same."""
        return self.product(rows)

    def rows(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled() and rows.requires_grad:
            return Multiply.apply(self, False, rows)
        return self.product(rows)

    def rows_transposed(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled() and rows.requires_grad:
            return Multiply.apply(self, True, rows)
        return self.product_transposed(rows)


class Multiply(torch.autograd.Function):
    """A product of rows, differentiable in them to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Opaque, transposed: bool, rows: Tensor) -> Tensor:
        return operator.product_transposed(rows) if transposed else operator.product(rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.transposed, _ = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        operator = ctx.operator
        back = operator.rows if ctx.transposed else operator.rows_transposed
        return None, None, back(gradient)

    @staticmethod
    def jvp(ctx: Any, _operator: None, _transposed: None, tangent: Tensor) -> Tensor:
        operator = ctx.operator
        return (operator.rows_transposed if ctx.transposed else operator.rows)(tangent)


def facts(operator: LinearOperator) -> dict[str, Any]:
    """What an operator made from this one alone shares with it, as constructor arguments."""
    names = ("size", "dtype", "device", "symmetric", "layout", "batch")
    return {name: getattr(operator, name) for name in names}


def damped(operator: LinearOperator, damping: float) -> LinearOperator:
    """``A + damping * I``; A itself when damping is 0."""
    return Damped(operator, damping) if check_damping(damping) else operator


def check_damping(damping: float) -> float:
    """The damping, refused when negative or not finite."""
    if not isinstance(damping, Real) or not 0.0 <= damping < float("inf"):
        raise InputError(f"damping must be a finite number of at least 0, found {damping!r}.")
    return float(damping)


def as_rows(
    operator: LinearOperator, value: Any, argument: str
) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """A vector, columns or a tree as rows ``[k, n]``, and the way back.

    Vectors of a batch of operators are rows as they come.

    Raises:
        InputError: it fits the operator in none of these forms.
    """
    n = operator.size
    if operator.batch is not None:
        if not isinstance(value, Tensor) or value.shape != (operator.batch, n):
            raise InputError(
                f"{argument} is {described(value)}; wanted [{operator.batch}, {n}], a vector for "
                f"each of the {operator.batch} matrices."
            )
        _check_kind(operator, value, argument)
        return value.contiguous(), lambda rows: rows
    if isinstance(value, Tensor) and value.ndim in (1, 2) and value.shape[0] == n:
        _check_kind(operator, value, argument)
        if value.ndim == 1:
            return value.unsqueeze(0), lambda rows: rows.squeeze(0)
        return value.T.contiguous(), lambda rows: rows.T.contiguous()
    if operator.layout is None:
        raise InputError(
            f"{argument} is {described(value)}; wanted a vector [{n}] or columns [{n}, k] for "
            f"{operator!r}."
        )
    layout = operator.layout
    leaves = layout.matching_leaves(value, argument, "what the operator acts on")
    return layout.join(leaves).unsqueeze(0), lambda rows: layout.unflatten(rows.squeeze(0))


def _check_kind(operator: LinearOperator, value: Tensor, argument: str) -> None:
    found = (value.dtype, value.device)
    if found != (operator.dtype, operator.device):
        raise InputError(
            f"{argument} is {found[0]} on {found[1]}; the operator is {operator.dtype} on "
            f"{operator.device}."
        )


def finite(products: Tensor) -> Tensor:
    """Products as they are, refused when a factorization would choke on a NaN in them."""
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError(Result.NON_FINITE.message)
    return products


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
