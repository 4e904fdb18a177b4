"""What functions depend on besides their arguments, in a form that two calls can be compared by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as hooked

from bilevel._compiling.contents import NEVER_READ, Opaque, attributes, contents, is_inert
from bilevel._compiling.named import imported, is_installed, kind_of, module_holds_still, names

# More than this is data, not settings, and looking through it would cost more than it saves.
_MOST = 20_000

_VALUES = frozenset(
    {bool, int, str, bytes, type(None), type(...), type(NotImplemented)}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format}
)
_NUMBERS = frozenset({float, complex})


class Unseen(Exception):
    """Something that cannot be compared from call to call; the message names it, as a clause."""


@dataclass
class Fingerprint:
    """Everything in reach of some objects.

    Plain values count by what they are, tensors by which they are and by their shape (what they
    hold may change), functions by their code. Two fingerprints with equal tokens say the same.

    Attributes:
        tokens: what to compare.
        tensors: the tensors in reach, by id.
        anchors: every object that a token names by its id. Whoever keeps the tokens keeps these, so
            that no id is given out again.
        by_identity: whether some function in reach may ask which tensor it is given.
    """

    tokens: list[Any] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    anchors: list[Any] = field(default_factory=list)
    by_identity: bool = False
    _seen: dict[int, int] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _modules: list[tuple[ModuleType, set[str]]] = field(default_factory=list)
    _aside: list[tuple[Any, set[str]]] = field(default_factory=list)

    @classmethod
    def of(cls, roots: Sequence[Any]) -> Fingerprint:
        """Look through closures, defaults, attributes, classes, containers, modules and globals.

        What is installed holds still: only what hangs from it is looked at. Of other modules that
        counts which some function in reach names.

        Raises:
            Unseen: there is too much of it, or an object that cannot be looked into.
        """
        found = cls()
        pending = [iter([*roots, *_HOOKS])]
        while pending:
            item = next(pending[-1], _END)
            if item is _END:
                pending.pop()
                found.tokens.append(_END)
                if not pending:
                    pending.extend(found._hanging())
                continue
            if len(found.tokens) > _MOST:
                raise Unseen("reaches too much to be looked through in every call")
            below = found._note(item)
            if below is not None:
                pending.append(below)
        if "grad" in found._names:
            leaves = (tensor for tensor in found.tensors.values() if tensor.is_leaf)
            found.tokens.append(tuple(tensor.grad is None for tensor in leaves))
        return found

    def about(self, arguments: Sequence[Tensor]) -> tuple[Any, ...]:
        """What functions in reach may read off argument tensors besides their form."""
        found: list[Any] = [(type(x), x.requires_grad, x.is_leaf) for x in arguments]
        if "grad" in self._names:
            found.append([x.is_leaf and x.grad is not None for x in arguments])
        if self.by_identity:
            ids = [id(x) for x in arguments]
            found.append([(self._seen.get(one), ids.index(one)) for one in ids])
        return tuple(map(tuple, found))

    def _note(self, item: Any) -> Iterator[Any] | None:
        """Add the token of one object; what to look at below it, if anything."""
        kind = type(item)
        if kind in _VALUES:
            self.tokens.append((kind, item))
            return None
        if kind in _NUMBERS:
            self.tokens.append(repr(item))  # tells 0.0 from -0.0, and nan equals itself
            return None
        if kind is CodeType:
            self.tokens.append(item)
            return None
        known = self._seen.get(id(item))
        if known is not None:
            self.tokens.append(known)
            return None
        self._seen[id(item)] = len(self._seen)
        self.anchors.append(item)
        if isinstance(item, Tensor):
            self.tensors[id(item)] = item
            self.tokens.append(tensor_token(item))
            if kind is not Tensor and kind is not torch.nn.Parameter:
                return _chained(kind, _attributes(item, kind))
            return iter((item.__dict__,)) if item.__dict__ else None
        return self._below(item, kind)

    def _below(self, item: Any, kind: type) -> Iterator[Any] | None:
        if kind is list or kind is tuple:
            self.tokens.append((kind, len(item)))
            return iter(item) if item else None
        if kind is dict:
            self.by_identity |= any(isinstance(key, Tensor) for key in item)
            self.tokens.append((kind, len(item)))
            return (part for pair in item.items() for part in pair) if item else None
        if isinstance(item, torch.nn.Module):
            self.tokens.append(id(kind))
            return _of_module(item)
        if kind is FunctionType:
            return self._of_function(item)
        if kind is MethodType:
            return iter((item.__func__, item.__self__))
        if isinstance(item, type):
            self.tokens.append(id(item))
            if kind_of(item).still:
                return None
            self._aside.append((item, set()))
            return _of_class(item)
        if isinstance(item, ModuleType):
            self.tokens.append(id(item))
            if not module_holds_still(item):
                self._modules.append((item, set()))
                self._names.add("__getattr__")
            return None
        if kind is BuiltinFunctionType or kind is MethodWrapperType:
            return self._of_builtin(item)
        if is_inert(item):
            self.tokens.append(id(item))
            return None
        return self._of_object(item, kind)

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        code = function.__code__
        self.tokens.append(code)
        if is_installed(code) or _is_own(function):
            self.tokens.append(id(function.__globals__))
            return _cells(function)
        named = names(code)
        if named.runs_text:
            raise Unseen("runs code from a text (eval, exec), which cannot be looked through")
        self._names |= named.attributes
        self._aside.append((function, set()))
        self.by_identity |= named.by_identity
        return _held(function)

    def _of_builtin(self, function: Any) -> Iterator[Any] | None:
        """A function in C, which may be a method: of a dict, for one."""
        owner = getattr(function, "__self__", None)
        if owner is None or isinstance(owner, ModuleType | type):
            self.tokens.append(id(function))
            return None
        self.tokens.append(function.__name__)
        return iter((owner,))

    def _of_object(self, item: Any, kind: type) -> Iterator[Any]:
        try:
            inside = contents(item)
        except Opaque as error:
            raise Unseen(str(error)) from None
        own = _attributes(item, kind)
        if isinstance(item, dict | set | frozenset):
            self.by_identity |= any(isinstance(part, Tensor) for part in inside)
        # Of an object that holds nothing, which one it is is all there is to tell.
        self.tokens.append((id(kind), len(inside) if inside or own else id(item)))
        return _chained(kind, inside, own)

    def _hanging(self) -> Iterator[Iterator[Any]]:
        """What is looked at by name alone, under names that came up since it was last looked at."""
        wanted = [name for name, asked in _ASIDE.items() if asked & self._names]
        for owner, looked_at in self._aside if wanted else ():
            fresh = [name for name in wanted if name not in looked_at]
            if fresh:
                looked_at.update(fresh)
                yield iter([getattr(owner, name, None) for name in fresh])
        for module, looked_at in list(self._modules):
            namespace = vars(module)
            fresh = sorted((namespace.keys() & self._names) - looked_at)
            if fresh:
                looked_at.update(fresh)
                yield iter([part for name in fresh for part in (name, namespace[name])])


_END = object()

# Of what is installed, what others are asked to put something into: it runs in every module.
_HOOKS = (hooked._global_forward_pre_hooks, hooked._global_forward_hooks)

# What functions and classes of the user's carry that is hardly ever read, and the names by which.
_ASIDE: dict[str, frozenset[str]] = {
    "__doc__": frozenset({"__doc__", "getdoc"}),
    "__annotations__": frozenset({"__annotations__", "get_annotations", "get_type_hints"}),
    "__dataclass_fields__": frozenset({"__dataclass_fields__", "fields", "metadata"}),
    "__name__": frozenset({"__name__"}),
    "__qualname__": frozenset({"__qualname__"}),
    "__module__": frozenset({"__module__"}),
}


def tensor_token(tensor: Tensor) -> tuple[Any, ...]:
    """Which tensor it is, and what a program compiled for it takes for granted."""
    return (id(tensor), tensor.requires_grad, *form(tensor))


def form(tensor: Tensor) -> tuple[Any, ...]:
    """What a compiled program takes for granted of a tensor."""
    lies = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    bits = (tensor.is_conj(), tensor.is_neg())
    return (type(tensor), tensor.shape, lies, bits, tensor.dtype, tensor.device)


def carried(tensor: Tensor) -> tuple[type, dict[str, Any]] | None:
    """What an argument tensor has of its own that no plain one has, to be looked through."""
    plain = type(tensor) is Tensor and not vars(tensor)
    return None if plain else (type(tensor), vars(tensor))


def _is_own(function: FunctionType) -> bool:
    """Whether a function is of this package, which holds still as what is installed does."""
    return str(function.__globals__.get("__name__")).partition(".")[0] == "bilevel"


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function of the user's holds and names."""
    yield function.__defaults__
    yield function.__kwdefaults__
    yield function.__dict__
    yield from _cells(function)
    scope = function.__globals__
    named = names(function.__code__)
    for name in named.globals:
        space = scope if name in scope else function.__builtins__
        if name in space:
            yield name
            yield space[name]
    if named.all_globals:
        for name in sorted(named.attributes & scope.keys()):
            yield name
            yield scope[name]
    if named.imports:
        yield from imported(named.imports, str(scope.get("__package__") or ""))


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell not filled yet
            yield NotImplemented


def _of_class(kind: type) -> Iterator[Any]:
    """Methods and settings that stand on a class of the user's, and the classes above it."""
    yield type(kind)
    yield from kind.__bases__
    for name, item in vars(kind).items():
        if name not in NEVER_READ and type(item) not in _ACCESS:
            yield name
            yield item


_ACCESS = (MemberDescriptorType, GetSetDescriptorType)

# Of recurrent layers: the parameters once more, or what functional_call put in their place.
_FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")


def _of_module(module: torch.nn.Module) -> Iterator[Any]:
    """What a module holds, without its dozen empty tables of hooks."""
    settings, *slots = _attributes(module, type(module))
    yield type(module)
    for name, item in settings.items():
        if name not in _FLAT_WEIGHTS and (not isinstance(item, dict) or item):
            yield name
            yield item
    yield from slots


def _attributes(item: Any, kind: type) -> list[Any]:
    """An object's own dict, if it has one, then what is in its slots."""
    own = attributes(item)
    found: list[Any] = [] if own is None else [own]
    for slot in kind_of(kind).members:
        try:
            found.append(slot.__get__(item, kind))
        except AttributeError:  # not filled yet
            found.append(NotImplemented)
    return found


def _chained(kind: type, *parts: Sequence[Any]) -> Iterator[Any]:
    yield kind
    for part in parts:
        yield from part


def describe(function: Callable[..., Any]) -> str:
    """A name for a function, for messages."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def code_of(function: Any) -> Any:
    """What stays the same of a function that is made anew: its code, or else its class."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            return getattr(function, "__code__", type(function))
