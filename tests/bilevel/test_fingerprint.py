"""What a function depends on besides its arguments is seen to change, or refused."""

from __future__ import annotations

import array
import collections
import contextvars
import dataclasses
import enum
import functools
import os
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bilevel._compiling.fingerprint import Fingerprint, Unseen

RATE = 1.0


class Meta(type):
    rate = 1.0


class Settings(metaclass=Meta):
    rates: tuple[float, ...] = (1.0, 2.0)
    chosen = frozenset({1.0})
    nested = types.SimpleNamespace(rate=1.0)
    shared: Any = None
    complex = 1j

    class Inner:
        rate = 1.0

    def read(self) -> Any:
        return self.rates, self.chosen, self.nested, self.shared, self.complex, self.Inner.rate


class Colour(enum.Enum):
    RED = 1


class Table(dict[str, float]):
    rate = 1.0


class Slotted:
    __slots__ = ("__rate",)

    def __init__(self) -> None:
        self.__rate = 1.0

    def double(self) -> None:
        self.__rate *= 2


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's."""
    module: Any = types.ModuleType("bilevel_test_settings")
    module.rate, module.rates, module.table = 1.0, [1.0], {"a": 1.0}
    module.holder = types.SimpleNamespace(rate=1.0)
    below: Any = types.ModuleType("below")
    below.rate, module.below = 1.0, below
    module.network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    module.unnamed = 1.0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def seen(function: Any, change: Callable[[], Any]) -> bool:
    """Whether a change shows; and that nothing shows before it."""
    before = Fingerprint.of([function])
    assert Fingerprint.of([function]).tokens == before.tokens
    change()
    return Fingerprint.of([function]).tokens != before.tokens


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (Settings, "rates", (3.0, 2.0)),
        (Settings, "chosen", frozenset({3.0})),
        (Settings.nested, "rate", 3.0),
        (Settings, "shared", nn.Linear(1, 1)),
        (Settings, "complex", 2j),
        (Settings.Inner, "rate", 3.0),
        (Meta, "rate", 3.0),
    ],
)
def test_whatever_stands_on_a_class_is_seen_to_change(
    owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen(Settings().read, lambda: monkeypatch.setattr(owner, name, value))


def _by_import() -> float:
    import bilevel_test_settings as found  # pyright: ignore[reportMissingImports]

    return found.rate


def test_what_hangs_from_a_module_is_seen_to_change_however_it_is_reached(settings: Any) -> None:
    holder = types.SimpleNamespace(module=settings)
    kinds: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: settings.rate, lambda: setattr(settings, "rate", 2.0)),
        (lambda: settings.rates[0], lambda: settings.rates.append(2.0)),
        (lambda: settings.table["a"], lambda: settings.table.update(a=2.0)),
        (lambda: settings.holder.rate, lambda: setattr(settings.holder, "rate", 2.0)),
        (lambda: settings.below.rate, lambda: setattr(settings.below, "rate", 2.0)),
        (lambda: settings.network(torch.ones(2)), lambda: settings.network.eval()),
        (lambda: holder.module.rate, lambda: setattr(settings, "rate", 3.0)),
        (lambda: getattr(settings, "rate"), lambda: setattr(settings, "rate", 4.0)),  # noqa: B009
        (_by_import, lambda: setattr(settings, "rate", 5.0)),
    ]
    for function, change in kinds:
        assert seen(function, change)
    assert not seen(lambda: settings.rate, lambda: setattr(settings, "unnamed", 2.0))


def test_a_global_read_from_the_dict_of_globals_is_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = lambda: monkeypatch.setitem(globals(), "RATE", 2.0)  # noqa: E731
    assert seen(lambda: globals()["RATE"], change)


def test_what_containers_hold_that_have_no_attributes_is_seen_to_change() -> None:
    deque, buffer = collections.deque([1.0]), bytearray(b"\x01")
    numbers, variable = array.array("d", [1.0]), contextvars.ContextVar("rate", default=1.0)
    by_default = collections.defaultdict(lambda: RATE)
    local, slotted = threading.local(), Slotted()
    known = {"rate": 1.0}
    reader = known.get
    kinds: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: deque[0], lambda: deque.append(2.0)),
        (lambda: buffer[0], lambda: buffer.append(2)),
        (lambda: numbers[0], lambda: numbers.append(2.0)),
        (variable.get, lambda: variable.set(2.0)),
        (lambda: by_default[0], lambda: setattr(by_default, "default_factory", lambda: 2.0)),
        (lambda: local.rate, lambda: setattr(local, "rate", 2.0)),
        (lambda: slotted, slotted.double),
        (lambda: reader("rate"), lambda: known.update(rate=2.0)),
    ]
    for function, change in kinds:
        assert seen(function, change)


def test_attributes_of_tensors_enum_members_and_kinds_of_values_are_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, table = nn.Parameter(torch.ones(2)), Table(a=1.0)
    kinds: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: weight, lambda: weight.requires_grad_(False)),
        (lambda: weight, lambda: setattr(weight, "decay", 2.0)),
        (lambda: weight.grad is None, lambda: setattr(weight, "grad", torch.ones(2))),
        (lambda: Colour.RED, lambda: monkeypatch.setattr(Colour.RED, "rate", 2.0, raising=False)),
        (lambda: table, lambda: monkeypatch.setattr(Table, "rate", 2.0)),
    ]
    for function, change in kinds:
        assert seen(function, change)


@pytest.mark.parametrize("held", [iter([1.0]), (x for x in [1.0]), lambda: eval("RATE")])
def test_what_cannot_be_looked_into_is_refused(held: Any) -> None:
    with pytest.raises(Unseen, match=r"iterator|text"):
        Fingerprint.of([lambda: held])


@dataclasses.dataclass
class _Options:
    rate: float = 1.0


def test_an_object_that_holds_nothing_counts_by_which_it_is() -> None:
    held = types.SimpleNamespace(mark=object())
    assert seen(lambda: held, lambda: setattr(held, "mark", object()))


def test_what_functions_usually_hold_is_neither_refused_nor_seen_to_change() -> None:
    weight = nn.Linear(2, 2)
    network = nn.Sequential(weight, nn.LSTM(2, 2))
    held = (
        *(network, torch.optim.Adam(network.parameters()), _Options(), functools.partial(max, 1)),
        *(torch.Generator(), threading.Lock(), range(3), slice(2), weakref.ref(network), torch.ops),
        *(torch.func.vmap(torch.sin), torch.nn.functional, list[int], collections.Counter("a")),
        *(torch.distributions.Normal(0.0, 1.0), torch.ops.aten.add.Tensor, torch.sum, sys.stdout),
    )
    function = lambda: held  # noqa: E731
    assert not seen(function, lambda: weight.weight.data.mul_(2.0))


def test_packages_of_an_environment_below_this_one_hold_still(tmp_path: Path) -> None:
    # As with PYTHONPATH or a .pth file: what is installed is not only what pip put beside Python.
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "settled.py").write_text("def rate(): return 1.0\n")
    (tmp_path / "site-packages-of-mine").mkdir()
    (tmp_path / "site-packages-of-mine" / "moving.py").write_text("def rate(): return 1.0\n")
    script = (
        "import moving, settled\n"
        "from bilevel._compiling.named import is_installed, module_holds_still\n"
        "print(*(f(x) for f, x in [(is_installed, settled.rate.__code__),"
        "(module_holds_still, settled), (is_installed, moving.rate.__code__)]))"
    )
    paths = [packages, tmp_path / "site-packages-of-mine", *filter(None, sys.path)]
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["True", "True", "False"], found.stderr
