"""What objects hold besides their attributes: containers, arrays, and objects written in C."""

from __future__ import annotations

import array
import collections
import contextvars
import copyreg
import functools
import io
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import (
    ClassMethodDescriptorType,
    MappingProxyType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any

import torch

from bilevel._named import kind_of

_LARGEST_ARRAY = 4096
"""Numbers that an array may have; and a buffer eight times as many bytes."""


class Opaque(Exception):
    """An object that cannot be looked into; the message names it, as a clause."""


# What stands on a class but takes no part in what its methods compute.
NEVER_READ = frozenset(
    {"__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__annotations__"}
    | {"__dataclass_fields__", "__dataclass_params__", "__match_args__", "__slots__", "_abc_impl"}
    | {"__abstractmethods__", "__parameters__", "__orig_bases__", "__slotnames__"}
    | {"__static_attributes__", "__firstlineno__", "__annotate_func__", "__annotations_cache__"}
    | {"__annotate__", "__type_params__", "__hash__"}
)

# Generators of random numbers give other numbers the second time a function is traced. The others
# hold no numbers, or never others; or, as a file does, what cannot be looked at without moving on.
_INERT = (
    *(torch.Generator, torch.finfo, torch.iinfo, torch._ops.OperatorBase),
    *(torch._ops.OpOverloadPacket, io.IOBase, logging.Logger, logging.Handler),
    *(ClassMethodDescriptorType, MethodDescriptorType, WrapperDescriptorType),
)
_INERT_PLACES = frozenset(
    {"_thread", "threading", "queue", "_queue", "random", "_random", "typing", "numpy.random"}
)


def is_inert(item: Any) -> bool:
    """Whether an object counts by which it is alone."""
    if isinstance(item, threading.local):
        return False
    if isinstance(item, _INERT):
        return True
    place = type(item).__module__
    return isinstance(place, str) and (
        place in _INERT_PLACES or place.startswith(("numpy.random.", "io.", "_io"))
    )


def contents(item: Any) -> list[Any]:
    """What an object holds that neither its attributes nor its slots show.

    Raises:
        Opaque: it is written in C and nothing tells what it holds.
    """
    for kinds, look in _LOOKS:
        if isinstance(item, kinds):
            return list(look(item))
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.ndarray | numpy.generic):
        return _of_array(item)
    return _reduced(item) if kind_of(type(item)).hidden else []


def _of_array(item: Any) -> list[Any]:
    if item.size > _LARGEST_ARRAY:
        raise Opaque(
            f"holds an array of shape {item.shape} that is no argument; make it a tensor and pass "
            "it in inner_args or outer_args"
        )
    inside = item.tolist() if item.dtype.hasobject else item.tobytes()
    return [item.shape, str(item.dtype), inside]


def _of_buffer(item: Any) -> list[Any]:
    found = bytes(item)
    if len(found) > 8 * _LARGEST_ARRAY:
        raise Opaque(
            f"holds a {type(item).__name__} of {len(found)} bytes that is no argument; make it a "
            "tensor and pass it in inner_args or outer_args"
        )
    return [found]


def _reduced(item: Any) -> list[Any]:
    """What a copy of an object written in C would be made from."""
    name = f"{type(item).__module__}.{type(item).__qualname__}"
    if isinstance(item, Iterator):
        raise Opaque(f"holds an iterator ({name}), which gives something else each time")
    reducer = copyreg.dispatch_table.get(type(item))
    try:
        found = reducer(item) if reducer is not None else item.__reduce_ex__(2)
    except Exception:
        raise Opaque(
            f"holds an object that cannot be looked into ({name}); pass what is read off it in "
            "inner_args or outer_args"
        ) from None
    if isinstance(found, str):  # a global name
        return [found, id(item)]
    return [list(part) if isinstance(part, Iterator) else part for part in found]


def _pairs(item: Any) -> Iterator[Any]:
    for pair in item.items():
        yield from pair


def _sorted(item: Iterable[Any]) -> list[Any]:
    return sorted(item, key=repr)


def _referred(item: weakref.ref[Any]) -> list[Any]:
    return [item()]


def _as_text(kind: Any) -> Callable[[Any], list[Any]]:
    return lambda item: [kind.__repr__(item)]


_LOOKS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    (collections.defaultdict, lambda item: (item.default_factory, *_pairs(item))),
    ((dict, MappingProxyType), _pairs),
    (collections.deque, lambda item: (item.maxlen, *item)),
    ((list, tuple), iter),
    ((set, frozenset), _sorted),
    *(((kind,), _as_text(kind)) for kind in (int, float, complex, str, bytes)),
    ((bytearray, memoryview), _of_buffer),
    (array.array, lambda item: (item.typecode, *_of_buffer(item))),
    (contextvars.ContextVar, lambda item: (item.get(None),)),
    (weakref.ref, _referred),
    (functools.partial, lambda item: (item.func, item.args, item.keywords)),
    (property, lambda item: (item.fget, item.fset, item.fdel)),
    ((staticmethod, classmethod), lambda item: (item.__func__,)),
    (range, lambda item: (item.start, item.stop, item.step)),
    # Their attributes say it all: what is cached was computed from what is seen.
    ((threading.local, functools._lru_cache_wrapper), lambda item: ()),
)
