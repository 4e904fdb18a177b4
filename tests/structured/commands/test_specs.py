"""Methods as text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from bilevel import CG
from structured.commands.specs import parse_method
from structured.methods import ContrastiveDivergence, CrossEntropy, Implicit, Margin, Value, to_dict
from tests.structured.commands.cli import IMPLICIT


def test_a_method_is_a_name_with_options_that_may_be_objects() -> None:
    assert parse_method("cross_entropy") == CrossEntropy()
    assert parse_method("cross_entropy: lr=0.1, weight_decay=1e-4") == CrossEntropy(0.1, 1e-4)
    text = "implicit:primary=Value,primary.kind=squared,gauss_newton=false,max_norm=None"
    expected = Implicit(primary=Value(kind="squared"), gauss_newton=False, max_norm=None)
    assert parse_method(text) == expected
    solver = parse_method("implicit: solver=Neumann, sampler=Gumbel").solver  # type: ignore[attr-defined]
    assert type(solver).__name__ == "Neumann"


def test_a_part_is_set_before_its_options_in_whatever_order_they_stand() -> None:
    options = ("primary.kind=squared", "solver.max_steps=7", "solver=CG", "primary=Value")
    for order in itertools.permutations(options):
        assert parse_method(f"implicit: {', '.join(order)}") == Implicit(
            primary=Value(kind="squared"), solver=CG(max_steps=7)
        )


def test_options_come_after_those_that_a_data_set_has_of_its_own() -> None:
    assert parse_method("cross_entropy", "digits") == CrossEntropy(lr=0.003)
    assert parse_method("cross_entropy: lr=0.1", "digits") == CrossEntropy(lr=0.1)
    assert parse_method("implicit: inner_steps=2", "digits") == Implicit(
        primary=ContrastiveDivergence(20),
        pretrain_lr=0.003,
        inner_lr=0.003,
        outer_lr=0.01,
        inner_steps=2,
    )
    # An object of another type brings its own defaults.
    assert parse_method("implicit: primary=Margin", "digits").primary == Margin()  # type: ignore[attr-defined]


def test_a_method_is_a_file_of_a_method_or_of_a_run(trained: Path, tmp_path: Path) -> None:
    expected = parse_method(IMPLICIT)
    (tmp_path / "mine.json").write_text(json.dumps(to_dict(expected)))
    assert parse_method("mine.json") == expected
    assert parse_method(str(trained / "run.json")) == expected
