"""What objects hold besides their attributes: containers, arrays, and objects written in C."""

from __future__ import annotations

import array
import collections
import contextvars
import copyreg
import functools
import gc
import io
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import (
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any

import torch

from bilevel._compiling.named import kind_of

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
    *(GetSetDescriptorType, MemberDescriptorType),
)
# Of subclasses of these, attributes are all there is to look at.
_SAID_BY_ATTRIBUTES = (threading.local, random.Random, *_INERT)
_INERT_PLACES = frozenset({"_thread", "_random", "typing", "numpy.random", "io", "_io"})

# Attributes that come and go with what others do: numbers drawn, threads that wait.
_DRAWN_OR_WAITED_FOR = (random.Random, threading.Condition)
_PASSING = frozenset({"gauss_next", "_waiters"})


def is_inert(item: Any) -> bool:
    """Whether an object counts by which it is alone."""
    kind = type(item)
    if isinstance(item, threading.local) or not kind_of(kind).still:
        return False
    place = str(kind.__module__)
    return isinstance(item, _INERT) or place in _INERT_PLACES or place.startswith("numpy.random.")


def attributes(item: Any) -> dict[str, Any] | None:
    """An object's own dict, if it has one, without what comes and goes."""
    if not hasattr(item, "__dict__"):
        return None
    if isinstance(item, _DRAWN_OR_WAITED_FOR):
        return {name: value for name, value in vars(item).items() if name not in _PASSING}
    return item.__dict__


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
    if not kind_of(type(item)).hidden or isinstance(item, _SAID_BY_ATTRIBUTES):
        return []
    return _reduced(item)


def _of_array(item: Any) -> list[Any]:
    item = sys.modules["numpy"].asarray(item)  # of a subclass, what lies under it: under a mask
    if item.size > _LARGEST_ARRAY:
        raise Opaque(
            f"holds an array of shape {item.shape} that is no argument; make it a tensor and pass "
            "it in inner_args or outer_args"
        )
    inside = item.tolist() if item.dtype.hasobject else item.tobytes()
    return [item.shape, str(item.dtype), inside]


def _of_buffer(item: Any) -> list[Any]:
    found = bytes(memoryview(item))
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


_CONTAINERS = (list, tuple, set, frozenset, collections.deque)


def _items(item: Any) -> Iterator[Any]:
    """What a container holds, whatever its class makes of iteration."""
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(item, kind))
    return kind.__iter__(item)


def _pairs(item: Any) -> Iterator[Any]:
    """The same of a dict, in an order that ``move_to_end`` may have changed."""
    kind = collections.OrderedDict if isinstance(item, collections.OrderedDict) else dict
    for pair in kind.items(item):
        yield from pair


def _sorted(item: Any) -> list[Any]:
    return sorted(_items(item), key=repr)


def _referred(item: weakref.ref[Any]) -> list[Any]:
    return [item()]


# Misses of a cache when last looked at, and how often it had been cleared.
_caches: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


def _clearings(item: Any) -> list[Any]:
    """How often a cache was cleared: what it keeps was computed from what was seen until then."""
    misses = item.cache_info().misses
    before, cleared = _caches.get(item, (0, 0))
    _caches[item] = (misses, cleared + (misses < before))
    return [_caches[item][1]]


def _as_text(kind: Any) -> Callable[[Any], list[Any]]:
    return lambda item: [kind.__repr__(item)]


_LOOKS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    (collections.defaultdict, lambda item: (item.default_factory, *_pairs(item))),
    (dict, _pairs),
    (MappingProxyType, gc.get_referents),
    (collections.deque, lambda item: (item.maxlen, *_items(item))),
    ((list, tuple), _items),
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
    (functools._lru_cache_wrapper, _clearings),
)
