"""A run with a refit ends with the same bits wherever it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import structured.training
from structured.methods import CrossEntropyLearner
from tests.structured.runs import (
    BEST,
    FAST,
    FAST_IMPLICIT,
    REFIT,
    REFIT_STEPS,
    STEPS,
    TRAINING,
    VALIDATION,
    Killed,
    epochs_of,
    killed_in_step,
    outcome,
    run,
)

FIRST_STEPS = 4 * STEPS
KILLS = {
    "in the first training": 5,
    "in its last step": FIRST_STEPS,
    "in the first step of the refit": FIRST_STEPS + 1,
    "later in the refit": FIRST_STEPS + 2 * REFIT_STEPS + 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What runs with a refit leave behind that nothing has interrupted."""
    found = {}
    for method in (FAST, FAST_IMPLICIT):
        folder = tmp_path_factory.mktemp("whole")
        result = run(method, REFIT, run_dir=folder)
        assert len(result.history) == 4
        assert result.best_epoch == BEST
        found[method.name] = outcome(folder)
    return found


# A checkpoint at every step, or at the end alone.
@pytest.mark.parametrize(("method", "seconds"), [(FAST, 0.0), (FAST, 1e9), (FAST_IMPLICIT, 0.0)])
@pytest.mark.parametrize("step", KILLS.values(), ids=KILLS)
def test_a_run_killed_before_or_in_its_refit_ends_with_the_same_bits(
    method: Any, seconds: float, step: int, tmp_path: Path, whole: dict[str, Any]
) -> None:
    config = replace(REFIT, checkpoint_seconds=seconds)
    with killed_in_step(method, step):
        run(method, config, run_dir=tmp_path)
    torch.rand(3)  # the streams that this process happens to be at do not matter
    run(method, config, run_dir=tmp_path, resume=True)
    assert outcome(tmp_path) == whole[method.name]


@contextmanager
def _killed_in(name: str, call: int) -> Iterator[None]:
    """Within the block the n-th call of a function of `structured.training` is the end."""
    original, calls = getattr(structured.training, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured.training, name, counted)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize(
    ("name", "call"), [("joined", 1), ("save_models", 1), ("save_models", 2), ("write_json", 1)]
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_killed_between_its_trainings_and_files_ends_with_the_same_bits(
    name: str, call: int, finished: bool, tmp_path: Path, whole: dict[str, Any]
) -> None:
    if finished:  # and only then was a refit asked for
        run(FAST, replace(REFIT, refit=False), run_dir=tmp_path)
    with _killed_in(name, call):
        run(FAST, REFIT, run_dir=tmp_path, resume=finished)
    run(FAST, REFIT, run_dir=tmp_path, resume=True)
    assert outcome(tmp_path) == whole[FAST.name]


def test_asked_for_on_a_finished_run_a_refit_is_all_that_is_done(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(FAST, replace(REFIT, refit=False), run_dir=tmp_path)
    checkpoint = (tmp_path / "checkpoint.safetensors").read_bytes()
    original, rows = CrossEntropyLearner.step, []

    def step(self: Any, x: Tensor, y: Tensor) -> dict[str, float]:
        rows.append(len(x))
        return original(self, x, y)

    monkeypatch.setattr(CrossEntropyLearner, "step", step)
    run(FAST, REFIT, run_dir=tmp_path, resume=True)
    assert sum(rows) == BEST * (TRAINING.n_rows + VALIDATION.n_rows)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == checkpoint
    assert outcome(tmp_path) == whole[FAST.name]
    monkeypatch.setattr(CrossEntropyLearner, "step", None)  # now there is nothing left to do
    again = run(FAST, REFIT, run_dir=tmp_path, resume=True)
    assert again.selection is not None
    assert outcome(tmp_path) == whole[FAST.name]


def test_more_epochs_later_are_the_longer_run_with_its_refit(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    run(FAST, replace(REFIT, epochs=2), run_dir=tmp_path)
    assert epochs_of(tmp_path / "refit/log.csv") == 2
    run(FAST, REFIT, run_dir=tmp_path, resume=True)
    assert outcome(tmp_path) == whole[FAST.name]
