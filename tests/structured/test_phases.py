"""Runs of methods with several phases: none ends early before the last one begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import structured._loop
from structured.methods import (
    ALEN,
    DVN,
    GSPEN,
    IALEN,
    NCE,
    SEAL,
    SPEN,
    CrossEntropy,
    EndToEndSPEN,
    FenchelYoung,
    Implicit,
    InfNet,
    InfNetPlus,
    Method,
    known,
)
from tests.structured.runs import QUICK, run

# Method with short stages -> how many epochs go before its last one.
STAGED: list[tuple[Method, int]] = [
    (CrossEntropy(), 0),
    (FenchelYoung(steps=1), 0),
    (Implicit(pretrain_epochs=1, implicit_after=1), 2),
    (SPEN(pretrain_epochs=1, energy_epochs=2, steps=1), 3),
    (EndToEndSPEN(pretrain_epochs=2, energy_epochs=1, steps=1), 3),
    (DVN(pretrain_epochs=1, drop_after=1, steps=1), 3),
    (NCE(pretrain_epochs=2, samples=2, candidates=2), 2),
    (InfNet(pretrain_epochs=1, joint_epochs=2), 3),
    (InfNetPlus(pretrain_epochs=2), 2),
    (SEAL(pretrain_epochs=1, energy_epochs=2, samples=2), 1),
    (SEAL(mode="static", pretrain_epochs=1, energy_epochs=2, samples=2), 3),
    (ALEN(pretrain_epochs=2), 2),
    (IALEN(pretrain_epochs=2), 2),
    (GSPEN(pretrain_epochs=2, steps=1), 2),
]


def test_the_stages_of_every_method_of_the_package_are_tried_here() -> None:
    assert {type(method) for method, _ in STAGED} == set(known().values())


@pytest.mark.parametrize(("method", "before"), STAGED, ids=lambda value: str(value)[:12])
def test_patience_neither_ends_nor_shortens_what_comes_before_the_last_phase(
    method: Method, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured._loop, "_better", lambda *values: False)
    whole = run(method, replace(QUICK, epochs=before + 3, patience=None))
    stopped = run(method, replace(QUICK, epochs=before + 3, patience=1))
    assert len(stopped.history) == max(before + 1, 2)  # in the first epoch, nothing was awaited
    assert stopped.history == whole.history[: len(stopped.history)]
    phases = [record["phase"] for record in whole.history]
    assert before == 0 or phases[before - 1] != phases[before]
    assert set(phases[before:]) == {phases[-1]}


def test_a_run_that_goes_on_within_a_stage_is_not_ended_by_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured._loop, "_better", lambda *values: False)
    method, config = InfNet(pretrain_epochs=1, joint_epochs=3), replace(QUICK, patience=1)
    for epochs in (3, 4, 6):
        config = replace(config, epochs=epochs)
        result = run(method, config, run_dir=tmp_path, resume=epochs > 3)
    assert [record["phase"] for record in result.history][2:] == ["joint", "joint", "retuning"]
    assert result.stopped.startswith("no better")


def test_epochs_that_end_before_the_last_phase_are_told_of_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    method = InfNet(pretrain_epochs=1, joint_epochs=2)
    config = replace(QUICK, epochs=3, refit=True)
    run(method, config, run_dir=tmp_path)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "infnet: its last phase begins after 3 epochs, but epochs is 3, so that it never runs; "
        "take more epochs, or shorten the phases before"
    ]
    run(method, config, run_dir=tmp_path, resume=True)  # there is nothing left to run
    run(method, replace(config, epochs=4, refit=False))
    assert len(caplog.records) == 1
