"""`structured methods`: what it lists is what can be trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from structured.commands.app import app
from structured.commands.methods import document, options_of, own_options
from structured.commands.specs import HELP, parse_method
from structured.methods import known, to_dict
from structured.presets import PRESETS

KEYS = list(known())


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["methods", *arguments], env={"NO_COLOR": "1"})


def ok(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def flat(text: str) -> str:
    """A page in one line, without frames and without the breaks of narrow columns."""
    return "".join(character for character in text if character.isascii() and character.isalnum())


def test_the_list_has_every_known_method_with_its_name_and_first_line() -> None:
    found = json.loads(ok("--json"))
    assert [row["method"] for row in found] == KEYS
    page = flat(ok())
    for row in found:
        assert row["summary"]
        for part in (row["method"], row["name"]):
            assert flat(part) in page


@pytest.mark.parametrize("key", KEYS)
def test_every_option_of_every_method_is_shown_with_its_default_and_what_it_is(key: str) -> None:
    method, page = known()[key](), ok(key)
    assert flat(document(method).summary) in flat(page)
    for option in options_of(method):
        assert option.help, f"{key}: the docstring says nothing about {option.name}"
        assert option.name in page
        assert option.default in page


@pytest.mark.parametrize("key", KEYS)
def test_the_options_shown_give_the_method_back_when_they_are_typed(key: str) -> None:
    typed = ", ".join(f"{option.name}={option.default}" for option in options_of(known()[key]()))
    assert to_dict(parse_method(f"{key}: {typed}")) == to_dict(known()[key]())


@pytest.mark.parametrize("key", KEYS)
def test_the_json_of_a_method_is_a_file_to_train_with(key: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(ok(key, "--json"))
    assert parse_method(str(file)) == known()[key]()


def test_an_inherited_option_is_explained_by_its_owner_unless_the_class_says_more() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Opening:
        """A hole in a wall.

        Args:
            width: in metres.
            height: in metres.
        """

        width: float = 0.8
        height: float = 2.0

    @dataclass(frozen=True)
    class Door(Opening):
        """A way in.

        Args:
            height: enough to stand.
            hinge: where.
        """

        hinge: str = "left"

    explained = {option.name: option.help for option in options_of(Door("right"))}
    assert explained == {"hinge": "where.", "width": "in metres.", "height": "enough to stand."}
    assert list(explained) == ["hinge", "width", "height"], "as in the signature"


def test_an_unknown_method_is_a_line_that_names_the_known_ones() -> None:
    result = invoke("implict")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("structured: no method 'implict'; known: cross_entropy")
    assert line.endswith("did you mean 'implicit'?")


def test_what_a_data_set_has_of_its_own_is_said() -> None:
    own = {name: preset["methods"]["implicit"] for name, preset in PRESETS.items()}
    assert own_options("implicit") == own
    assert f"On digits by name: {own['digits']}." in ok("implicit")
    assert own_options("no such method") == {}


def test_help_of_the_option_method_points_to_the_list() -> None:
    assert "`structured methods`" in HELP
    assert "On digits, bibtex, delicious" in HELP


def test_a_docstring_is_plain_text_whose_paragraphs_are_lines() -> None:
    @dataclass(frozen=True)
    class Door:
        """A way in,
        and out.

        It opens
        ``both`` ways, see :class:`structured.Wall`:

        - by hand, or
          by foot;
        - by wind.

        Args:
            width: in metres,
                as a number.
            hinge: where

        Raises:
            ValueError: never.

        Reference:
            Vitruvius, On Architecture,
            book 4.
        """

        width: float = 0.8
        hinge: str | None = None

    found = document(Door())
    assert found.summary == "A way in, and out."
    assert found.text == (
        "It opens `both` ways, see `structured.Wall`:\n\n- by hand, or by foot;\n- by wind."
    )
    assert found.arguments == {"width": "in metres, as a number.", "hinge": "where"}
    assert found.reference == "Vitruvius, On Architecture, book 4."
    assert [option.default for option in options_of(Door())] == ["0.8", "None"]
