"""Help shows every option with the default that is in force."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from structured import presets
from structured.commands.app import app
from structured.commands.specs import parse_methods
from structured.methods import known
from structured.models import ModelConfig
from structured.train_config import TrainConfig
from tests.structured.commands.cli import REPOSITORY, invoke, ok


def every_command() -> list[tuple[str, ...]]:
    main = cast(Any, typer.main.get_command(app))
    found: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        found.append((name,))
        found.extend((name, inner) for inner in getattr(command, "commands", {}))
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_documents_every_option_and_its_default(words: Sequence[str]) -> None:
    text = ok(*words, "--help").stdout
    # As on the screen, but in one line: without frames, and words that were broken joined.
    flat = " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())
    command = cast(Any, typer.main.get_command(app))
    for word in words:
        command = command.commands[word]
    for parameter in command.params:
        if parameter.param_type_name == "argument" or parameter.name == "help":
            continue
        assert parameter.help, parameter.name
        assert "…" not in text
        assert parameter.opts[0] in flat
    # A plain flag is off unless it is given.
    shown = [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        and not parameter.required
        and (
            isinstance(parameter.show_default, str)
            or not parameter.is_flag
            or parameter.secondary_opts
        )
    ]
    assert flat.count("[default:") == len(shown)


@pytest.mark.parametrize("word", ["train", "compare"])
def test_an_option_for_a_setting_shows_the_default_of_that_setting(word: str) -> None:
    parameters = cast(Any, typer.main.get_command(app)).commands[word].params
    shown = {parameter.name: parameter.show_default for parameter in parameters}
    for part in ("model", "training", "machine"):
        for name in presets.BASE[part]:
            assert shown[name] == presets.shown(part, name)


def test_the_defaults_that_help_shows_are_those_in_force() -> None:
    assert ModelConfig.from_dict(presets.BASE["model"]) == ModelConfig()
    assert TrainConfig.from_dict(presets.BASE["training"]) == TrainConfig()
    assert presets.BASE["model"].keys() == ModelConfig().to_dict().keys()
    assert presets.BASE["training"].keys() | {"seed"} == TrainConfig().to_dict().keys()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_a_data_set_has_of_its_own_is_a_setting(name: str) -> None:
    for part, own in presets.PRESETS[name].items():
        names = known() if part == "methods" else presets.BASE[part]
        assert own.keys() <= names.keys()
    assert parse_methods(presets.setting("comparison", "methods", name), name)
    ModelConfig.from_dict({**presets.BASE["model"], **presets.PRESETS[name].get("model", {})})


def test_help_of_a_real_process_comes_within_two_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "structured", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "compare" in done.stdout
    # What takes its time is not imported; this holds also where the machine is busy.
    imported = set(re.findall(r"\| +(\w+)", done.stderr))
    assert not imported & {"torch", "numpy", "scipy", "sklearn", "matplotlib", "bilevel"}
    seconds = sum(int(found) for found in re.findall(r"import time: +(\d+) \|", done.stderr)) / 1e6
    assert seconds < 2


def test_without_a_command_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: structured" in result.stdout
    assert result.stderr == ""
