"""What functions depend on besides their arguments, in a form that two calls can be compared by."""

from __future__ import annotations

import enum
import functools
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor

# More than this is data, not settings, and looking through it would cost more than it saves.
_MOST = 20_000
_LARGEST_ARRAY = 4096

_VALUES = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout, enum.Enum)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class Unseen(Exception):
    """Something that cannot be compared from call to call; the message names it."""


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
    """

    tokens: list[Any] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    anchors: list[Any] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, roots: Sequence[Any]) -> Fingerprint:
        """Look through closures, defaults, attributes, containers, modules and named globals.

        Raises:
            Unseen: there is too much of it, or an array too large to be compared.
        """
        found = cls()
        pending = [iter(roots)]
        while pending:
            item = next(pending[-1], _END)
            if item is _END:
                pending.pop()
                found.tokens.append(_END)
                continue
            if len(found.tokens) > _MOST:
                raise Unseen("the functions reach too much to be looked through in every call")
            below = found._note(item)
            if below is not None:
                pending.append(below)
        return found

    def _note(self, item: Any) -> Iterator[Any] | None:
        """Add the token of one object; what to look at below it, if anything."""
        if isinstance(item, _VALUES):
            self.tokens.append((type(item), item))
            return None
        if isinstance(item, float | complex):
            self.tokens.append(repr(item))  # tells 0.0 from -0.0, and nan equals itself
            return None
        if isinstance(item, CodeType):
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
            # A subclass or a parameter may carry more, but values alone take part.
            return None
        return self._below(item)

    def _below(self, item: Any) -> Iterator[Any] | None:
        if isinstance(item, FunctionType):
            if (item.__module__ or "").partition(".")[0] == "bilevel":
                self.tokens.append(id(item))  # holds still, as what is installed does
                return None
            if _is_installed(item.__code__):
                self.tokens.append(id(item))
                return _cells(item)
            self.tokens.append(item.__code__)
            return _held(item)
        if isinstance(item, MethodType):
            return iter((item.__func__, item.__self__))
        if isinstance(item, functools.partial):
            return iter((item.func, item.args, item.keywords))
        if isinstance(item, dict | MappingProxyType):
            self.tokens.append((type(item), len(item)))
            return (part for pair in item.items() for part in pair) if item else None
        if isinstance(item, list | tuple):
            self.tokens.append((type(item), len(item)))
            return iter(item) if item else None
        if isinstance(item, set | frozenset):
            self.tokens.append((type(item), len(item)))
            return iter(sorted(item, key=repr))
        if isinstance(item, type):
            self.tokens.append(id(item))
            still = item.__module__.partition(".")[0] in ("builtins", "typing", "bilevel", "torch")
            return None if still else _of_class(item)
        if isinstance(item, ModuleType | BuiltinFunctionType | torch.Generator):
            self.tokens.append(id(item))
            return None
        if hasattr(item, "__array_interface__"):
            if item.size > _LARGEST_ARRAY:
                raise Unseen(
                    f"an array of shape {item.shape} is used that is no argument; make it a tensor "
                    "and pass it in inner_args or outer_args"
                )
            self.tokens.append((id(type(item)), item.shape, str(item.dtype), item.tobytes()))
            return None
        if isinstance(item, torch.nn.Module):
            self.tokens.append(id(type(item)))
            return _of_module(item)
        self.tokens.append(id(type(item)) if _attributes(item) else id(item))
        return iter((type(item), *_attributes(item)))


_END = object()


def tensor_token(tensor: Tensor) -> tuple[Any, ...]:
    """Which tensor it is, and what a program compiled for it takes for granted."""
    return (id(tensor), *form(tensor))


def form(tensor: Tensor) -> tuple[Any, ...]:
    """What a compiled program takes for granted of a tensor."""
    if tensor.layout is not torch.strided:
        return (type(tensor), tensor.shape, tensor.layout, tensor.dtype, tensor.device)
    return (type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function of the user's holds and names."""
    yield function.__defaults__
    yield function.__kwdefaults__
    yield function.__dict__
    yield from _cells(function)
    names = tuple(dict.fromkeys(_names(function.__code__)))
    for name in names:
        if name not in function.__globals__:
            continue
        item = function.__globals__[name]
        yield item
        if isinstance(item, ModuleType) and not _is_torch(item):
            # settings.rate: a plain value that hangs from a module
            for attribute in names:
                value = getattr(item, attribute, None)
                if isinstance(value, (*_VALUES, float, complex, Tensor, FunctionType)):
                    yield value


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue


def _names(code: CodeType) -> Iterator[str]:
    """The names a function uses, those of the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_class(kind: type) -> Iterator[Any]:
    """Methods and settings that stand on a class of the user's."""
    for base in kind.__mro__:
        for name, item in vars(base).items():
            function = getattr(item, "__func__", getattr(item, "fget", item))
            if isinstance(function, FunctionType):
                if _is_installed(function.__code__):
                    break  # a class that is installed: it holds still
                yield function
            elif isinstance(item, (*_VALUES, float, Tensor, list, dict)) and name[:2] != "__":
                yield item


# Of recurrent layers: the parameters once more, or what functional_call put in their place.
_FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")


def _of_module(module: torch.nn.Module) -> Iterator[Any]:
    """What a module holds, without its dozen empty tables of hooks."""
    settings, *slots = _attributes(module)
    yield type(module)
    for name, item in settings.items():
        if name not in _FLAT_WEIGHTS and (not isinstance(item, dict) or item):
            yield name
            yield item
    yield from slots


def _attributes(item: Any) -> list[Any]:
    found = []
    if hasattr(item, "__dict__"):
        found.append(vars(item))
    for base in type(item).__mro__:
        slots: Any = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                found.append(getattr(item, name))
    return found


def _is_installed(code: CodeType) -> bool:
    return code.co_filename.startswith(_INSTALLED) or code.co_filename.startswith("<frozen")


def _is_torch(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == "torch"


def describe(function: Callable[..., Any]) -> str:
    """A name for a function, for messages."""
    return getattr(function, "__qualname__", type(function).__qualname__)
