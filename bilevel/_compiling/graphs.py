"""Traces a computation to a graph of tensor operations, and takes it apart by what it waits for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Refused(Exception):
    """A computation that cannot be compiled; the message says why, as a clause."""


def refusal(clause: str, error: Exception) -> Refused:
    """The refusal that an error of the framework amounts to, with its first line."""
    lines = str(error).strip().splitlines() or [""]
    return Refused(f"{clause} ({type(error).__name__}: {lines[0][:200]})")


_RECURRENT = "runs a recurrent layer, whose fused kernel has no second derivative to be traced"

# What a trace cannot hold: most of it brings numbers out of tensors, which would stay those of one
# call for good.
_REFUSED = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT),
    "item": "reads a number off a tensor",
    "tolist": "reads numbers off a tensor (tolist)",
    "numpy": "turns a tensor into an array",
    "__array__": "turns a tensor into an array",
    "__bool__": "decides by the value of a tensor",
    "__float__": "reads a number off a tensor (float)",
    "__int__": "reads a number off a tensor (int)",
    "__index__": "reads a number off a tensor (an index)",
    "__complex__": "reads a number off a tensor (complex)",
    "__repr__": "prints a tensor",
    "__format__": "prints a tensor",
    "__dlpack__": "hands a tensor to another library",
    "data_ptr": "reads the address of a tensor",
}


# These read tensors inside of what they are given, in C++, where nobody looks on.
_MADE_OF_NUMBERS = frozenset({"tensor", "as_tensor", "asarray", "new_tensor", "scalar_tensor"})
_SPLITS = frozenset({"tensor_split", "hsplit", "vsplit", "dsplit"})


class _Traceable(TorchFunctionMode):
    """Refuses functions that no trace can hold."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        reason = _REFUSED.get(name)
        if reason is not None:
            raise Refused(reason)
        if name in _MADE_OF_NUMBERS and _holds_tensors(func, args, kwargs):
            raise Refused("makes a tensor of numbers read off tensors (torch.stack keeps them)")
        if name in _SPLITS and _is_any_tensor((args[1:], kwargs)):
            raise Refused("splits where the values of a tensor say")
        return func(*args, **kwargs)


def _is_any_tensor(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(tree))


def _holds_tensors(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether what a tensor is made from holds tensors, or may; one tensor alone is copied."""
    own = isinstance(args[0], Tensor) if args and getattr(func, "__objclass__", None) else False
    data = [*args[own:], *kwargs.values()]
    return any(
        isinstance(leaf, Tensor) or (hasattr(leaf, "__getitem__") and not hasattr(leaf, "dtype"))
        for item in data
        if not isinstance(item, Tensor | str)
        for leaf in pytree.tree_leaves(item)
    )


class _Values(TorchDispatchMode):
    """Refuses operations whose outcome is no function of tensors alone, or of no fixed shape.

    Those of tensors that the graph does not follow yet, and would take for constants, included.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tags = getattr(func, "tags", ())
        if torch.Tag.data_dependent_output in tags:
            raise Refused(f"reads a number off a tensor ({func})")
        if torch.Tag.dynamic_output_shape in tags and _is_dynamic(func, args):
            raise Refused(f"makes a tensor whose shape depends on values ({func})")
        return func(*args, **(kwargs or {}))


def _is_dynamic(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the shape depends on values indeed: that of an indexing does so by a mask alone."""
    if func.overloadpacket is not torch.ops.aten.index:
        return True
    masks = (torch.bool, torch.uint8)
    return any(isinstance(index, Tensor) and index.dtype in masks for index in args[1])


def trace(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], known: Mapping[int, Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph of a function, derivatives inside it included, and what it uses besides its inputs.

    Traced twice: a computation that comes out differently the second time depends on something
    that changes from call to call, and is refused.

    Args:
        function: of tensors, to a flat list of tensors.
        inputs: examples of its arguments.
        known: the tensors it may use besides, by id. The graph takes them as further inputs.

    Raises:
        Refused: the function reads numbers off tensors, draws random ones, uses a tensor that is
            not known, or is not the same twice.
    """
    first, tensors = _traced(function, inputs, known)
    second, others = _traced(function, inputs, known)
    same = len(tensors) == len(others) and all(map(_is, tensors, others))
    if first.code != second.code or not same or not _same_constants(first, second):
        raise Refused("comes out differently when it runs twice on the same arguments")
    if any(_mutates(node) for node in first.graph.nodes):
        _clear(first)
        pure = torch.func.functionalize(first, remove="mutations")
        first = make_fx(pure)(*(tensor.detach() for tensor in (*inputs, *tensors)))
    first.graph = fx_graph_cse(first.graph)
    first.graph.eliminate_dead_code()
    first.recompile()
    return first, tensors


def _is(one: Tensor, other: Tensor) -> bool:
    return one is other


def _traced(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], known: Mapping[int, Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own
        try:
            with _Traceable(), _Values():
                module = make_fx(function)(*inputs)
        except Refused:
            raise
        except Exception as error:
            raise refusal("cannot be traced", error) from error
        _refuse_random(module)
    return module, _lift(module, known)


def _refuse_random(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Refused(f"draws random numbers ({node.target})")


def _lift(module: fx.GraphModule, known: Mapping[int, Tensor]) -> list[Tensor]:
    """Make inputs of the tensors a graph holds; literals written in the code stay."""
    lifted: dict[int, tuple[Tensor, fx.Node]] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        if id(tensor) not in known:
            if isinstance(tensor, Tensor) and all(_is_literal(user) for user in node.users):
                continue
            raise Refused(
                f"uses a tensor of shape {tuple(getattr(tensor, 'shape', ()))} that is none of its "
                "arguments and that nothing in its closure, globals or attributes holds"
            )
        if tensor.is_conj() or tensor.is_neg():
            raise Refused("uses a view whose conjugate or sign is put off (see resolve_conj)")
        if id(tensor) not in lifted:
            with module.graph.inserting_after(last):
                last = module.graph.placeholder(f"held_{len(lifted)}")
            last.meta = dict(node.meta)
            lifted[id(tensor)] = (tensor, last)
        node.replace_all_uses_with(lifted[id(tensor)][1])
        module.graph.erase_node(node)
    module.recompile()
    return [tensor for tensor, _ in lifted.values()]


def _is_literal(node: fx.Node) -> bool:
    return node.target in (
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.lift_fresh.default,
        torch.ops.aten.lift.default,
    )


def _same_constants(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    names = [node.target for node in one.graph.nodes if node.op == "get_attr"]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


_UNSET = (
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
)


def _clear(module: fx.GraphModule) -> None:
    """Set memory that is handed out unset to zero.

    Without mutations, what is written into it becomes ``unset + (written - unset)`` in places: of
    garbage, this is garbage.
    """
    for node in module.graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _UNSET:
            with module.graph.inserting_after(node):
                module.graph.call_function(torch.ops.aten.zero_.default, (node,))
    module.recompile()


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


@dataclass(frozen=True)
class Split:
    """A graph in parts.

    Attributes:
        static: what does not wait for the moving inputs; returns its own outputs, then everything
            the parts need of it.
        parts: the others; each takes the moving inputs ``moving[name]``, then the static values
            ``needs[name]``.
        moving: indices of the moving inputs each part uses.
        needs: indices into what ``static`` returns after its own outputs.
    """

    static: fx.GraphModule
    parts: dict[str, fx.GraphModule]
    moving: dict[str, list[int]]
    needs: dict[str, list[int]]


def split(module: fx.GraphModule, moving: int, groups: Mapping[str, int]) -> Split:
    """Take a graph apart.

    Args:
        module: its first ``moving`` inputs change while the others stay.
        moving: how many.
        groups: how many outputs each part has, in the order of the outputs. Those of ``"static"``,
            which come first, wait for no moving input.
    """
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    outputs = pytree.tree_leaves(nodes[-1].args[0])
    late: set[fx.Node] = set(inputs[:moving])
    for node in nodes:
        if node.op not in ("placeholder", "output") and late & set(node.all_input_nodes):
            late.add(node)
    wanted: dict[str, list[fx.Node]] = {}
    for name, count in groups.items():
        wanted[name], outputs = outputs[:count], outputs[count:]
    own = wanted.pop("static")
    needed = {name: _needed(found, late) for name, found in wanted.items()}
    borders = {
        name: [node for node in nodes if node in found and node not in late]
        for name, found in needed.items()
    }
    shared = list(dict.fromkeys(node for border in borders.values() for node in border))
    places = {node: index for index, node in enumerate(shared)}
    uses = {
        name: [i for i, x in enumerate(inputs[:moving]) if x in needed[name]] for name in wanted
    }
    early = [node for node in nodes[:-1] if node not in late]
    return Split(
        _subgraph(module, inputs[moving:], early, [*own, *shared]),
        {
            name: _subgraph(
                module,
                [*(inputs[i] for i in uses[name]), *borders[name]],
                [node for node in nodes if node in needed[name] and node in late],
                found,
            )
            for name, found in wanted.items()
        },
        uses,
        {name: [places[node] for node in border] for name, border in borders.items()},
    )


def _needed(outputs: Sequence[fx.Node], late: set[fx.Node]) -> set[fx.Node]:
    """What outputs are made of, back to the first node that waits for no moving input."""
    seen: set[fx.Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes if node in late else ())
    return seen


def _subgraph(
    module: fx.GraphModule,
    inputs: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(tuple(copies[node] for node in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)
