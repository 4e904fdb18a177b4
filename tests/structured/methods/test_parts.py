"""Options that are objects: names in texts and classes are refused where they are given."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from structured.costs import hamming
from structured.estimators import MultiLabelClassifier
from structured.methods import DVN, Implicit, Method, TrustLimits, Value, known, with_options
from structured.methods.primaries import Primary
from structured.sampling import Soft


def parts(method: Method) -> list[str]:
    """The options whose value is an object, or a sampler, which is None by default."""
    return [
        field.name
        for field in fields(method)  # type: ignore[arg-type]
        if is_dataclass(getattr(method, field.name))
        or callable(getattr(method, field.name))
        or field.name == "sampler"
    ]


CASES = [(cls(), name) for cls in known().values() for name in parts(cls())]


@pytest.mark.parametrize(
    ("method", "option"), CASES, ids=lambda value: getattr(value, "name", value)
)
@pytest.mark.parametrize("value", ["Value", "CG", "hamming", "Soft", Value, object(), 3])
def test_every_method_refuses_what_is_no_object_of_the_kind_its_option_takes(
    method: Any, option: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: found .*, wanted an? (object|function) "):
        replace(method, **{option: value})


def test_the_options_that_are_objects_are_those_that_are_known_to_be() -> None:
    found = {name for _, name in CASES}
    assert found == {"primary", "solver", "sampler", "cost", "trust"}
    assert {type(method).__name__ for method, name in CASES if name == "solver"} == {
        "Implicit",
        "EndToEndSPEN",
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"primary": "Value"},
            "primary: found 'Value', wanted an object such as structured.methods",
        ),
        ({"solver": "CG"}, r"solver: found 'CG', wanted an object such as bilevel\.CG\(\)$"),
        ({"sampler": "Soft"}, r"sampler: found 'Soft', .* structured\.sampling\.Soft\(\), or None"),
        ({"cost": "hamming"}, "cost: found 'hamming', wanted a function such as structured.costs"),
        ({"trust": "high"}, r"trust: found 'high', .* structured\.methods\.TrustLimits\(\)"),
    ],
    ids=str,
)
def test_a_refusal_says_what_was_found_and_how_such_an_object_is_written(
    option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Implicit(**option)


def test_a_part_given_as_text_is_refused_by_the_estimator_and_with_options_too() -> None:
    with pytest.raises(ValueError, match="primary: found 'Value', wanted an object"):
        MultiLabelClassifier("implicit").set_params(method__primary="Value")
    with pytest.raises(ValueError, match="solver: found 'CG', wanted an object"):
        with_options(Implicit(), {"solver": "CG"})


class Gap(Primary):
    """A primary loss of one's own."""

    samples = 1
    default_sampler = Soft()

    @property
    def name(self) -> str:
        return "gap"

    def loss(self, gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
        return (gold_energy - energies).mean(dim=0)


class Cost:
    """A cost with a number in it."""

    def __call__(self, candidate: Tensor, gold: Tensor) -> Tensor:
        return 2.0 * hamming(candidate, gold)


def test_objects_of_ones_own_are_taken() -> None:
    cost = Cost()
    assert cost(torch.ones(1, 1), torch.zeros(1, 1)).item() == 2.0
    assert Implicit(primary=Gap(), cost=cost, solver=bilevel.Neumann(3)).name == "implicit-gap"


@pytest.mark.parametrize("value", ["0.5", None])
def test_a_number_given_as_text_is_refused_as_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"adversarial: found .*, wanted a finite number"):
        DVN(adversarial=value)
    with pytest.raises(ValueError, match=r"ratio: found .*, wanted a positive number"):
        TrustLimits(ratio=value)
