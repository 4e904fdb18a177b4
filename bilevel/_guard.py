"""Runs user functions without a trace: the same randomness every time, RNG and buffers put back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

RngState = tuple[Tensor, Tensor | None]

# Longer containers hold data, not modules; looking through them would cost more than the gradient.
_LONGEST_SEARCHED = 1000


class Guard:
    """Evaluates user functions under one remembered state of the random generators.

    Every evaluation inside :meth:`replay` sees the same random numbers, so that dropout masks
    agree between the objective, its gradient and every Hessian-vector product. On the way out,
    also after an error, the generators and the buffers of every module the functions reach are as
    they were.

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
        self._buffers = [
            buffer
            for module in _modules(functions, arguments)
            for buffer in module.buffers()
            if buffer is not None
        ]
        self._seed = self._rng()

    def _rng(self) -> RngState:
        if self._device.type in ("cpu", "meta"):
            return torch.get_rng_state(), None
        module = torch.get_device_module(self._device)
        return torch.get_rng_state(), module.get_rng_state(self._device)

    def _set_rng(self, state: RngState) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.get_device_module(self._device).set_rng_state(state[1], self._device)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Rewind the generators, run the body, put generators and buffers back."""
        before = self._rng()
        saved = [buffer.detach().clone() for buffer in self._buffers]
        self._set_rng(self._seed)
        try:
            yield
        finally:
            self._set_rng(before)
            self._restore(saved)

    def _restore(self, saved: Sequence[Tensor]) -> None:
        # Written only where it changed: a needless write would bump the version of a buffer that
        # the user's own graph may have saved for its backward.
        with torch.no_grad():
            for buffer, value in zip(self._buffers, saved, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _modules(functions: Sequence[Callable[..., Any]], arguments: Any) -> list[torch.nn.Module]:
    found: dict[int, torch.nn.Module] = {}
    pending: list[Any] = [*functions, *pytree.tree_leaves(arguments)]
    seen: set[int] = set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.nn.Module):
            found[id(item)] = item
        elif isinstance(item, FunctionType):
            pending.extend(_reached(item))
        elif isinstance(item, MethodType):
            pending.extend((item.__func__, item.__self__))
        elif isinstance(item, functools.partial):
            pending.extend((item.func, *item.args, *item.keywords.values()))
        elif isinstance(item, list | tuple) and len(item) <= _LONGEST_SEARCHED:
            pending.extend(item)
        elif isinstance(item, dict) and len(item) <= _LONGEST_SEARCHED:
            pending.extend(item.values())
        elif _is_user_object(item):
            pending.extend(vars(item).values())
    return list(found.values())


def _reached(function: FunctionType) -> list[Any]:
    reached: list[Any] = [*(function.__defaults__ or ())]
    for cell in function.__closure__ or ():
        try:
            reached.append(cell.cell_contents)
        except ValueError:  # a cell not filled yet
            continue
    for name in function.__code__.co_names:
        item = function.__globals__.get(name)
        # Library functions are not searched: only what the user's own file names.
        if isinstance(item, torch.nn.Module) or (
            isinstance(item, FunctionType) and item.__globals__ is function.__globals__
        ):
            reached.append(item)
    wrapped = getattr(function, "__wrapped__", None) or getattr(
        function, "_torchdynamo_orig_callable", None
    )
    if wrapped is not None:
        reached.append(wrapped)
    return reached


def _is_user_object(item: Any) -> bool:
    """A plain callable object or a bound ``self`` whose attributes may hold modules."""
    return (
        not isinstance(item, Tensor | type | str | bytes)
        and not inspect.ismodule(item)
        and hasattr(item, "__dict__")
        and type(item).__module__ not in ("builtins", "torch")
        and not type(item).__module__.startswith(("torch.", "numpy"))
    )
