"""What a hypergradient consists of, as programs that are traced once and compiled in parts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from bilevel._autodiff import filled, fresh, uncompiled
from bilevel._compiling.fingerprint import form
from bilevel._compiling.graphs import Refused, refusal, split, trace
from bilevel._guard import Guard
from bilevel._tree import Layout
from bilevel.products import KeptGraph, Objective, Products
from bilevel.solution import State


@dataclass(frozen=True)
class Call:
    """The arguments of one hypergradient, taken apart: tensors, and everything else.

    Attributes:
        phi: leaves, detached.
        theta: leaves, detached.
        args: the tensors among the leaves of ``(outer_args, inner_args)``, as the functions are to
            see them: of their type, with their attributes, following what they follow.
        others: those leaves again, None in place of each tensor.
        spec: their tree.
        initial: first guess of the adjoint, ``[1, n]``.
        state: of the solver.
        solves: whether a program for this call solves too, and so takes these two as well; one that
            multiplies alone serves every guess and every state.
    """

    phi_layout: Layout
    theta_layout: Layout
    phi: list[Tensor]
    theta: list[Tensor]
    args: list[Tensor]
    others: list[Any]
    spec: pytree.TreeSpec
    initial: Tensor | None
    state: State
    solves: bool

    def tensors(self) -> list[Tensor]:
        """All that a program takes, in its order, detached."""
        args = [tensor.detach() for tensor in self.args]
        return [*self.phi, *self.theta, *args, *self._of_solve()]

    def to_trace(self) -> list[Tensor]:
        """The same, with the arguments as the functions are to see them."""
        return [*self.phi, *self.theta, *self.args, *self._of_solve()]

    def _of_solve(self) -> list[Tensor]:
        if not self.solves:
            return []
        return [*([] if self.initial is None else [self.initial]), *self.state.values()]

    def form(self) -> tuple[Any, ...]:
        """What a program compiled for this call takes for granted of the tensors."""
        forms = tuple(form(tensor) for tensor in self.tensors())
        solve = (self.initial is None, *self.state) if self.solves else None
        return (self.phi_layout, self.theta_layout, self.spec, forms, solve)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Call:
        """The same call with other tensors, as :meth:`tensors` lists them."""
        pending = iter(tensors)
        take = lambda like: [next(pending) for _ in like]  # noqa: E731
        phi, theta, args = take(self.phi), take(self.theta), take(self.args)
        other = dataclasses.replace(self, phi=phi, theta=theta, args=args)
        if not self.solves:
            return other
        initial = None if self.initial is None else next(pending)
        state = dict(zip(self.state, pending, strict=True))
        return dataclasses.replace(other, initial=initial, state=state)

    def arguments(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """``outer_args`` and ``inner_args``."""
        pending = iter(self.args)
        leaves = [next(pending) if item is HERE else item for item in self.others]
        return pytree.tree_unflatten(leaves, self.spec)


def as_plain(tensor: Tensor) -> Tensor:
    """A tensor detached, and as it lies in memory.

    Raises:
        Refused: it is of a class that is more than that.
    """
    return usable([tensor])[0].detach()


def usable(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Arguments with copies where the plain way makes copies, of all if one is an inference tensor.

    A conjugate or a sign that is put off is carried out: a program would not see it.

    Raises:
        Refused: one is of a class that is more than a plain tensor.
    """
    for tensor in tensors:
        if type(tensor.detach()) is not Tensor:
            raise Refused(f"is given a {type(tensor).__name__}, which is no plain tensor")
    if any(tensor.is_inference() for tensor in tensors):
        tensors = [tensor.clone() for tensor in tensors]
    return [tensor.resolve_conj().resolve_neg() for tensor in tensors]


def stand_in(tensor: Tensor) -> Tensor:
    """An argument as another object: the same to all that do not ask which one it is.

    A trace takes two inputs that are one object for one input, and one that a function holds too
    for what it holds; so would its program in later calls, where they are not.
    """
    if tensor.grad_fn is not None:
        with torch.enable_grad():
            other = tensor.view_as(tensor)
    elif type(tensor) is Tensor:
        other = tensor.detach().requires_grad_(tensor.requires_grad)
        other.grad = tensor.grad
    else:
        other = torch.Tensor._make_subclass(type(tensor), tensor.detach(), tensor.requires_grad)
        other.grad = tensor.grad
    vars(other).update(vars(tensor))
    return other


Compiled = Callable[..., Sequence[Tensor]]

HERE = object()
"""Stands where a tensor stood among the other arguments."""


@dataclass(frozen=True)
class First:
    """Values and first derivatives; ``direct`` like phi, the others flat."""

    outer_value: Tensor
    inner_value: Tensor
    gradient: Tensor
    slope: Tensor
    direct: list[Tensor]

    def tensors(self) -> list[Tensor]:
        return [self.outer_value, self.inner_value, self.gradient, self.slope, *self.direct]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> First:
        outer_value, inner_value, gradient, slope, *direct = tensors
        return cls(outer_value, inner_value, gradient, slope, direct)


@dataclass(frozen=True)
class Functions:
    """The two objectives of a problem."""

    outer: Callable[..., Tensor]
    inner: Callable[..., Tensor]

    def objectives(self, call: Call, guard: Guard) -> tuple[Objective, Objective]:
        """Both at a call's arguments."""
        outer_args, inner_args = call.arguments()
        layouts = (call.phi_layout, call.theta_layout)
        return (
            Objective(self.outer, "outer", *layouts, outer_args, guard),
            Objective(self.inner, "inner", *layouts, inner_args, guard),
        )

    def derivatives(self, call: Call, guard: Guard) -> tuple[First, KeptGraph]:
        """Values and first derivatives, and the products that come after them."""
        outer, inner = self.objectives(call, guard)
        phi, theta = fresh(call.phi), fresh(call.theta)
        with torch.enable_grad(), uncompiled():
            value = outer(phi, theta)
        found = torch.autograd.grad(value, [*phi, *theta], allow_unused=True)
        slope = call.theta_layout.join(filled(found[len(phi) :], theta))
        kept = KeptGraph(inner, phi, theta, traced=True)
        direct = filled(found[: len(phi)], phi)
        return First(value.detach(), kept.value, kept.gradient, slope, direct), kept


class Program:
    """A traced computation, in parts that are compiled when first used.

    Args:
        function: of the moving tensors, then the fixed ones.
        moving: examples of those that change while the others stay.
        fixed: examples of the others, as the function is to see them.
        groups: how many outputs each part has; see :func:`bilevel._compiling.graphs.split`.
        known: tensors the function may use besides, by id.

    Attributes:
        seconds: spent on tracing and compiling so far.

    Raises:
        Refused: the computation cannot be traced.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        moving: Sequence[Tensor],
        fixed: Sequence[Tensor],
        groups: Mapping[str, int],
        known: Mapping[int, Tensor],
    ) -> None:
        begin = time.perf_counter()
        module, self._held = trace(function, [*moving, *fixed], known)
        self._split = split(module, len(moving), groups)
        self._own = groups["static"]
        self._compiled: dict[str, Compiled] = {}
        self.seconds = time.perf_counter() - begin

    def start(self, fixed: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs that wait for no moving input, and what the parts need besides theirs."""
        held = [tensor.detach() for tensor in self._held]
        found = self._run("static", self._split.static, [*fixed, *held])
        return list(found[: self._own]), list(found[self._own :])

    def run(self, name: str, moving: Sequence[Tensor], shared: Sequence[Tensor]) -> list[Tensor]:
        """One part."""
        parts = self._split
        inputs = [moving[index] for index in parts.moving[name]]
        inputs += [shared[index] for index in parts.needs[name]]
        return list(self._run(name, parts.parts[name], inputs))

    def _run(self, name: str, graph: fx.GraphModule, inputs: list[Tensor]) -> Sequence[Tensor]:
        ready = self._compiled.get(name)
        if ready is not None:
            return ready(*inputs)
        begin = time.perf_counter()
        ready = compiled(graph, inputs)
        try:
            found = ready(*inputs)
        except Exception as error:
            raise refusal("is refused by the compiler", error) from error
        self._compiled[name] = ready
        self.seconds += time.perf_counter() - begin
        return found


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Machine code for a graph, by TorchInductor; on CUDA captured as a CUDA graph.

    On a CPU what calls the kernels is C++ as well, which takes a third less time in small networks.

    Raises:
        Refused: there is no compiler, or it does not know an operation.
    """
    # Imported here: it takes seconds, which those who never compile should not pay.
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    kernels: list[tuple[Any, int]] = []

    def inner(module: fx.GraphModule, given: Sequence[Any], **options: Any) -> Any:
        found = compile_fx_inner(module, given, **options)
        kernels.append((found, len(given)))
        return found

    on_cuda = inputs[0].device.type == "cuda"
    patches = {"size_asserts": False, "triton.cudagraphs": on_cuda, "cpp_wrapper": not on_cuda}
    for node in graph.graph.nodes:
        node.meta.clear()  # of the tracing: fake tensors of another mode than the compiler's
    try:
        whole = compile_fx(graph, list(inputs), inner_compile=inner, config_patches=patches)
        return _unwrapped(cast(Compiled, whole), kernels, inputs)
    except Exception as error:
        raise refusal("is refused by the compiler", error) from error


def _unwrapped(
    whole: Compiled, kernels: Sequence[tuple[Any, int]], inputs: Sequence[Tensor]
) -> Compiled:
    """What calls the kernels, without what PyTorch puts around it, where that does nothing.

    Around are guards of compiled code, and what writes to inputs and makes views of them again.
    These functions do neither; that the same comes out is looked at all the same.
    """
    wanted = whole(*inputs)
    if len(kernels) != 1 or kernels[0][1] != len(inputs):
        return whole
    call = getattr(kernels[0][0], "current_callable", None)
    if call is None:
        return whole
    found = call(list(inputs))
    same = len(found) == len(wanted) and all(map(_is_same, found, wanted))
    return (lambda *given: call(list(given))) if same else whole


def _is_same(one: Any, other: Any) -> bool:
    """Whether two tensors are alike, bit by bit but for what a NaN holds."""
    alike = isinstance(one, Tensor) and isinstance(other, Tensor) and form(one) == form(other)
    return alike and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


class CompiledProducts(Products):
    """Products by the compiled parts of :func:`derivatives`."""

    name = "reverse"

    def __init__(self, program: Program, call: Call, batch: int) -> None:
        own, self._shared = program.start(call.tensors())
        self.first = First.of(own)
        self._program, self._batch = program, batch
        self.value, self.gradient = self.first.inner_value, self.first.gradient
        self.unused = ()
        self._phi = len(call.phi)

    def rows(self, rows: Tensor) -> Tensor:
        if rows.shape[0] == self._batch and self._batch > 1:
            return self._program.run("batch", [rows, rows, rows[0]], self._shared)[0]
        found = [self._product(row) for row in rows.split(1)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _product(self, row: Tensor) -> Tensor:
        row = row.contiguous()
        return self._program.run("product", [row, row, row[0]], self._shared)[0]

    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        return self._program.run("mixed", [vector, vector, vector], self._shared)


def derivatives(
    functions: Functions, call: Call, guard: Guard, batch: int, known: Mapping[int, Tensor]
) -> Program:
    """First derivatives (``static``), ``product`` and ``batch`` with the Hessian, and ``mixed``."""

    def function(*inputs: Tensor) -> list[Tensor]:
        row, rows, vector, *tensors = inputs
        first, kept = functions.derivatives(call.with_tensors(tensors), guard)
        mixed = filled(kept.mixed(vector), call.phi)
        return [*first.tensors(), kept.rows(row), kept.rows(rows), *mixed]

    like, size = call.theta[0], call.theta_layout.size
    moving = [like.new_zeros(1, size), like.new_zeros(batch, size), like.new_zeros(size)]
    groups = {"static": 4 + len(call.phi), "product": 1, "batch": 1, "mixed": len(call.phi)}
    return Program(function, moving, call.to_trace(), groups, known)
