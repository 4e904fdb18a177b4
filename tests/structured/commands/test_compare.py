"""`structured compare`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from structured.commands.app import app
from structured.commands.compare import _command
from structured.commands.failures import UsageError
from structured.commands.pictures import pictured
from structured.commands.specs import chosen_methods
from structured.experiment import folder_name
from structured.methods import known
from structured.presets import ALL_METHODS
from tests.structured.commands.cli import IMPLICIT, REPOSITORY, TINY, ok, refused
from tests.structured.commands.test_processes import wait_for
from tests.structured.runs import epochs_of


def test_compare_prints_a_table_and_verdicts_and_writes_pictures(
    file: Path, tmp_path: Path
) -> None:
    command = ("compare", "-d", file, "-m", "cross_entropy", "-m", IMPLICIT, "--seeds", 2, "-e", 2)
    command = (*command, "--jobs", 1)
    text = ok(*command, *TINY).stdout
    for part in ("cross-entropy", "implicit-margin", "expected F1", "20 test rows", "±"):
        assert part in text
    assert "expected F1: implicit-margin against cross-entropy" in text
    folder = tmp_path / "runs/compare-coast"
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        "comparison.png",
        "cross-entropy-curves.png",
        "implicit-margin-curves.png",
        "implicit-margin-label-hessian.png",
    }
    values = json.loads((folder / "comparison.json").read_text())
    assert values["command"].startswith("structured compare --method cross_entropy --method")
    assert len(values["runs"]) == 4
    assert "add --resume" in refused(2, *command, *TINY)
    # What is finished is not trained again, and the runs can be used one by one.
    again = json.loads(ok(*command, *TINY, "--resume", "--no-plots", "--json").stdout)
    assert again["summary"] == values["summary"]
    assert again["pictures"] == []
    assert again["runs"] == values["runs"]
    assert ok("evaluate", folder / "implicit-margin/seed1").exit_code == 0


def test_resuming_with_fewer_methods_finds_their_runs_and_keeps_those_of_others(
    file: Path, tmp_path: Path
) -> None:
    common = ("compare", "-d", file, "-e", 1, "--seeds", 1, "--jobs", 1, *TINY, "--no-plots")
    both = ("-m", "cross_entropy", "-m", "cross_entropy: lr=0.1")
    before = json.loads(ok(*common, *both, "--json").stdout)
    result = ok(*common, "-m", "cross_entropy:lr=0.1", "--resume")
    note = "Not asked for, and so kept but not in the table: cross_entropy seed 0"
    assert note in result.stdout.splitlines()
    folder = tmp_path / "runs/compare-coast"
    after = json.loads((folder / "comparison.json").read_text())
    assert after["runs"] == before["runs"][1:]
    assert after["kept"]["runs"] == before["runs"][:1]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "cross_entropy",
        "cross_entropy-lr-0.1",
    }


@pytest.mark.parametrize("kept", [list, tuple])
def test_the_command_is_noted_as_it_was_given_however_typer_keeps_what_is_repeated(
    kept: type,
) -> None:
    command = cast(Any, typer.main.get_command(app)).commands["compare"]
    words = ["--method", "spen", "--method", "dvn: lr=1", "--no-refit", "--hidden", "3"]
    context = command.make_context("structured compare", [*words, "--jobs", "2"])
    for name in ("method", "hidden"):
        context.params[name] = kept(context.params[name])
    assert _command(context) == shlex.join(["structured", "compare", *words])


def test_all_is_every_method_there_is() -> None:
    methods = chosen_methods([], "all", "digits")
    classes = {type(method) for method in methods.values()}
    assert classes == set(known().values())
    assert list(methods) == list(ALL_METHODS)
    assert len({folder_name(label) for label in methods}) == len(methods)
    assert next(iter(methods)) == "cross-entropy"
    described = {str(method) for method in methods.values()}
    assert len(described) == len(methods)


def test_methods_by_name_come_after_those_with_options() -> None:
    found = chosen_methods(["implicit: inner_steps=2"], "cross_entropy,dvn")
    assert list(found) == ["implicit-margin", "cross-entropy", "dvn"]
    found = chosen_methods(["dvn: steps=3", "cross_entropy"], "all")
    assert list(found)[:2] == ["dvn", "cross_entropy"]
    assert "cross-entropy" not in found  # it is there already
    assert len(found) == len(ALL_METHODS) + 1
    assert list(chosen_methods([], None)) == ["cross-entropy", "implicit-margin"]
    with pytest.raises(UsageError, match="'svm'"):
        chosen_methods([], "dvn,svm")


def test_of_many_methods_only_the_baseline_and_the_implicit_ones_are_drawn() -> None:
    methods = chosen_methods([], "all")
    implicit = {label for label in methods if label.startswith("implicit")}
    assert pictured(methods) == {"cross-entropy"} | implicit
    few = chosen_methods([], "dvn,spen")
    assert pictured(few) == {"dvn", "spen"}


def test_a_search_with_a_control_in_two_processes_is_told_alike_on_resuming(
    file: Path, tmp_path: Path
) -> None:
    command = ("compare", "--dataset", file, "--methods", "cross_entropy", "--trials", 3)
    common = (*command, "--seeds", 2, "-e", 2, "--control", *TINY)
    text = ok(*common, "--jobs", 2).stdout
    assert "cross-entropy: lr=" in text
    assert "of 3, validation f1_expected" in text
    assert "shuffled labels against cross-entropy" in text
    values = json.loads((tmp_path / "runs/compare-coast/comparison.json").read_text())
    assert len(values["search"]) == 6
    assert "--trials 3" in values["command"]
    assert "--control" in values["command"]
    again = json.loads(ok(*common, "--jobs", 1, "--resume", "--json").stdout)
    assert again["runs"] == values["runs"]
    assert again["search"] == values["search"]


def test_the_control_comes_with_all_methods_unless_it_is_not_wanted(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("structured.commands.specs.ALL_METHODS", {"base": "cross_entropy"})
    command = ("compare", "-d", file, "--methods", "all", "--seeds", 1, "-e", 1, *TINY)
    command = (*command, "--jobs", 1, "--json", "--no-plots")
    with_control = json.loads(ok(*command).stdout)
    assert list(with_control["methods"]) == ["base", "shuffled labels"]
    without = ok(*command, "--no-control", "-o", "other").stdout
    assert list(json.loads(without)["methods"]) == ["base"]


def test_a_run_that_diverges_is_named_below_the_table_and_in_the_exit_code(file: Path) -> None:
    command = ("compare", "-d", file, "-m", "cross_entropy", "-m", "cross_entropy: lr=1e38")
    line = refused(1, *command, "--seeds", 1, "-e", 2, *TINY, "--no-plots", "--jobs", 1)
    assert line.startswith("structured: cross_entropy: lr=1e38, seed 0: ")


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_stops_all_processes_and_resuming_goes_on(file: Path, tmp_path: Path) -> None:
    methods = ("-m", "cross_entropy", "-m", "cross_entropy: lr=0.01")
    settings = (*TINY, "--batch-size", "4", "--patience", "100000", "--checkpoint-seconds", "0")
    common = ("compare", *methods, "-d", str(file), *settings, "--seeds", "1", "--no-plots")
    running = subprocess.Popen(
        [sys.executable, "-m", "structured", *common, "-e", "100000", "--jobs", "2", "-o", "c"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    names = ("cross_entropy", "cross_entropy-lr-0.01")
    logs = [tmp_path / "c" / name / "seed0/log.csv" for name in names]
    try:
        wait_for(lambda: all(log.exists() and epochs_of(log) > 2 for log in logs), running)
    finally:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: all of them get it
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "structured: interrupted; the same command with --resume goes on with c"
    )
    epochs = str(max(epochs_of(log) for log in logs) + 2)
    ok(*common, "-e", epochs, "-o", "c", "--resume", "--jobs", "1")
    ok(*common, "-e", epochs, "-o", "whole", "--jobs", "1")
    scores = [
        [run["evaluation"] for run in json.loads(Path(name, "comparison.json").read_text())["runs"]]
        for name in ("c", "whole")
    ]
    assert scores[0] == scores[1]
