from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import CG, Exact
from structured.methods import CrossEntropy, Implicit, Learner, Method, known, registry
from structured.methods.base import SearchSpace
from structured.methods.primaries import Margin
from structured.search import Trial, best_trial, candidates, searched_options


@dataclass(frozen=True)
class Toy(Method):
    """Four options with a small space; two of them do not go together."""

    a: int = 0
    b: int = 0
    primary: Any = field(default_factory=Margin)
    other: int = 7

    search_space: ClassVar[SearchSpace] = {"a": (1, 2), "b": (1, 2, 3), "primary.samples": (4, 5)}

    def __post_init__(self) -> None:
        if self.a == 2 and self.b == 3:
            raise ValueError("a: found 2 with b = 3")

    @property
    def name(self) -> str:
        return "toy"

    def learner(self, *args: Any, **options: Any) -> Learner:
        raise AssertionError("nothing is trained")


@pytest.fixture(autouse=True, scope="module")
def registered() -> Any:
    known()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._REGISTERED, "toy", Toy)
        yield


def trials(values: Sequence[float | None]) -> list[Trial]:
    return [Trial("toy", n, {"a": n}, value, 3, 1.0) for n, value in enumerate(values)]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 15), st.integers(0, 50))
def test_the_first_is_as_given_and_the_others_differ_from_it_and_each_other(
    count: int, seed: int
) -> None:
    found = candidates(Toy(other=8), count, seed)
    assert found[0] == Toy(other=8)
    # Twelve combinations, two of which the method refuses.
    assert len(found) == len(set(found)) == min(count, 11)
    for method in found[1:]:
        assert isinstance(method, Toy)
        assert (method.a in (1, 2), method.b in (1, 2, 3), method.other) == (True, True, 8)
        assert method.primary.samples in (4, 5)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 11), st.integers(1, 11))
def test_a_larger_search_begins_as_a_smaller_one(few: int, many: int) -> None:
    few, many = sorted((few, many))
    assert candidates(Toy(), many, 3)[:few] == candidates(Toy(), few, 3)


def test_method_and_seed_alone_decide_what_is_drawn() -> None:
    assert candidates(Toy(), 5, 0) == candidates(Toy(), 5, 0)
    assert candidates(Toy(), 5, 0) != candidates(Toy(), 5, 1)


def test_every_combination_is_as_likely() -> None:
    drawn = [candidates(Toy(), 2, seed)[1] for seed in range(600)]
    counts = [drawn.count(method) for method in set(drawn)]
    assert len(counts) == 10
    assert 35 < min(counts) <= 60 <= max(counts) < 90


def test_a_given_method_that_lies_in_its_space_is_not_drawn_again() -> None:
    given_one = Toy(a=1, b=1, primary=Margin(samples=4))
    assert len(set(candidates(given_one, 20, 0))) == 10


def test_without_a_space_the_method_is_the_only_candidate() -> None:
    found = candidates(Toy(primary=Margin()), 1, 0)
    assert found == (Toy(),)


def test_options_of_a_part_that_was_replaced_are_not_varied() -> None:
    method = Implicit(solver=Exact())
    assert "solver.max_steps" in Implicit.search_space
    found = candidates(method, 6, 0)
    assert len(set(found)) == 6
    assert all(isinstance(each, Implicit) and each.solver == Exact() for each in found)
    assert "solver.max_steps" not in searched_options(method)


def test_options_are_told_as_plain_values() -> None:
    method = Implicit(solver=CG(max_steps=3), ce_weight=0.3)
    found = searched_options(method)
    assert (found["solver.max_steps"], found["ce_weight"]) == (3, 0.3)
    assert json.loads(json.dumps(found)) == found
    assert searched_options(CrossEntropy(lr=0.5))["lr"] == 0.5


def test_a_search_of_no_trial_is_refused() -> None:
    with pytest.raises(ValueError, match="trials: found 0"):
        candidates(Toy(), 0, 0)


def test_the_best_on_validation_is_chosen_and_the_first_of_equals() -> None:
    found = trials([0.2, 0.7, 0.7, 0.1])
    assert best_trial(found, "f1_expected") == found[1]
    assert best_trial(found, "cross_entropy") == found[3]
    assert best_trial(found[::-1], "f1_expected") == found[1]


def test_a_trial_that_diverged_is_never_chosen() -> None:
    found = trials([None, 0.1, None])
    assert best_trial(found, "f1_expected") == found[1]
    assert best_trial(trials([None, None]), "f1_expected") is None
    assert best_trial([], "f1_expected") is None


@given(st.none() | st.floats(0, 1))
def test_a_trial_comes_back_from_json_as_it_was(value: float | None) -> None:
    (trial,) = trials([value])
    assert Trial.from_dict(json.loads(json.dumps(asdict(trial)))) == trial
