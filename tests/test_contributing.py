"""The walk-through of CONTRIBUTING: the method in it works everywhere that methods do."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from structured.commands.app import app
from structured.estimators import MultiLabelClassifier
from structured.methods import Method, from_dict, known, registry, to_dict
from structured.search import candidates
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.runs import MODEL, TRAINING, VALIDATION

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Method]]:
    """The method of the page's one Python block, from a file of its own."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    folder = tmp_path_factory.mktemp("contributed")
    (folder / "smoothed_walkthrough.py").write_text(block)
    before = dict(known())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.import_module("smoothed_walkthrough")
        yield known()["smoothed"]
    del sys.modules["smoothed_walkthrough"]
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


def test_the_walk_through_method_lowers_its_loss(smoothed: Any) -> None:
    config = TrainConfig(epochs=20, batch_size=16, patience=None, device="cpu")
    result = train(smoothed(lr=0.01), TRAINING, VALIDATION, config, model=MODEL, progress=False)
    first, last = result.history[0]["cross_entropy"], result.history[-1]["cross_entropy"]
    assert last < 0.95 * first


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    smoothed: Any, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=3, batch_size=16, device="cpu", checkpoint_seconds=0.0)

    class Killed(BaseException):
        pass

    def kill(record: object) -> None:
        raise Killed

    options = {"model": MODEL, "progress": False}
    whole = train(smoothed(), TRAINING, VALIDATION, config, **options)
    with pytest.raises(Killed):
        train(smoothed(), TRAINING, VALIDATION, config, run_dir=tmp_path, on_epoch=kill, **options)
    resumed = train(
        smoothed(), TRAINING, VALIDATION, config, run_dir=tmp_path, resume=True, **options
    )
    assert resumed.history == whole.history
    assert bool((resumed.predict(VALIDATION.X) == whole.predict(VALIDATION.X)).all())


def test_the_walk_through_method_is_written_down_and_read_again(smoothed: Any) -> None:
    assert from_dict(to_dict(smoothed(amount=0.3))) == smoothed(amount=0.3)


def test_a_search_varies_its_options(smoothed: Any) -> None:
    found = candidates(smoothed(), 12, seed=0)
    assert len(set(found)) == 9  # all that its space holds, the method itself among them
    assert found[0] == smoothed()


def test_the_estimator_knows_it_by_name(smoothed: Any) -> None:
    generator = np.random.default_rng(0)
    X, y = generator.random((40, 5)), generator.integers(0, 2, (40, 3))
    found = MultiLabelClassifier("smoothed", hidden=(4,), epochs=1, device="cpu").fit(X, y)
    assert found.predict(X).shape == (40, 3)


def test_the_command_line_lists_it_with_its_options(smoothed: Any) -> None:
    found = CliRunner().invoke(app, ["methods", "smoothed"], env={"NO_COLOR": "1"})
    assert found.exit_code == 0
    for option in ("amount", "lr"):
        assert option in found.stdout
