"""Which epoch is kept, when training stops, and what is recorded of each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from structured.evaluation import predict_probabilities, validation_figures
from structured.methods import CrossEntropy
from structured.model_file import load_models
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.runs import MODEL, QUICK, VALIDATION, run
from tests.structured.scripted import ONE_LABEL, Scripted, train_scripted


def test_the_models_returned_and_written_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    config = replace(QUICK, epochs=8, monitor="cross_entropy")
    result = run(CrossEntropy(lr=0.3), config, run_dir=tmp_path)
    values = [record["validation_cross_entropy"] for record in result.history]
    assert result.best_epoch == 1 + int(np.argmin(values)) < 8
    gold = torch.from_numpy(VALIDATION.Y.toarray()).float()
    for models in (result.models, load_models(tmp_path / "model.safetensors")[0]):
        found = validation_figures(predict_probabilities(result.method, models, VALIDATION.X), gold)
        assert found["validation_cross_entropy"] == min(values) == result.best_value


def test_training_stops_when_patience_is_out() -> None:
    result = train_scripted([0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    assert (result.best_epoch, len(result.history)) == (2, 4)
    assert result.stopped == "no better validation_cross_entropy for 2 epochs"
    assert len(train_scripted([0.5, 0.4, 0.3, 0.2, 0.1], patience=None).history) == 5


def test_patience_begins_anew_with_a_phase_and_never_ends_pretraining() -> None:
    preparing = train_scripted(
        [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], ["pretraining"] * 4 + ["implicit"]
    )
    assert len(preparing.history) == 6
    assert (preparing.best_epoch, preparing.best_phase) == (1, "pretraining")
    between = train_scripted([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], ["direct", "direct", "implicit"])
    assert len(between.history) == 4


def test_the_best_epoch_is_of_all_phases_or_of_the_last_one_alone() -> None:
    phases = ["pretraining", "pretraining", "joint", "joint"]
    assert train_scripted([0.5, 0.9, 0.6, 0.7], phases).best_epoch == 2
    only = train_scripted([0.5, 0.9, 0.6, 0.7], phases, last_phase_only=True)
    assert (only.best_epoch, only.best_phase) == (4, "joint")


def test_a_record_holds_the_means_over_rows_of_the_figures_of_its_steps() -> None:
    record = train_scripted([0.5, 0.5]).history[1]
    assert record["rows"] == (2 * 2 + 2 * 2 + 1 * 1) / 5  # batches of 2, 2 and 1 rows
    assert (record["epoch"], record["step"], record["phase"]) == (2, 6, "joint")
    assert record["epoch_so_far"] == 1.0


def test_what_a_learner_has_to_say_is_recorded_each_time_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    method = Scripted((0.5, 0.5, 0.5), ("joint",), ("", "Beware.", "Beware."))
    config = TrainConfig(epochs=3, device="cpu")
    result = train(method, ONE_LABEL, ONE_LABEL, config, model=MODEL, progress=False)
    assert [record.get("notice") for record in result.history] == [None, "Beware.", "Beware."]
    assert result.history[1]["noticed"] == 1.0
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "scripted, epoch 2, 100% of the steps: Beware."
    ]


def test_records_go_to_a_callback() -> None:
    seen: list[int] = []
    run(on_epoch=lambda record: seen.append(record["epoch"]))
    assert seen == [1, 2, 3]
