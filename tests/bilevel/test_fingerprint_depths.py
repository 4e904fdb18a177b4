"""Changes in places that objects show only to those who ask for them are seen, or refused."""

from __future__ import annotations

import builtins
import collections
import dataclasses
import functools
import io
import logging
import queue
import random
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bilevel._compiling.fingerprint import Fingerprint, Unseen
from tests.bilevel.test_fingerprint import seen

Kinds = list[tuple[Callable[[], Any], Callable[[], Any]]]


def assert_seen(kinds: Kinds) -> None:
    for function, change in kinds:
        assert seen(function, change)


def test_what_objects_for_threads_and_chance_hold_is_seen_to_change() -> None:
    event, counter, waiting = threading.Event(), threading.Semaphore(2), queue.Queue[float]()
    worker, chance = threading.Thread(target=print), random.Random(0)
    waiting.put(1.0)
    assert_seen(
        [
            (event.is_set, event.set),
            (lambda: counter._value, counter.acquire),  # pyright: ignore[reportAttributeAccessIssue]
            (lambda: waiting.queue[0], lambda: waiting.queue.__setitem__(0, 2.0)),
            (lambda: worker, lambda: setattr(worker, "rate", 2.0)),
            (lambda: chance, lambda: setattr(chance, "rate", 2.0)),
        ]
    )


def test_numbers_drawn_and_threads_that_wait_elsewhere_are_no_change() -> None:
    chance, lock = random.Random(0), threading.Condition()
    assert not seen(lambda: chance, lambda: chance.gauss(0.0, 1.0))
    assert not seen(lambda: lock, lambda: lock._waiters.append(None))  # pyright: ignore[reportAttributeAccessIssue]


class _Empty(list[float]):
    def __iter__(self) -> Iterator[float]:
        return iter(())


class _NoItems(dict[str, float]):
    def items(self) -> Any:
        return ()


class _NoBytes(bytearray):
    def __bytes__(self) -> bytes:
        return b""


def test_what_containers_hold_is_seen_whatever_their_class_makes_of_iteration() -> None:
    numbers, table, buffer = _Empty([1.0]), _NoItems(a=1.0), _NoBytes(b"1")
    ordered = collections.OrderedDict(a=1.0, b=2.0)
    view = types.MappingProxyType(table)
    under: Any = np.ma.array([1.0, 2.0], mask=[True, False])
    assert_seen(
        [
            (lambda: numbers[0], lambda: numbers.__setitem__(0, 2.0)),
            (lambda: table["a"], lambda: table.update(a=2.0)),
            (lambda: buffer[0], lambda: buffer.__setitem__(0, 2)),
            (lambda: next(iter(ordered)), lambda: ordered.move_to_end("a")),
            (lambda: view["a"], lambda: table.update(a=3.0)),
            (lambda: under.data[0], lambda: under.data.__setitem__(0, 5.0)),
            (lambda: under.mask, lambda: under.mask.__setitem__(1, True)),
        ]
    )


class _Log(logging.Handler):
    rate = 1.0


class _File(io.StringIO):
    rate = 1.0


@pytest.mark.parametrize("place", ["_iotools", "_io", "threading", "numpy.random._own", "random"])
def test_a_class_that_only_goes_by_the_name_of_a_library_is_looked_into(place: str) -> None:
    held: Any = type("Settings", (), {"__module__": place})()
    held.rate = 1.0
    assert seen(lambda: held.rate, lambda: setattr(held, "rate", 2.0))


@pytest.mark.parametrize("kind", [_Log, _File])
def test_attributes_of_a_file_or_log_of_a_class_of_ones_own_are_seen_to_change(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = kind()
    assert_seen(
        [
            (lambda: held.rate, lambda: setattr(held, "rate", 2.0)),
            (lambda: held.rate, lambda: monkeypatch.setattr(kind, "rate", 3.0)),
        ]
    )


class _Weighted(Tensor):
    rate = 1.0


def test_a_setting_of_the_class_of_a_held_tensor_is_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = torch.ones(2).as_subclass(_Weighted)
    assert seen(lambda: held.rate, lambda: monkeypatch.setattr(_Weighted, "rate", 2.0))


def test_a_name_that_someone_has_put_among_the_builtins_is_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builtins, "BILEVEL_RATE", 1.0, raising=False)
    read = lambda: BILEVEL_RATE + len([])  # noqa: E731, F821  # pyright: ignore[reportUndefinedVariable]
    assert seen(read, lambda: monkeypatch.setattr(builtins, "BILEVEL_RATE", 2.0))
    assert seen(read, lambda: monkeypatch.setattr(builtins, "len", lambda _: 3))


@functools.cache
def _kept() -> float:
    return random.random()


def test_a_cache_that_is_cleared_is_seen_to_be_and_one_that_grows_is_no_change() -> None:
    _kept.cache_clear()
    read = lambda: _kept()  # noqa: E731
    assert not seen(read, _kept)
    for _ in range(2):
        assert seen(read, _kept.cache_clear)
        assert not seen(read, _kept)


@dataclasses.dataclass
class _Options:
    """1"""

    rate: float = dataclasses.field(default=1.0, metadata={"unit": [1.0]})


def test_documentation_annotations_and_metadata_are_seen_to_change_where_they_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = _Options()

    def own() -> Any:
        return own.__annotations__, own.__doc__, own.__name__

    assert_seen(
        [
            (lambda: _Options.__doc__, lambda: monkeypatch.setattr(_Options, "__doc__", "2")),
            (lambda: options.__annotations__, lambda: _Options.__annotations__.update(rate=int)),
            (lambda: own.__name__, lambda: setattr(own, "__name__", "other")),
            (
                lambda: dataclasses.fields(options)[0].metadata["unit"],
                lambda: dataclasses.fields(options)[0].metadata["unit"].append(2.0),
            ),
            (own, lambda: own.__annotations__.update(rate=float)),
            (own, lambda: setattr(own, "__doc__", "2")),
        ]
    )
    assert not seen(lambda: options, lambda: monkeypatch.setattr(_Options, "__doc__", "3"))


def test_a_queue_that_nobody_can_look_into_is_refused() -> None:
    held = queue.SimpleQueue[float]()
    with pytest.raises(Unseen, match="SimpleQueue"):
        Fingerprint.of([lambda: held])


def test_a_hook_for_all_modules_is_seen_to_come_and_go() -> None:
    held = nn.Linear(2, 2)
    hooks: list[Any] = []
    add = lambda: hooks.append(register_module_forward_hook(lambda *_: None))  # noqa: E731
    assert seen(lambda: held(torch.ones(2)), add)
    assert seen(lambda: held(torch.ones(2)), lambda: hooks.pop().remove())
