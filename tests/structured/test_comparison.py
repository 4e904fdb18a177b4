from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import t as student_t

from structured.comparison import ComparedRun, Comparison, Difference
from structured.data import MultiLabelData, digit_strips
from structured.errors import CheckpointError
from structured.evaluation import COLUMNS, Evaluation, Scores
from structured.experiment import COMPARISON, EVALUATION, compare, folder_name
from structured.methods import CrossEntropy, Implicit
from structured.models import ModelConfig
from structured.train_config import TrainConfig

METHODS = {"baseline": CrossEntropy(), "implicit": Implicit(pretrain_epochs=1)}
CONFIG = TrainConfig(epochs=2, device="cpu", patience=None)
MODEL = ModelConfig(hidden=(8,), energy_hidden=(4,), global_size=2)
PARTS = tuple(digit_strips(48, 16, 16).split("disjoint_images").values())


def run(**changes: Any) -> Comparison:
    options: dict[str, Any] = {"seeds": (0, 1), "config": CONFIG, "model": MODEL}
    return compare(METHODS, *PARTS, **{**options, **changes})


def made(method: str, seed: int, value: float) -> ComparedRun:
    """A run that scored `value` under every decoder."""
    scores = {name: Scores(value, value, value, value, value) for name in COLUMNS}
    evaluation = Evaluation("toy", "split", method, seed, {"test": 9}, {"test": scores})
    return ComparedRun(method, seed, 10, 5, 20.0, 2.0, evaluation)


def comparison(*runs: ComparedRun) -> Comparison:
    return Comparison(
        data="toy",
        split="split",
        sizes={"test rows": 9},
        methods={"base": {}, "ours": {}},
        model={},
        training={},
        seeds=(0, 1, 2),
        runs=runs,
        command="structured compare",
    )


def printed(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_method_is_trained_with_every_seed_and_scored_under_every_decoder() -> None:
    found = run()
    assert [(r.method, r.seed) for r in found.runs] == [
        ("baseline", 0),
        ("implicit", 0),
        ("baseline", 1),
        ("implicit", 1),
    ]
    for done in found.runs:
        assert done.evaluation.scores["test"].keys() == set(COLUMNS)
        assert done.evaluation.rows == {"validation": 16, "test": 16}
        assert done.epochs == 2
        assert done.epoch_seconds > 0
    assert found.sizes["training rows"] == 48
    assert found.split == "disjoint_images"


def test_means_deviations_and_paired_differences_are_those_of_the_seeds() -> None:
    base, ours = (0.40, 0.50, 0.60), (0.45, 0.56, 0.67)
    runs = [made("base", seed, value) for seed, value in enumerate(base)]
    runs += [made("ours", seed, value) for seed, value in enumerate(ours)]
    first, second = comparison(*runs).summary()
    assert first["expected F1"] == {"mean": pytest.approx(0.5), "deviation": pytest.approx(0.1)}
    against = second["expected F1"]["against base"]
    assert against["mean"] == pytest.approx(0.06)
    width = student_t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert against["margin"] == pytest.approx(width)
    assert against["verdict"] == "ahead"
    assert second["epoch_seconds"] == 2.0
    assert second["best_epoch"] == 5


def test_differences_are_taken_over_the_seeds_that_both_have() -> None:
    found = comparison(made("base", 0, 0.4), made("base", 1, 0.9), made("ours", 1, 0.8))
    difference = found.difference("ours", "expected F1")
    assert difference is not None
    assert difference.mean == pytest.approx(-0.1)
    assert difference.margin is None
    assert comparison(made("base", 0, 0.4)).difference("ours", "expected F1") is None


def test_a_method_wins_or_loses_only_if_the_interval_leaves_out_zero() -> None:
    assert Difference(0.02, 0.01, 3).verdict == "ahead"
    assert Difference(-0.02, 0.01, 3).verdict == "behind"
    assert Difference(0.02, 0.03, 3).verdict == "no clear difference"
    assert Difference(0.02, None, 1).verdict == "no clear difference"


def test_the_verdicts_say_who_is_ahead_whoever_it_is() -> None:
    runs = [made("base", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    runs += [made("ours", seed, 0.4 + 0.01 * seed) for seed in range(3)]
    line = comparison(*runs).verdicts()[2]
    assert line == "expected F1: ours against base -10.00 (± 0.00, 95 % over 3 seeds): behind"
    (single,) = {text.split(": ", 1)[1] for text in comparison(runs[0], runs[3]).verdicts()}
    assert "one seed" in single
    assert single.endswith("no clear difference")


def test_verdicts_count_the_seeds_that_both_methods_have_and_notes_say_which_differ() -> None:
    runs = [made("base", seed, 0.5 + 0.02 * seed) for seed in range(2)]
    runs += [made("ours", seed, 0.6 + 0.01 * seed) for seed in range(5)]
    found = comparison(*runs)
    line = found.verdicts(["expected F1"])[0]
    assert "+9.50 (± 6.35, 95 % over 2 seeds)" in line
    against = found.summary()[1]["expected F1"]["against base"]
    assert against["seeds"] == 2
    assert found.notes() == [
        "The means are over different seeds (0, 1 of base; 0, 1, 2, 3, 4 of ours); a difference "
        "is over those that both methods have"
    ]
    assert comparison(*runs[:4]).notes() == []


def test_the_table_names_data_split_sizes_decoders_times_and_the_command() -> None:
    text = printed(comparison(made("base", 0, 0.4), made("base", 1, 0.6)).table())
    for part in ("toy", "'split'", "9 test rows", "50.00 ± 14.14", "2.00"):
        assert part in text
    head = [line for line in text.splitlines() if "┃" in line]
    upper, lower = (re.split(" *┃ *", line)[2:-1] for line in head)
    heads = [f"{first} {second}" for first, second in zip(upper, lower, strict=True)]
    assert heads == [*COLUMNS, "s / epoch", "µs / row"]
    assert "structured compare" in text
    assert "ours" not in text  # no run of it is done yet


def test_a_comparison_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    found = run(folder=tmp_path / "c", command="structured compare --data digits")
    values = json.loads((tmp_path / "c" / COMPARISON).read_text())
    assert Comparison.from_dict(values) == found
    assert values["summary"] == found.summary()
    assert values["verdicts"] == found.verdicts()
    assert values["command"] == "structured compare --data digits"
    assert {"device", "torch"} <= values["machine"].keys()


def test_a_folder_that_holds_a_comparison_is_not_overwritten(tmp_path: Path) -> None:
    run(folder=tmp_path, seeds=(0,))
    before = (tmp_path / COMPARISON).read_bytes()
    with pytest.raises(CheckpointError, match="holds a comparison already"):
        run(folder=tmp_path, seeds=(0,))
    assert (tmp_path / COMPARISON).read_bytes() == before


def test_finished_runs_are_not_repeated_and_give_the_same_scores(tmp_path: Path) -> None:
    found = run(folder=tmp_path, seeds=(0,))
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.safetensors")}
    assert len(logs) == 2
    again = run(folder=tmp_path, resume=True)
    assert again.runs[:2] == found.runs
    assert len(again.runs) == 4
    # A run that trains writes its checkpoint anew.
    assert {path: path.stat().st_mtime_ns for path in logs} == logs


def test_a_comparison_interrupted_between_runs_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    whole = run(folder=tmp_path / "whole")

    def stop(done: ComparedRun, *_: object) -> None:
        if (done.method, done.seed) == ("implicit", 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "cut", on_run=stop)
    part = json.loads((tmp_path / "cut" / COMPARISON).read_text())
    assert len(part["runs"]) == 2
    resumed = run(folder=tmp_path / "cut", resume=True)
    assert [r.evaluation for r in resumed.runs] == [r.evaluation for r in whole.runs]


def test_resuming_with_another_method_under_the_same_label_is_refused(tmp_path: Path) -> None:
    run(folder=tmp_path, seeds=(0,))
    with pytest.raises(CheckpointError, match="another method: lr is"):
        compare(
            {"baseline": CrossEntropy(lr=0.1)},
            *PARTS,
            seeds=(0,),
            config=CONFIG,
            model=MODEL,
            folder=tmp_path,
            resume=True,
        )


def test_each_run_leaves_its_scores_in_its_folder(tmp_path: Path) -> None:
    found = run(folder=tmp_path, seeds=(3,))
    values = json.loads((tmp_path / "implicit" / "seed3" / EVALUATION).read_text())
    assert Evaluation.from_dict(values) == found.runs[1].evaluation


def test_the_test_part_decides_nothing() -> None:
    training, validation, test = PARTS
    swapped = MultiLabelData(test.X, 1 - test.Y.toarray(), label_names=test.label_names)
    kept = run(seeds=(0,)).runs
    other = compare(
        METHODS, training, validation, swapped, seeds=(0,), config=CONFIG, model=MODEL
    ).runs
    for one, two in zip(kept, other, strict=True):
        assert one.best_epoch == two.best_epoch
        assert one.evaluation.thresholds == two.evaluation.thresholds
        assert one.evaluation.scores["validation"] == two.evaluation.scores["validation"]


@pytest.mark.parametrize(
    "changes", [{"seeds": ()}, {"methods": {}}, {"methods": {"a b": METHODS["baseline"]}}]
)
def test_nothing_to_compare_or_labels_of_one_folder_are_refused(changes: dict[str, Any]) -> None:
    methods = {**changes.pop("methods", METHODS)}
    if methods and "a b" in methods:
        methods["a-b"] = METHODS["implicit"]
    options: dict[str, Any] = {"seeds": (0,), "config": CONFIG, "model": MODEL, **changes}
    with pytest.raises(ValueError, match="methods: found"):
        compare(methods, *PARTS, **options)


def test_labels_become_folders() -> None:
    assert folder_name("implicit:primary=Value, T = 2") == "implicit-primary-Value-T-2"
    assert folder_name("../..") == "method"


def test_weights_of_an_earlier_phase_are_named() -> None:
    first = [replace(made("ours", seed, 0.5), earlier_phase="pretraining") for seed in (0, 1)]
    found = comparison(*first, made("ours", 2, 0.5), made("base", 0, 0.5))
    _, line = found.notes()
    assert line.startswith("ours: 2 of 3 seeds kept the weights of an earlier phase (pretraining)")
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_run_whose_pretraining_was_best_says_so() -> None:
    method = {"implicit": Implicit(pretrain_epochs=1, outer_lr=0.0, inner_lr=0.0)}
    options: dict[str, Any] = {"seeds": (0,), "config": CONFIG, "model": MODEL}
    (done,) = compare(method, *PARTS, **options).runs
    assert done.earlier_phase == ("pretraining" if done.best_epoch == 1 else "")


def test_names_in_brackets_are_printed_as_they_are() -> None:
    found = replace(
        comparison(replace(made("base", 0, 0.4), method="[/a]"), made("[red]", 0, 0.5)),
        methods={"[/a]": {}, "[red]": {}},
        data="m3[v2]",
        split="[i]",
        command="structured compare -m '[/a]'",
    )
    text = printed(found.table())
    for part in ("m3[v2]", "'[i]'", "-m '[/a]'", " [/a] ", " [red] "):
        assert part in text
    (first, *_) = found.runs
    evaluation = replace(
        first.evaluation,
        data="m3[v2]",
        method="[/a]",
        rows={"[/b]": 9},
        scores={"[/b]": {"[u]": Scores(1, 1, 1, 1, 1)}},
    )
    text = printed(evaluation.table())
    for part in ("m3[v2]", "[/a],", "[/b], 9 rows", "  [u] "):
        assert part in text
