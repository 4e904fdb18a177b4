"""Methods by name: those of the package, and one in a file of the user's own."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import structured.methods
from structured.commands.specs import parse_method
from structured.estimators import MultiLabelClassifier
from structured.methods import CrossEntropy, Method, from_dict, known, register, registry, to_dict
from structured.named import as_method
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.runs import MODEL, TRAINING, VALIDATION

OWN = '''
from __future__ import annotations

from dataclasses import dataclass

from structured.methods import CrossEntropy, register


@register("careful")
@dataclass(frozen=True)
class Careful(CrossEntropy):
    """Cross-entropy with a learning rate that is halved beforehand."""

    care: float = 0.5

    @property
    def name(self) -> str:
        return "careful"

    def learner(self, models, **options):
        inner = CrossEntropy(self.lr * self.care, self.weight_decay)
        learner = inner.learner(models, **options)
        learner.method = self
        return learner
'''


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(known()))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The user's own file, imported."""
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_methods")
    del sys.modules["own_methods"]


def test_each_method_of_the_package_is_known_by_one_name() -> None:
    methods = known()
    for module in pkgutil.iter_modules(structured.methods.__path__):
        found = vars(importlib.import_module(f"structured.methods.{module.name}"))
        concrete = [
            value
            for value in found.values()
            if isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == f"structured.methods.{module.name}"
            and is_dataclass(value)
            and not inspect.isabstract(value)
        ]
        assert all(list(methods.values()).count(method) == 1 for method in concrete)
    for name, method in methods.items():
        assert type(as_method(name)) is method
        assert from_dict(to_dict(method())) == method()


def test_what_is_known_cannot_be_changed_but_by_registering() -> None:
    with pytest.raises(TypeError):
        known()["mine"] = CrossEntropy  # type: ignore[index]


def test_a_method_of_a_file_of_ones_own_can_be_named_like_the_packages_own(
    own: ModuleType,
) -> None:
    assert known()["careful"] is own.Careful
    method = own.Careful(lr=0.1)
    assert as_method("careful") == own.Careful()
    assert parse_method("careful: lr=0.1") == method
    assert to_dict(method) == {"type": "Careful", "lr": 0.1, "weight_decay": 0.0, "care": 0.5}
    assert from_dict(to_dict(method)) == method


def test_a_run_and_an_estimator_of_such_a_method_are_saved_and_read_again(
    own: ModuleType, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=1, device="cpu")
    options: dict[str, Any] = {"model": MODEL, "run_dir": tmp_path / "run"}
    result = train(own.Careful(), TRAINING, VALIDATION, config, **options)
    again = train(own.Careful(), TRAINING, VALIDATION, config, resume=True, **options)
    assert again.history == result.history
    x, y = np.eye(20), np.eye(20, 3)
    for method in ("careful", own.Careful(lr=0.1)):
        fitted = MultiLabelClassifier(method, hidden=(4,), epochs=1, device="cpu").fit(x, y)
        fitted.save(tmp_path / "classifier")
        loaded = MultiLabelClassifier.load(tmp_path / "classifier")
        assert loaded.method == method
        np.testing.assert_array_equal(loaded.predict_proba(x), fitted.predict_proba(x))
    tuned = MultiLabelClassifier("careful").set_params(method__care=0.25)
    assert tuned.method == own.Careful(care=0.25)


def test_a_taken_name_is_refused_and_so_is_a_taken_name_of_a_class() -> None:
    @dataclass(frozen=True)
    class Mine(CrossEntropy):
        """Something else."""

    before = dict(known())
    with pytest.raises(
        ValueError,
        match=r"register: found 'implicit' for Mine, but structured\.methods\.implicit has the "
        r"method 'implicit' \(Implicit\); wanted another name",
    ):
        register("implicit")(Mine)
    Mine.__name__ = "CrossEntropy"
    with pytest.raises(ValueError, match=r"'mine' for CrossEntropy, but structured\.methods\.cro"):
        register("mine")(Mine)
    Mine.__name__ = "Seal"  # what files call `SEAL`
    with pytest.raises(ValueError, match=r"'mine' for Seal, but structured\.methods\.seal"):
        register("mine")(Mine)
    assert dict(known()) == before


def test_a_file_that_is_run_anew_registers_its_class_anew(own: ModuleType) -> None:
    first = own.Careful
    second = importlib.reload(own).Careful
    assert second is not first
    assert known()["careful"] is second
    assert from_dict(to_dict(second())) == second()


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="found 'careful', wanted one of 'cross_entropy'"):
        as_method("careful")
