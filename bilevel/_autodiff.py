"""Products with a Jacobian that can be differentiated again, inside and outside transforms."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from bilevel import _transforms
from bilevel.errors import InputError


def vjp(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor | None]:
    """``cotangent' d function / d primal`` for every floating primal, None for the others.

    The result can be differentiated again, in the primals, the cotangent and whatever the function
    closes over, under ``torch.autograd`` and under ``torch.func`` transforms alike.
    """
    floating = [i for i, primal in enumerate(primals) if primal.is_floating_point()]
    chosen = [primals[i] for i in floating]

    def restricted(*moving: Tensor) -> Tensor:
        everything = list(primals)
        for index, primal in zip(floating, moving, strict=True):
            everything[index] = primal
        return function(*everything)

    found = (
        _functional(restricted, chosen, cotangent)
        if _transforms.active()
        else _plain(restricted, chosen, cotangent)
    )
    out: list[Tensor | None] = [None] * len(primals)
    for index, gradient in zip(floating, found, strict=True):
        out[index] = gradient
    return out


def jvp(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    like: Tensor,
) -> Tensor:
    """The derivative of ``function`` along the tangents that are there, shaped ``like`` its value.

    Inside a transform this is a forward derivative. Outside it is the derivative of a vjp, which is
    linear in its cotangent: forward derivatives do not nest in plain ``torch.autograd``.
    """
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
    chosen = [primals[i] for i in moving]
    along = [tangent for tangent in tangents if tangent is not None]

    def restricted(*values: Tensor) -> Tensor:
        everything = list(primals)
        for index, value in zip(moving, values, strict=True):
            everything[index] = value
        return function(*everything)

    if _transforms.active():
        return torch.func.jvp(restricted, tuple(chosen), tuple(along))[1]
    with torch.enable_grad():
        cotangent = torch.zeros_like(like).requires_grad_()
        pulled = vjp(restricted, chosen, cotangent)
        pairs = [
            (p, t) for p, t in zip(pulled, along, strict=True) if p is not None and p.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(like)
        outputs, weights = zip(*pairs, strict=True)
        return torch.autograd.grad(
            outputs, cotangent, weights, create_graph=True, materialize_grads=True
        )[0]


def gradient(
    value: Tensor, leaves: Sequence[Tensor], name: str, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradient of a 0-d value, None for leaves it does not depend on.

    Raises:
        InputError: the value depends on no leaf at all.
        RuntimeError: with ``create_graph``, a custom function is not differentiable twice.
    """
    if not value.requires_grad:
        raise InputError(
            f"{name} does not depend on its theta argument in a way autograd can see. Use the "
            "tensors it is handed (torch.func.functional_call(module, theta, x)), without "
            "torch.no_grad or .detach() on the way."
        )
    if not create_graph or not custom_functions(value):
        return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    ones = torch.ones_like(value)
    # Inside a transform no tensor can be asked to require grad; it can be made from one that does.
    moving = ones + 0.0 * value if _transforms.active() else ones.requires_grad_()
    return pulled_back(value, leaves, moving, name)


def pulled_back(
    output: Tensor, leaves: Sequence[Tensor], cotangent: Tensor, name: str
) -> tuple[Tensor | None, ...]:
    """``cotangent' d output / d leaves`` with a graph, for a cotangent that requires grad.

    It is linear in the cotangent, so every gradient on the way requires grad as well, unless a
    custom ``torch.autograd.Function`` has cut the graph: one marked ``once_differentiable``, or
    whose backward leaves autograd, drops its part of the second derivative without a word.

    Raises:
        RuntimeError: a custom function is not differentiable twice.
    """
    cut: list[str] = []
    hooks = [node.register_hook(_cut_finder(node, cut)) for node in custom_functions(output)]
    try:
        found = torch.autograd.grad(output, leaves, cotangent, create_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if cut:
        raise RuntimeError(f"{', '.join(cut)} in {name} is not differentiable twice")
    return found


def _cut_finder(node: Any, cut: list[str]) -> Callable[..., None]:
    def look(gradients: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]) -> None:
        followed = any(one is not None and one.requires_grad for one in cotangents)
        if followed and any(_is_cut(one) for one in gradients if one is not None):
            cut.append(type(node).__name__)

    return look


def _is_cut(gradient: Tensor) -> bool:
    if gradient.grad_fn is not None:
        # What once_differentiable puts there; it raises only when it is on the way to a leaf.
        return gradient.grad_fn.name() == "torch::autograd::Error"
    return not gradient.requires_grad and bool(gradient.any())  # zeros may be constant by right


def uncompiled() -> AbstractContextManager[Any]:
    """Functions given to ``torch.compile`` run as they were written.

    Compiled code has no second derivative; and a ``torch.func`` transform around it makes the
    compiler give up on the function for good.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()  # nothing can have been compiled, or a caller's function is just now
    return _EAGER


class _Eager:
    """The stance of the compiler while anybody is inside, put back by the last to leave.

    It is one for all threads: each of them putting back what it found could leave it for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._stance = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stance.close()


_EAGER = _Eager()


def fresh(leaves: Sequence[Tensor]) -> list[Tensor]:
    """The same values as new leaves that require grad.

    Inference tensors cannot be saved for a backward; a copy made outside inference mode can.
    """
    return [
        (leaf.clone() if leaf.is_inference() else leaf.detach()).requires_grad_() for leaf in leaves
    ]


def copied(leaves: Sequence[Tensor]) -> list[Tensor]:
    """The same values as new leaves with memory of their own, for what outlives the call."""
    return [leaf.detach().clone().requires_grad_() for leaf in leaves]


def filled(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros in place of the gradients that are None."""
    pairs = zip(found, like, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


def leaves_of_graph(value: Tensor) -> list[Tensor]:
    """The leaf tensors that require grad and that a value was computed from."""
    return [node.variable for node in _nodes(value) if hasattr(node, "variable")]


def custom_functions(value: Tensor) -> list[Any]:
    kind = torch.autograd.function.BackwardCFunction
    return [node for node in _nodes(value) if isinstance(node, kind)]


def _nodes(value: Tensor) -> set[Any]:
    seen: set[Any] = set() if value.grad_fn is None else {value.grad_fn}
    pending = list(seen)
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                pending.append(node)
    return seen


class Pullback:
    """``row' d outputs / d sources``, flat, for rows as long as all outputs together.

    The graph is kept. A loop that writes its vector anew in every step hands over the same tensor,
    in the same place in memory: that is taken apart into a view for each output once.

    Args:
        outputs: what has been computed; those that require no grad count as constants.
        sources: leaves it was computed from.
        traced: whether products are being traced, when addresses say nothing.
    """

    def __init__(
        self, outputs: Sequence[Tensor], sources: Sequence[Tensor], *, traced: bool = False
    ) -> None:
        self._traced = traced
        self._sources = tuple(sources)
        self._moving = tuple(output for output in outputs if output.requires_grad)
        self._sizes = [output.numel() for output in outputs]
        self._chosen = [(i, one.shape) for i, one in enumerate(outputs) if one.requires_grad]
        self._last: tuple[Callable[[], Tensor | None], int, list[tuple[Tensor, ...]]]
        self._last = (lambda: None, 0, [])

    @property
    def constant(self) -> bool:
        """Whether no output depends on any leaf."""
        return not self._moving

    def rows(self, rows: Tensor) -> Tensor:
        """For every row of ``[k, m]``: ``[k, n]``.

        All rows go through the graph at once; one by one where something in it cannot be batched,
        such as a custom function that applies another, or a checkpoint that replays dropout.
        """
        count = rows.shape[0]
        if self.constant:
            return rows.new_zeros(count, sum(leaf.numel() for leaf in self._sources))
        if count == 1:
            found: Sequence[Tensor] = self._once(rows)
            return torch.cat([leaf.reshape(1, -1) for leaf in found], dim=1)
        try:
            batch = torch.autograd.grad(
                *(self._moving, self._sources, self._pieces(rows, (count,))),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        except RuntimeError:  # what is no matter of batching comes up again
            return torch.cat([self.rows(row) for row in rows.split(1)])
        pairs = zip(batch, self._sources, strict=True)
        found = [leaf.new_zeros(count, leaf.numel()) if one is None else one for one, leaf in pairs]
        return torch.cat([leaf.reshape(count, -1) for leaf in found], dim=1)

    def of(self, vector: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """``vector' d outputs / d leaves`` for other leaves, None where there is no way to one."""
        if self.constant or not leaves:
            return [None] * len(leaves)
        pieces = self._pieces(vector, ())
        return torch.autograd.grad(
            self._moving, leaves, pieces, retain_graph=True, allow_unused=True
        )

    def _once(self, row: Tensor) -> Sequence[Tensor]:
        """``torch.autograd.grad`` with the graph kept and zeros for None, past its checks.

        They are made anew in every call, and in a small network take a sixth of a product's time.
        """
        found = _engine_run_backward(
            self._moving, self._views(row), True, False, self._sources, True, accumulate_grad=False
        )
        return filled(found, self._sources)

    def _views(self, row: Tensor) -> tuple[Tensor, ...]:
        """The pieces of a row, those of the last time where it is the same one in the same place.

        They hold on to neither the row nor what it was computed from.
        """
        plain = type(row) is Tensor and row.is_contiguous()  # or else pieces may be copies
        if self._traced or not plain or _transforms.active() or _transforms.pushing():
            return self._pieces(row, ())
        last, place, kept = self._last
        if last() is row and place == row.data_ptr():
            return kept[0]
        pieces = self._pieces(row.detach(), ())
        kept = [pieces]
        self._last = (weakref.ref(row, lambda _: kept.clear()), row.data_ptr(), kept)
        return pieces

    def _pieces(self, rows: Tensor, count: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Rows in the shapes of the outputs that move."""
        parts = rows.split(self._sizes, dim=-1)
        return tuple(parts[index].reshape((*count, *shape)) for index, shape in self._chosen)


def _functional(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> Sequence[Tensor]:
    return torch.func.vjp(function, *primals)[1](cotangent)


def _plain(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> Sequence[Tensor]:
    # An alias is downstream of its primal and of nothing else, so that a primal that depends on
    # another one (a solution on its parameters) contributes its partial derivative alone.
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [_alias(primal, keep) for primal in primals]
        output = function(*aliases)
        if not output.requires_grad:
            return [torch.zeros_like(primal) for primal in primals]
        if not keep:
            return torch.autograd.grad(output, aliases, cotangent, materialize_grads=True)
        if not cotangent.requires_grad:
            cotangent = cotangent.detach().requires_grad_()
        found = pulled_back(output, aliases, cotangent, "the condition of an implicit function")
        return filled(found, primals)


def _alias(primal: Tensor, keep: bool) -> Tensor:
    if keep and primal.requires_grad:
        return primal.view_as(primal)
    return primal.detach().requires_grad_()
