"""A refit: training anew on all rows once the number of epochs is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from structured.data import MultiLabelData, digit_strips, joined
from structured.errors import CheckpointError, DataError
from structured.evaluation import evaluate, predict_probabilities
from structured.experiment import score_run
from structured.model_file import load_models
from structured.training import train
from tests.structured.runs import (
    BEST,
    FAST,
    MODEL,
    REFIT,
    REFIT_STEPS,
    TRAINING,
    VALIDATION,
    epochs_of,
    models,
    run,
    same_weights,
)

TEST = digit_strips(48, 24, 16).split("disjoint_images")["test"]


def test_a_refit_is_the_training_on_all_rows_for_the_best_number_of_epochs(
    tmp_path: Path,
) -> None:
    records: list[int] = []
    result = run(
        FAST, REFIT, run_dir=tmp_path, on_epoch=lambda record: records.append(record["epoch"])
    )
    plain = replace(REFIT, refit=False)
    alone = run(FAST, plain)
    everything = joined(TRAINING, VALIDATION)
    anew = train(FAST, everything, None, replace(plain, epochs=BEST), model=MODEL)
    assert result.best_epoch == alone.best_epoch == BEST < 4
    assert result.history == alone.history
    assert result.selection is not None
    assert same_weights(result.selection, alone.models)
    assert same_weights(result.models, anew.models)
    assert not same_weights(result.models, result.selection)
    assert records == [1, 2, 3, 4, 1, 2, 3]
    assert epochs_of(tmp_path / "log.csv") == 4
    assert epochs_of(tmp_path / "refit/log.csv") == BEST
    assert (
        (tmp_path / "refit/log.csv")
        .read_text()
        .splitlines()[-1]
        .startswith(f"{BEST},{BEST * REFIT_STEPS},")
    )
    for name, wanted in (("model", result.models), ("selection", result.selection)):
        assert same_weights(load_models(tmp_path / f"{name}.safetensors")[0], wanted)


def test_decoders_are_fitted_with_the_models_that_never_saw_the_validation_rows() -> None:
    result = run(FAST, REFIT)
    assert result.selection is not None
    seen, held_out = (
        predict_probabilities(FAST, found, VALIDATION.X)
        for found in (result.models, result.selection)
    )
    assert torch.equal(result.predict(VALIDATION.X), seen)
    assert torch.equal(result.predict_held_out(VALIDATION.X), held_out)
    found = score_run(result, VALIDATION, TEST)
    gold = {"validation": VALIDATION.Y, "test": TEST.Y}
    wanted = evaluate({"validation": held_out, "test": result.predict(TEST.X)}, gold)
    for part, decoders in wanted.scores.items():
        assert all(found.scores[part][name] == scores for name, scores in decoders.items())
    assert found.thresholds["tuned threshold"] == wanted.thresholds["tuned threshold"]


def test_the_time_of_the_whole_training_is_that_of_both(tmp_path: Path) -> None:
    result = run(FAST, REFIT, run_dir=tmp_path)
    assert (len(result.seconds), len(result.refit_seconds)) == (4, BEST)
    timed = [
        float(line.split(",")[1])
        for part in ("", "refit")
        for line in (tmp_path / part / "timing.csv").read_text().splitlines()[1:]
    ]
    assert min(timed) > 0
    assert result.total_seconds == pytest.approx(sum(timed))
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["total_seconds"] == result.total_seconds
    alone = run(FAST, replace(REFIT, refit=False))
    assert (alone.refit_seconds, alone.total_seconds) == ((), sum(alone.seconds))


def test_without_a_refit_the_held_out_models_are_the_models() -> None:
    result = run(FAST, replace(REFIT, refit=False))
    assert torch.equal(result.predict_held_out(VALIDATION.X), result.predict(VALIDATION.X))


def test_a_run_that_goes_on_without_its_refit_keeps_nothing_of_it_in_use(tmp_path: Path) -> None:
    run(FAST, replace(REFIT, epochs=2), run_dir=tmp_path)
    alone = run(FAST, replace(REFIT, refit=False), run_dir=tmp_path, resume=True)
    assert alone.selection is None
    assert not (tmp_path / "selection.safetensors").exists()
    assert same_weights(load_models(tmp_path / "model.safetensors")[0], alone.models)


# What is refused


def test_a_refit_without_validation_data_or_of_models_of_ones_own_is_refused(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    message = "refit: found True without a validation part or with models of your own; wanted"
    with pytest.raises(ValueError, match=message):
        train(FAST, TRAINING, None, REFIT, model=MODEL, run_dir=folder)
    with pytest.raises(ValueError, match=message):
        run(FAST, REFIT, model=models(), run_dir=folder)
    assert not folder.exists()


def test_a_folder_with_a_refit_in_it_is_not_taken_for_a_new_run(tmp_path: Path) -> None:
    run(FAST, REFIT, run_dir=tmp_path)
    for file in tmp_path.iterdir():
        if file.is_file():
            file.unlink()
    with pytest.raises(CheckpointError, match=r"holds a run already \(refit\)"):
        run(FAST, REFIT, run_dir=tmp_path)


def test_parts_that_cannot_be_joined_are_refused_before_the_first_training(tmp_path: Path) -> None:
    names = [f"pixel {k}" for k in range(TRAINING.n_features)]
    first, second = (
        MultiLabelData(part.X, part.Y, part.label_names, order)
        for part, order in ((TRAINING, names), (VALIDATION, names[::-1]))
    )
    with pytest.raises(DataError, match="with the same names"):
        train(FAST, first, second, REFIT, model=MODEL, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
