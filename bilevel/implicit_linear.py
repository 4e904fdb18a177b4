"""The solution of a linear system as a differentiable function of all that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._checks import check_args, check_function
from bilevel._guard import Guard
from bilevel._tree import Tree, check_same_kind, flatten
from bilevel._unrecorded import one_by_one, unrecorded
from bilevel.errors import InputError
from bilevel.implicit import root
from bilevel.linear import OnFailure, check_options, solve
from bilevel.matrices import FunctionOperator
from bilevel.solvers import Solver


def linear_solve(
    matvec: Callable[..., Tree],
    phi: Tree,
    b: Tree,
    *,
    args: Sequence[Any] = (),
    initial: Tree | None = None,
    symmetric: bool = False,
    solver: Solver | None = None,
    on_failure: OnFailure = "warn",
) -> Tree:
    """The x with ``matvec(phi, x, *args) = b``, as a differentiable function of phi, b and args.

    The system is solved by products alone, with :func:`bilevel.solve` and unrecorded; what comes
    out is attached with :func:`root`, whose messages call ``matvec(phi, x) - b`` the condition.
    Composes with ``torch.autograd`` and ``torch.func`` as that does. Under ``vmap`` systems are
    solved one after the other, and those of their derivatives all at once.

    Args:
        matvec: ``(phi, x, *args) ->`` a tree like b, linear in x.
        phi: pytree of floating tensors; ``()`` if there are none.
        b: pytree of floating tensors, the right-hand side.
        args: passed through; differentiated like phi where they are floating tensors.
        initial: a first guess, a tree like b; default zero. Nothing is differentiated in it.
        symmetric: whether the matrix equals its transpose, default False; CG and MINRES need it
            said.
        solver: of this system and of those of its derivatives; default :class:`bilevel.Auto`
            (dense up to 128 unknowns, then CG or GMRES).
        on_failure: see :func:`bilevel.solve`.

    Returns:
        A tree like ``b``.

    Raises:
        InputError: a tree or an option does not fit, or ``matvec(phi, 0)`` is not 0.
        NonFiniteError: b or ``initial`` holds a NaN or an infinity, or one appears on the way.
        SolveError: the solve failed and ``on_failure="raise"``.
        TransformError: ``matvec`` closes over a tensor that a transform tracks.

    Example:
        >>> import torch
        >>> diagonal, b = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([1.0, 2.0])
        >>> x = linear_solve(lambda phi, x: phi * x, diagonal, b)
        >>> torch.autograd.grad(x.sum(), diagonal)[0]  # -b / diagonal^2
        tensor([-0.2500, -0.1250])

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, 2022, section 2.
    """
    check_function(matvec, "matvec")
    solver = check_options(solver, on_failure)
    args = check_args(args, "args")
    _, layout = flatten(b, "b")
    if pytree.tree_leaves(phi):
        check_same_kind(layout, "b", flatten(phi, "phi")[1], "phi")
    if initial is not None:
        initial = layout.tree(layout.matching_leaves(initial, "initial", "b"))

    guard = Guard([matvec], args, layout.device)

    def product(p: Tree, x: Tree, *rest: Any) -> list[Tensor]:
        return layout.matching_leaves(matvec(p, x, *rest), "what matvec returned", "b")

    def solved(p: Tree, right: Tree, guess: Tree | None, rest: Sequence[Any]) -> Tree:
        def flat(vector: Tensor) -> Tensor:
            with guard.replay():
                return layout.join(product(p, layout.unflatten(vector), *rest))

        rhs = layout.join(pytree.tree_leaves(right))
        _refuse_constant(flat(torch.zeros_like(rhs)))
        operator = FunctionOperator(
            flat,
            layout.size,
            # The pullback of a linear function is the same at every point.
            transposed=lambda row: torch.func.vjp(flat, row)[1](row)[0],
            symmetric=symmetric,
            dtype=layout.dtype,
            device=layout.device,
        )
        first = None if guess is None else layout.join(pytree.tree_leaves(guess))
        found = solve(operator, rhs, solver, initial=first, on_failure=on_failure)
        return layout.unflatten(found.value)

    def condition(both: Tree, x: Tree, *rest: Any) -> Tree:
        p, right = both
        pairs = zip(product(p, x, *rest), pytree.tree_leaves(right), strict=True)
        return layout.tree([image - leaf for image, leaf in pairs])

    x = unrecorded(solved, (phi, b, initial, args), "matvec", one_by_one)
    options: dict[str, Any] = {"solver": solver, "symmetric": symmetric, "on_failure": on_failure}
    return root(condition, (phi, b), x, args=args, **options)


def _refuse_constant(image: Tensor) -> None:
    """Refuse a product under which zero is not zero."""
    if bool((image != 0).any()):
        raise InputError(
            "matvec is not linear in x: matvec(phi, 0) has an entry of size "
            f"{float(image.abs().max()):.2e}. Leave the constant out of it and subtract that from "
            "b, or use bilevel.custom_root for an equation that is not linear."
        )
