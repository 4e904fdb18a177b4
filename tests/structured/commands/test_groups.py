"""A group among the parameters of a command is an option for each of its fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from structured import presets
from structured.commands import options
from structured.commands.groups import spread


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width", "-w")] = 2
    height: Annotated[int | None, typer.Option()] = None


@dataclass(frozen=True)
class Frame:
    width: int = 1


def test_the_fields_of_a_group_are_options_in_its_place() -> None:
    app = typer.Typer()
    seen: list[object] = []

    @app.command()
    @spread
    def draw(name: str, loud: bool = False, *, size: Size, colour: str = "red") -> None:
        """Draw it."""
        seen.append((name, loud, size, colour))

    run = CliRunner().invoke
    assert run(app, ["door"]).exit_code == 0
    assert run(app, ["door", "-w", "3", "--height", "4", "--colour", "blue"]).exit_code == 0
    assert seen == [("door", False, Size(), "red"), ("door", False, Size(3, 4), "blue")]
    text = run(app, ["--help"]).output
    places = [text.index(word) for word in ("Draw it.", "--loud", "--width", "--colour")]
    assert places == sorted(places)


def test_two_options_of_one_name_are_refused() -> None:
    def draw(*, size: Size, frame: Frame) -> None:
        """Draw it."""

    with pytest.raises(ValueError, match="width"):
        spread(draw)


def test_every_setting_that_has_a_default_has_an_option() -> None:
    parts = presets.BASE["training"].keys() | presets.BASE["machine"].keys()
    assert {field.name for field in fields(options.Settings)} == parts
    assert {field.name for field in fields(options.Sizes)} == presets.BASE["model"].keys()
