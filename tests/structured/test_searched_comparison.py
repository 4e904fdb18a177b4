"""Comparisons with a search, a control and several processes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structured.comparison import ComparedRun, Comparison
from structured.control import CONTROL, with_shuffled_labels
from structured.data import MultiLabelData, digit_strips
from structured.errors import CheckpointError
from structured.experiment import COMPARISON, compare, folder_name
from structured.methods import CrossEntropy, Implicit, to_dict, with_options
from structured.models import ModelConfig
from structured.run_folder import CHECKPOINT
from structured.search import Trial
from structured.train_config import TrainConfig
from structured.workers import WorkerError

METHODS = {"baseline": CrossEntropy(), "implicit": Implicit(pretrain_epochs=1)}
CONFIG = TrainConfig(epochs=2, device="cpu", patience=None, batch_size=8, average=0.5)
MODEL = ModelConfig(hidden=(8,), energy_hidden=(4,), global_size=2)
PARTS = tuple(digit_strips(48, 16, 16).split("disjoint_images").values())
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results"


def run(methods: Any = METHODS, **changes: Any) -> Comparison:
    return compare(
        methods, *PARTS, **{"seeds": (0, 1), "config": CONFIG, "model": MODEL, **changes}
    )


def numbers(found: Comparison) -> Any:
    """All but times."""
    return (
        [(r.method, r.seed, r.epochs, r.best_epoch, r.evaluation) for r in found.runs],
        [replace(trial, seconds=0.0) for trial in found.search],
        found.methods,
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("searched")
    return run(trials=3, control=True, folder=folder), folder


def test_several_processes_give_the_same_numbers_as_one(
    searched: tuple[Comparison, Path], tmp_path: Path
) -> None:
    one, folder = searched
    two = run(trials=3, control=True, folder=tmp_path, jobs=2)
    assert numbers(two) == numbers(one)
    files = ({str(f.relative_to(each)) for f in each.rglob("*")} for each in (folder, tmp_path))
    assert next(files) == next(files)


def test_every_method_has_as_many_trials_and_the_best_on_validation_is_trained_with_all_seeds(
    searched: tuple[Comparison, Path],
) -> None:
    found, folder = searched
    labels = ["baseline", "implicit", CONTROL]
    assert [(t.label, t.number) for t in found.search] == [
        (label, number) for label in labels for number in range(3)
    ]
    for label in labels:
        best = found.chosen(label)
        values = [trial.value for trial in found.search if trial.label == label]
        assert best is not None
        assert best.value == max(value for value in values if value is not None)
        given_one = METHODS.get(label, METHODS["baseline"])
        assert found.methods[label] == to_dict(with_options(given_one, best.options))
        for seed in (0, 1):
            file = folder / folder_name(label) / f"seed{seed}" / "run.json"
            assert json.loads(file.read_text())["method"] == found.methods[label]


def test_the_search_run_is_the_run_of_the_first_seed(searched: tuple[Comparison, Path]) -> None:
    found, folder = searched
    best = found.chosen("implicit")
    assert best is not None
    first = next(r for r in found.runs if (r.method, r.seed) == ("implicit", 0))
    assert (first.best_epoch, first.seconds) == (best.best_epoch, best.seconds)
    left = {path.parent.name for path in folder.glob(f"implicit/search/*/{CHECKPOINT}")}
    assert left == set()  # the best was moved, the others are kept without what is large


def test_trials_are_not_scored_on_test_nor_refitted(tmp_path: Path) -> None:
    seen: list[list[Path]] = []

    def note(trial: Trial) -> None:
        folder = tmp_path / "baseline" / "search" / f"trial{trial.number}"
        assert (folder / "result.json").exists()
        seen.append([*folder.glob("evaluation.json"), *folder.glob("refit")])

    found = run(
        {"baseline": CrossEntropy()},
        trials=2,
        config=replace(CONFIG, refit=True),
        folder=tmp_path,
        on_trial=note,
    )
    assert seen == [[], []]
    assert all((tmp_path / f"baseline/seed{seed}/refit").exists() for seed in (0, 1))
    # It is the very run that would have been trained without a search.
    best = found.chosen("baseline")
    assert best is not None
    chosen = with_options(CrossEntropy(), best.options)
    plain = run({"baseline": chosen}, config=replace(CONFIG, refit=True))
    assert [r.evaluation for r in plain.runs] == [r.evaluation for r in found.runs]


def test_a_finished_search_and_its_runs_are_not_repeated(
    searched: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, folder = searched
    times = {path: path.stat().st_mtime_ns for path in folder.rglob(CHECKPOINT)}
    monkeypatch.setattr("structured.single_run.score_run", None)
    again = run(trials=3, control=True, folder=folder, resume=True)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(CHECKPOINT)} == times


@pytest.mark.parametrize(("at", "jobs"), [(2, 1), (10, 1), (7, 2)])
def test_an_interrupted_comparison_goes_on_to_the_same_numbers(
    searched: tuple[Comparison, Path], tmp_path: Path, at: int, jobs: int
) -> None:
    """Interrupted in the search, and in the runs after it."""
    left = [at]

    def stop(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    options = {"trials": 3, "control": True, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        run(on_run=stop, on_trial=stop, jobs=jobs, **options)
    part = Comparison.from_dict(json.loads((tmp_path / COMPARISON).read_text()))
    assert len(part.search) + len(part.runs) == at
    assert numbers(run(resume=True, **options)) == numbers(searched[0])


def test_more_trials_begin_with_those_that_are_done(tmp_path: Path) -> None:
    def stop(trial: Trial) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    methods = {"baseline": CrossEntropy()}
    with pytest.raises(KeyboardInterrupt):
        run(methods, trials=2, folder=tmp_path, on_trial=stop)
    added: list[int] = []
    found = run(
        methods,
        trials=4,
        folder=tmp_path,
        resume=True,
        on_trial=lambda trial: added.append(trial.number),
    )
    assert added == [2, 3]
    assert numbers(found) == numbers(run(methods, trials=4))


def test_a_space_with_fewer_candidates_says_so() -> None:
    found = run(
        {"baseline": CrossEntropy(lr=0.001)},
        trials=30,
        seeds=(0,),
        config=replace(CONFIG, epochs=1),
    )
    size = len({json.dumps(dict(trial.options)) for trial in found.search})
    assert size == len(found.search) < 30
    (line,) = found.choices()
    assert f"of {size} that there are, validation f1_expected" in line
    assert "lr=" in line


def test_a_diverged_trial_is_not_chosen_and_a_diverged_run_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    methods = {"good": CrossEntropy(), "bad": CrossEntropy(lr=1e38)}
    with caplog.at_level(logging.WARNING):
        found = run(methods)
    assert [r.method for r in found.runs] == ["good", "good"]
    assert [line.split(":")[0] for line in found.failed] == ["bad, seed 0", "bad, seed 1"]
    assert found.failed[0] in caplog.text
    searched = run({"bad": CrossEntropy(lr=1e38)}, trials=2, seeds=(0,))
    assert [trial.value is None for trial in searched.search] == [True, False]
    assert searched.methods["bad"]["lr"] < 1
    assert searched.failed == ()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_method_and_seed_and_what_was_finished_is_kept(
    tmp_path: Path, jobs: int
) -> None:
    run({"baseline": CrossEntropy()}, seeds=(0,), folder=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "baseline/seed0").rename(tmp_path / "other/seed3")
    methods = {"baseline": CrossEntropy(), "other": CrossEntropy(lr=0.1)}
    with pytest.raises(CheckpointError, match=r"^other, seed 3: .*another method: lr is"):
        run(methods, seeds=(3,), folder=tmp_path, resume=True, jobs=jobs)
    if jobs == 1:
        kept = json.loads((tmp_path / COMPARISON).read_text())["runs"]
        assert [(r["method"], r["seed"]) for r in kept] == [("baseline", 3)]


def test_the_control_learns_nothing_and_is_neither_best_nor_judged() -> None:
    training, validation, test = digit_strips(400, 100, 100).split("disjoint_images").values()
    found = compare(
        {"baseline": CrossEntropy(lr=0.01), "again": CrossEntropy(lr=0.02)},
        training,
        validation,
        test,
        seeds=(0,),
        control=True,
        config=replace(CONFIG, epochs=15, batch_size=64, refit=True),
        model=ModelConfig(hidden=(64,), dropout=0.0, input_dropout=0.0),
    )
    assert found.control == CONTROL == list(found.methods)[-1]
    difference = found.difference(CONTROL, "expected F1")
    assert difference is not None
    assert difference.mean < -0.1
    ends = {line.split(": ")[-1] for line in found.verdicts() if f" {CONTROL} " in line}
    assert ends == {"a control"}
    # Were it ahead, it still would not be the best.
    swapped = replace(
        found, control="baseline", methods={name: {} for name in (CONTROL, "baseline", "again")}
    )
    _, control, again = swapped.table().columns[4].cells
    assert [getattr(cell, "style", None) for cell in (control, again)] == ["", "bold"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_shuffling_moves_whole_sets_and_leaves_the_inputs(seed: int) -> None:
    X = np.arange(12.0).reshape(6, 2)
    Y = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [1, 1]])
    data = MultiLabelData(X, Y, meta={"part": "train"})
    found = with_shuffled_labels(data, seed)
    assert np.array_equal(np.asarray(found.X), X)
    assert sorted(found.Y.toarray().tolist()) == sorted(Y.tolist())
    assert found.title == "data (train with shuffled labels)"
    again = with_shuffled_labels(data, seed)
    assert np.array_equal(again.Y.toarray(), found.Y.toarray())


def test_predicting_is_timed_and_shown(searched: tuple[Comparison, Path]) -> None:
    found, _ = searched
    assert all(r.predict_seconds is not None and r.predict_seconds > 0 for r in found.runs)
    record = found.summary()[0]
    times = [r.predict_seconds for r in found.runs if r.method == "baseline"]
    assert record["predict_seconds"] == pytest.approx(np.median(np.array(times, dtype=float)))
    column = found.table().columns[-1]
    assert next(iter(column.cells)) == f"{1000 * record['predict_seconds']:.1f}"


def test_a_comparison_with_a_search_comes_back_from_json_as_it_was(
    searched: tuple[Comparison, Path],
) -> None:
    found, folder = searched
    assert Comparison.from_dict(json.loads((folder / COMPARISON).read_text())) == found


def test_records_from_before_searches_and_times_of_prediction_are_read() -> None:
    read_all = [json.loads(path.read_text()) for path in BENCHMARKS.glob("structured_*.json")]
    found = [each for each in _nested(read_all) if "runs" in each and "methods" in each]
    for each in found:
        for name in ("trials", "search", "control", "failed"):
            each.pop(name, None)
        for done in each["runs"]:
            done.pop("predict_seconds", None)
        read = Comparison.from_dict(each)
        assert read.search == ()
        assert {cell for cell in read.table().columns[-1].cells} == {""}
    assert found


def _nested(values: Any) -> list[dict[str, Any]]:
    """All dicts within a JSON value."""
    if isinstance(values, dict):
        return [values, *(each for item in values.values() for each in _nested(item))]
    return [each for item in values for each in _nested(item)] if isinstance(values, list) else []


def test_a_search_that_was_begun_with_other_settings_is_begun_anew(tmp_path: Path) -> None:
    def stop(trial: Trial) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    methods = {"baseline": CrossEntropy()}
    with pytest.raises(KeyboardInterrupt):
        run(methods, trials=3, folder=tmp_path, on_trial=stop)
    again: list[int] = []
    longer = replace(CONFIG, epochs=3)
    found = run(
        methods,
        trials=3,
        folder=tmp_path,
        resume=True,
        config=longer,
        on_trial=lambda trial: again.append(trial.number),
    )
    assert again == [0, 1, 2]
    assert numbers(found) == numbers(run(methods, trials=3, config=longer))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials: found 0"),
        ({"jobs": 0}, "jobs: found 0"),
        ({"control": True, "methods": {CONTROL: CrossEntropy()}}, "none of them 'shuffled labels'"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_a_killed_process_is_a_foreseen_error() -> None:
    from structured.commands.failures import FAILURE, explain

    assert explain(WorkerError("a, seed 1: its process ended")) == (
        "a, seed 1: its process ended",
        FAILURE,
    )


def test_one_bar_counts_the_runs_of_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[ComparedRun] = []
    run(seeds=(0,), jobs=2, progress=True, on_run=lambda done, _: ended.append(done))
    shown = capsys.readouterr().err
    assert "runs 2/2" in shown
    last = ended[-1].evaluation.scores["validation"]["expected F1"].example_f1
    assert f"{ended[-1].method}, seed 0: validation example-F1 {100 * last:.2f}" in shown
