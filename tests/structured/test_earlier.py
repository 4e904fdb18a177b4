"""Going on in the folder of a comparison: what counts as done, and what is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structured.comparison import Comparison
from structured.data import MultiLabelData
from structured.earlier import COMPARISON, with_known_labels
from structured.errors import CheckpointError
from structured.experiment import compare
from structured.methods import CrossEntropy, Implicit
from structured.search import Trial
from tests.structured.test_searched_comparison import CONFIG, METHODS, MODEL, PARTS, numbers, run


def test_runs_that_a_resumed_call_did_not_ask_for_are_kept_and_named(tmp_path: Path) -> None:
    whole = run(folder=tmp_path)
    baseline = {"baseline": METHODS["baseline"]}
    part = run(baseline, folder=tmp_path, seeds=(1,), resume=True)
    assert [(r.method, r.seed) for r in part.runs] == [("baseline", 1)]
    assert {(r.method, r.seed) for r in part.kept.runs} == {
        ("baseline", 0),
        ("implicit", 0),
        ("implicit", 1),
    }
    assert list(part.kept.methods) == ["implicit"]
    assert part.notes() == [
        "Not asked for, and so kept but not in the table: baseline seed 0, implicit seed 0, "
        "implicit seed 1"
    ]
    values = json.loads((tmp_path / COMPARISON).read_text())
    assert Comparison.from_dict(values) == part
    other = run({"other": CrossEntropy(lr=0.1)}, folder=tmp_path, seeds=(0,), resume=True)
    assert len(other.kept.runs) == 4
    again = run(folder=tmp_path, resume=True)
    assert again.runs == whole.runs
    assert [r.method for r in again.kept.runs] == ["other"]


def test_a_method_is_found_under_the_label_that_a_folder_has_it_under(tmp_path: Path) -> None:
    slow, fast, new = (CrossEntropy(lr=lr) for lr in (0.001, 0.01, 0.1))
    found = run({"cross_entropy": slow, "fast": fast}, folder=tmp_path, seeds=(0,))
    assert with_known_labels({"cross-entropy": slow}, tmp_path) == {"cross_entropy": slow}
    mixed = {"a": fast, "b": new, "cross_entropy": new}
    assert list(with_known_labels(mixed, tmp_path)) == ["fast", "b", "cross_entropy"]
    assert with_known_labels({"a": slow}, tmp_path / "nowhere") == {"a": slow}
    run({"new": new}, folder=tmp_path, seeds=(0,), resume=True)
    again = with_known_labels({"cross-entropy": slow, "mine": new}, tmp_path)
    assert again == {"cross_entropy": slow, "new": new}
    assert run(again, folder=tmp_path, seeds=(0,), resume=True).runs[0] == found.runs[0]


def test_a_damaged_comparison_is_named_with_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / COMPARISON).write_text('{"data": ')
    with pytest.raises(CheckpointError, match=r"comparison\.json: is cut short .*; remove it"):
        run(folder=tmp_path, resume=True)


def cut_in_the_search(folder: Path, **options: Any) -> None:
    """A search of the implicit method, interrupted after two trials."""

    def stop(trial: Trial) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    methods = {"mine": METHODS["implicit"]}
    with pytest.raises(KeyboardInterrupt):
        run(methods, trials=3, folder=folder, on_trial=stop, **options)


def test_trials_of_another_method_are_not_taken_over_however_alike_what_is_searched(
    tmp_path: Path,
) -> None:
    cut_in_the_search(tmp_path)
    other = {"mine": Implicit(pretrain_epochs=1, inner_steps=2)}
    message = "^mine, seed 0, trial 0: .*another method: inner_steps is 1, now 2; .*another label"
    with pytest.raises(CheckpointError, match=message):
        run(other, trials=3, folder=tmp_path, resume=True)


@pytest.mark.parametrize("control", [False, True])
def test_trials_on_other_rows_are_not_taken_over_however_alike_their_numbers(
    tmp_path: Path, control: bool
) -> None:
    cut_in_the_search(tmp_path, control=control)
    training, validation, test = PARTS
    reversed_ = MultiLabelData(
        np.asarray(training.X)[::-1],
        training.Y.toarray()[::-1],
        training.label_names,
        name=training.name,
        meta=training.meta,
    )
    with pytest.raises(CheckpointError, match=r"trial 0: .*data set: training\.sha256 is"):
        compare(
            {"mine": METHODS["implicit"]},
            reversed_,
            validation,
            test,
            trials=3,
            seeds=(0, 1),
            config=CONFIG,
            model=MODEL,
            control=control,
            folder=tmp_path,
            resume=True,
        )


def test_a_search_that_a_resumed_call_did_not_ask_for_is_kept_and_gone_on_with(
    tmp_path: Path,
) -> None:
    options = {"trials": 3, "seeds": (0,), "folder": tmp_path}
    whole = run(**options)
    mine = {"implicit": METHODS["implicit"]}
    part = run(mine, resume=True, **options)
    assert [trial.label for trial in part.kept.search] == ["baseline"] * 3
    assert run(resume=True, **options, on_trial=pytest.fail) == whole
    # After the search the folder has the method that was chosen; it is known by what was given.
    for method in (METHODS["implicit"], Implicit(pretrain_epochs=1, inner_steps=2)):
        expected = "implicit" if method == METHODS["implicit"] else "mine"
        assert list(with_known_labels({"mine": method}, tmp_path)) == [expected]


def test_a_trial_whose_folder_is_gone_is_trained_again(tmp_path: Path) -> None:
    methods = {"baseline": CrossEntropy()}
    found = run(methods, trials=3, folder=tmp_path)
    best = found.chosen("baseline")
    assert best is not None
    gone = next(number for number in range(3) if number != best.number)
    shutil.rmtree(tmp_path / f"baseline/search/trial{gone}")
    again: list[int] = []
    resumed = run(
        methods,
        trials=3,
        folder=tmp_path,
        resume=True,
        on_trial=lambda trial: again.append(trial.number),
    )
    assert again == [gone]
    assert numbers(resumed) == numbers(found)
