"""Runs user functions without a trace: the same randomness every time, RNG and buffers put back."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RngState = tuple[Tensor, ...]

Place = tuple[Any, Any]
"""A dict or list and a key of it: where a buffer hangs."""

# Longer containers hold data, not modules; looking through them would cost more than the gradient.
_LONGEST_SEARCHED = 1000

_CONTAINERS = (list, tuple, dict)
_COLLECTIONS = (set, frozenset, deque)
_NAMESPACES = (SimpleNamespace, argparse.Namespace)
_PLAIN = (str, int, float, bytes, type(None), type, Tensor)  # nothing hangs from these


class Guard:
    """Evaluates user functions under one remembered state of the random generators.

    Every evaluation inside :meth:`replay` sees the same random numbers, so that dropout masks
    agree between the objective, its gradient and every Hessian-vector product: those of the global
    generators, and of every ``torch.Generator`` the functions reach. It runs under the caller's
    autocast, which the package's own algebra does not. Buffers of every
    module the functions reach are stood in for by copies meanwhile. The originals are never
    written, so a graph that outlives the evaluation (ours, or one of the user's) stays valid. On
    the way out, also after an error, generators and modules are as they were.

    Args:
        functions: the user's callables; modules they are, are bound to, close over or name as
            globals are found.
        arguments: trees that may hold modules.
        device: where the tensors live; its generator is kept besides the CPU's.
    """

    def __init__(
        self, functions: Sequence[Callable[..., Any]], arguments: Any, device: torch.device
    ) -> None:
        self._device = device
        found = _search([*functions, arguments])
        self._places = _places(found)
        self._generators = found.generators
        self._seed = self._rng()
        self._autocast = _autocast(device)

    def _rng(self) -> RngState:
        states = [torch.get_rng_state()]
        if self._device.type not in ("cpu", "meta"):
            states.append(torch.get_device_module(self._device).get_rng_state(self._device))
        return (*states, *(generator.get_state() for generator in self._generators))

    def _set_rng(self, states: RngState) -> None:
        pending = iter(states)
        torch.set_rng_state(next(pending))
        if self._device.type not in ("cpu", "meta"):
            torch.get_device_module(self._device).set_rng_state(next(pending), self._device)
        for generator, state in zip(self._generators, pending, strict=True):
            generator.set_state(state)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Rewind the generators, run the body on copies of the buffers, put everything back."""
        before = self._rng()
        originals = [holder[key] for holder, key in self._places]
        copies = {id(buffer): buffer.clone() for buffer in originals}
        self._set_rng(self._seed)
        try:
            for (holder, key), buffer in zip(self._places, originals, strict=True):
                holder[key] = copies[id(buffer)]
            with self._autocast():
                yield
        finally:
            for (holder, key), buffer in zip(self._places, originals, strict=True):
                holder[key] = buffer
            self._set_rng(before)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turn the caller's autocast off, where it is on."""
    if not _has_autocast(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What puts the autocast of this moment in force again."""
    if not _has_autocast(device):
        return nullcontext
    dtype = torch.get_autocast_dtype(device.type)
    return lambda: torch.autocast(device.type, dtype=dtype)


def _has_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _places(found: _Found) -> list[Place]:
    """Where the buffers hang of every module in reach: in the modules, and in dicts and lists.

    The latter hold what ``functional_call`` is given, such as ``dict(module.named_buffers())``.
    """
    places: list[Place] = [
        (module._buffers, name)
        for module in found.modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    buffers = {id(holder[name]) for holder, name in places}
    if not buffers:
        return []
    for container in found.containers:
        items = container.items() if isinstance(container, dict) else enumerate(container)
        places.extend((container, key) for key, item in items if id(item) in buffers)
    return places


@dataclass(frozen=True)
class _Found:
    """What a search came across: modules (children included), dicts and lists, generators."""

    modules: list[torch.nn.Module]
    containers: list[Any]
    generators: list[torch.Generator]


def _search(roots: Sequence[Any]) -> _Found:
    """Everything of interest in reach of some objects."""
    modules: dict[int, torch.nn.Module] = {}
    containers: list[Any] = []
    generators: list[torch.Generator] = []
    pending: list[Any] = list(roots)
    seen: dict[int, Any] = {}  # holds what it has seen, so that no id is given out again
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, _PLAIN):
            continue
        seen[id(item)] = item
        if isinstance(item, torch.nn.Module):
            modules.update((id(module), module) for module in item.modules())
        elif isinstance(item, torch.Generator):
            generators.append(item)
        elif isinstance(item, FunctionType):
            pending.extend(_reached(item))
        elif isinstance(item, MethodType):
            pending.extend((item.__func__, item.__self__))
        elif isinstance(item, functools.partial):
            pending.extend((item.func, item.args, item.keywords))
        elif isinstance(item, _CONTAINERS):
            if len(item) <= _LONGEST_SEARCHED:
                pending.extend(item.values() if isinstance(item, dict) else item)
                if not isinstance(item, tuple):
                    containers.append(item)
        elif isinstance(item, _COLLECTIONS):
            if len(item) <= _LONGEST_SEARCHED:
                pending.extend(item)
        elif _is_user_object(item):
            pending.extend(_attributes(item))
        elif callable(item):  # functools.cache and the like
            pending.append(getattr(item, "__wrapped__", None))
    return _Found(list(modules.values()), containers, generators)


def _reached(function: FunctionType) -> list[Any]:
    """What a function holds: defaults, attributes, closure, and what its own file's globals name.

    What a decorator or ``torch.compile`` has wrapped is among the attributes.
    """
    reached: list[Any] = [function.__defaults__, function.__kwdefaults__, function.__dict__]
    for cell in function.__closure__ or ():
        try:
            reached.append(cell.cell_contents)
        except ValueError:  # a cell not filled yet
            continue
    if not _is_library(function.__module__):
        names = list(_names(function.__code__))
        for name in names:
            item = function.__globals__.get(name)
            if isinstance(item, ModuleType) and not _is_library(item.__name__):
                named = (vars(item).get(attribute) for attribute in names)
                reached.extend(one for one in named if not isinstance(one, FunctionType))
            # Functions imported from elsewhere are not followed into their own files.
            if not isinstance(item, FunctionType) or item.__globals__ is function.__globals__:
                reached.append(item)
    return reached


def _names(code: CodeType) -> Iterator[str]:
    """The names a function uses, those of the functions and comprehensions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_user_object(item: Any) -> bool:
    """An object whose attributes may hold modules: a callable, a bound ``self``, a trainer."""
    if isinstance(item, _NAMESPACES):
        return True
    return not inspect.ismodule(item) and not _is_library(type(item).__module__)


def _attributes(item: Any) -> Iterator[Any]:
    yield from getattr(item, "__dict__", {}).values()
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(item, name, None)


def _is_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return top in ("torch", "numpy") or top in sys.stdlib_module_names
