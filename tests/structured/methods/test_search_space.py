"""What a search may vary: real options, values that fit, and none that costs much more."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest

from structured.methods import known, to_dict, with_options

CANDIDATES = [
    (key, option, value)
    for key, method in known().items()
    for option, values in method.search_space.items()
    for value in values
]
# What lengthens a step in proportion. A solver's steps are taken on few minibatches.
COSTLY = ("samples", "steps", "network_steps", "energy_steps", "inner_steps", "refine_steps")


@pytest.mark.parametrize("key", known())
def test_every_method_says_what_to_search_its_default_among_it(key: str) -> None:
    cls = known()[key]
    assert 2 <= len(cls.search_space) <= 6
    assert any(option.endswith("lr") for option in cls.search_space)
    for option, values in cls.search_space.items():
        assert 2 <= len(values) <= 4
        assert list(values) == sorted(set(values)) or not isinstance(values[0], float)
        assert reduce(getattr, option.split("."), cls()) in values


@pytest.mark.parametrize(("key", "option", "value"), CANDIDATES)
def test_every_value_makes_a_method_of_the_same_name(key: str, option: str, value: Any) -> None:
    default = known()[key]()
    method = with_options(default, {option: value})
    assert reduce(getattr, option.split("."), method) == value
    assert method.name == default.name  # it stays in its own row of a table
    assert json.loads(json.dumps(to_dict(method))) == to_dict(method)


def test_no_value_takes_more_samples_or_steps_than_the_default() -> None:
    for key, option, value in CANDIDATES:
        if option in COSTLY:
            assert value <= getattr(known()[key](), option)
