"""A killed run ends as if nothing had happened, and only the same run is resumed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import structured._loop
import structured.checkpoint
from structured.data import MultiLabelData
from structured.errors import CheckpointError
from structured.methods import CrossEntropy, CrossEntropyLearner, Learner
from structured.models import build_models
from structured.training import train
from tests.structured import _killed_run as program
from tests.structured.runs import (
    CONFIG,
    METHODS,
    MODEL,
    QUICK,
    STEPS,
    TRAINING,
    VALIDATION,
    Killed,
    models,
    outcome,
    run,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}

    def found(method: str) -> dict[str, Any]:
        if method not in known:
            folder = tmp_path_factory.mktemp("whole")
            program.run(method, folder, resume=False)
            known[method] = outcome(folder)
        return known[method]

    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that another process killed and resumed; one folder per method."""
    folder = tmp_path_factory.mktemp("killed")
    found = subprocess.run(
        [sys.executable, program.__file__, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_every_kind_of_place_ends_with_the_same_bits(
    method: str, killed: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    assert outcome(killed / method) == uninterrupted(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seconds", [0.0, 4.5, 1e9])  # by the clock below: each step, some, never
@pytest.mark.parametrize("stop", [1, STEPS, STEPS + 1, 2 * STEPS + 2])
def test_whatever_the_last_checkpoint_was_a_resumed_run_ends_with_the_same_bits(
    method: str,
    seconds: float,
    stop: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(structured._loop.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(program, "CONFIG", replace(CONFIG, checkpoint_seconds=seconds))
    learner = type(METHODS[method].learner(models(), steps_per_epoch=STEPS))
    original, calls = learner.step, 0

    def step(self: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise Killed
        return original(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "step", step)
        with pytest.raises(Killed):
            program.run(method, tmp_path, resume=False)
    torch.rand(7)  # the streams that this process happens to be at do not matter
    program.run(method, tmp_path)
    assert outcome(tmp_path) == uninterrupted(method)


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_the_attempt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
) -> None:
    write, calls = structured.checkpoint.write_atomically, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(structured.checkpoint, "write_atomically", full)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: could not be written"):
            program.run("implicit", tmp_path)
    program.run("implicit", tmp_path)
    assert outcome(tmp_path) == uninterrupted("implicit")


def test_a_finished_run_gives_its_result_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(run_dir=tmp_path)
    monkeypatch.setattr(CrossEntropyLearner, "step", None)
    again = run(run_dir=tmp_path, resume=True)
    assert again.history == first.history
    assert again.seconds == first.seconds
    assert torch.equal(again.predict(VALIDATION.X), first.predict(VALIDATION.X))


def test_more_epochs_later_are_the_longer_run(tmp_path: Path) -> None:
    run(run_dir=tmp_path / "a", config=replace(QUICK, epochs=2))
    run(run_dir=tmp_path / "a", config=replace(QUICK, epochs=4), resume=True)
    run(run_dir=tmp_path / "b", config=replace(QUICK, epochs=4))
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    with pytest.raises(CheckpointError, match="has 4 epochs done already; epochs is 3"):
        run(run_dir=tmp_path / "a", config=replace(QUICK, epochs=3), resume=True)


def test_a_folder_with_a_run_is_refused_and_not_a_byte_of_it_changes(tmp_path: Path) -> None:
    run(run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"holds a run already .* resume"):
        run(run_dir=tmp_path)
    wider = replace(MODEL, hidden=(7,))
    fewer = MultiLabelData(TRAINING.X[1:], TRAINING.Y[1:], TRAINING.label_names)
    batches = replace(QUICK, batch_size=8)
    for method, training, config, model, message in (
        (CrossEntropy(lr=0.5), TRAINING, QUICK, MODEL, r"method: lr is 0\.001, now 0\.5"),
        (CrossEntropy(), TRAINING, QUICK, wider, r"model: hidden is \[6\], now \[7\]"),
        (CrossEntropy(), TRAINING, QUICK, models(), r"model: hidden is \[6\], now absent"),
        (CrossEntropy(), fewer, QUICK, MODEL, "data set: training.title .*rows is 48, now 47"),
        (CrossEntropy(), TRAINING, batches, MODEL, "training configuration: batch_size is 16"),
    ):
        with pytest.raises(CheckpointError, match=f"was saved with another {message}"):
            train(method, training, VALIDATION, config, model=model, run_dir=tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_models_with_other_shapes_is_refused(tmp_path: Path) -> None:
    run(run_dir=tmp_path, model=models())
    other = build_models(TRAINING.n_features, TRAINING.n_labels, replace(MODEL, hidden=(9,)), 0)
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint\.safetensors: .*another model: network\.hidden\.0\.weight is \[6, 192\]",
    ):
        run(run_dir=tmp_path, model=other, resume=True)


def test_a_cut_checkpoint_is_named_on_resuming(tmp_path: Path) -> None:
    run(run_dir=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is cut short or damaged"):
        run(run_dir=tmp_path, resume=True)


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="resume: found True without run_dir"):
        run(resume=True)
