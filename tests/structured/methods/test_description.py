from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

import bilevel
from structured import costs, sampling
from structured.methods import (
    SEAL,
    ContrastiveDivergence,
    CrossEntropy,
    Implicit,
    Margin,
    Method,
    TrustLimits,
    Value,
    from_dict,
    to_dict,
    with_options,
)

METHODS = [
    CrossEntropy(lr=0.01, weight_decay=1e-4),
    Implicit(),
    Implicit(
        primary=ContrastiveDivergence(20),
        gradient="unrolled",
        sampler=sampling.Gumbel(0.5),
        cost=costs.zero_one,
        solver=bilevel.CG(rtol=1e-3, max_steps=7, preconditioner=bilevel.Jacobi(probes=3)),
        trust=TrustLimits(ratio=3.0),
        max_norm=1.0,
    ),
    Implicit(primary=Value(kind="squared"), solver=bilevel.Neumann(5, step=0.02)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_survives_json(method: Method) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method


def test_what_a_description_leaves_out_takes_its_default() -> None:
    assert from_dict({"type": "Implicit", "primary": {"type": "Margin"}}) == Implicit()


@pytest.mark.parametrize(
    ("method", "written", "present"),
    [
        (SEAL(), "Seal", "SEAL"),
        (Implicit(sampler=sampling.DetachedHard()), "NoPathHard", "DetachedHard"),
        (Implicit(sampler=sampling.DetachedSoft()), "NoPathSoft", "DetachedSoft"),
    ],
)
def test_a_renamed_class_is_written_by_its_former_name_and_read_by_both(
    method: Method, written: str, present: str
) -> None:
    text = json.dumps(to_dict(method))
    assert f'"{written}"' in text
    assert f'"{present}"' not in text
    for each in (text, text.replace(written, present)):
        assert from_dict(json.loads(each)) == method


def own_cost(candidate: Tensor, gold: Tensor) -> Tensor:
    return torch.zeros(candidate.shape[:-1])


def test_an_object_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match=r"method\.cost: found <function own_cost"):
        to_dict(Implicit(cost=own_cost))
    soft_f1 = own_cost
    soft_f1.__name__ = "soft_f1"  # a name alone does not make it the package's own
    with pytest.raises(TypeError, match=r"method\.cost"):
        to_dict(Implicit(cost=soft_f1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "Adaboost"}, "method: found the type 'Adaboost', wanted one of CrossEntropy"),
        ({}, "method: found the type None"),
        ({"type": "CrossEntropy", "rate": 1}, "unknown 'rate', wanted options of CrossEntropy: lr"),
        ({"type": "CrossEntropy", "lr": -1}, "method: lr: found -1"),
        ({"type": "Margin"}, "method: found the type 'Margin', wanted one of CrossEntropy"),
        ("implicit", "method: found 'implicit', wanted one of CrossEntropy, .*mean 'Implicit'"),
        ([], "wanted the description of a method"),
        ({"type": "Implicit", "warm_start": "no"}, "method: warm_start: found 'no', wanted true"),
        (
            {"type": "Implicit", "solver": {"type": "CG", "rtol": 2}},
            r"method\.solver: CG: rtol must be in",
        ),
        (
            {"type": "Implicit", "primary": {"type": "ContrastiveDivergence", "samples": 0}},
            r"method\.primary: samples: found 0",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_its_place(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "primary",
            {"type": "Vlaue"},
            "the type 'Vlaue', wanted one of Margin, ContrastiveDivergence, Value; did you mean "
            "'Value'?",
        ),
        (
            "primary",
            {"type": "CG"},
            "the type 'CG', wanted one of Margin, ContrastiveDivergence, Value",
        ),
        ("primary", "Value", """'Value', wanted {"type": "Value"}"""),
        (
            "cost",
            {"type": "haming"},
            "the type 'haming', wanted one of hamming, soft_f1, soft_iou, zero_one; did you mean "
            "'hamming'?",
        ),
        (
            "cost",
            {"type": "hamming", "x": 1},
            "unknown 'x', wanted options of hamming: it has none",
        ),
        (
            "sampler",
            "soft",
            "'soft', wanted one of Soft, StraightThrough, Gumbel, GumbelStraightThrough, "
            "NoPathHard, NoPathSoft; did you mean 'Soft'?",
        ),
        ("trust", {"type": "CG"}, "the type 'CG', wanted one of TrustLimits"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_with_those_that_do(
    option: str, value: object, message: str
) -> None:
    exactly = f"^{re.escape(f'method.{option}: found {message}')}$"
    with pytest.raises(ValueError, match=exactly):
        from_dict({"type": "Implicit", option: value})


def test_options_of_a_method_and_of_its_parts_are_set_together() -> None:
    method = with_options(
        Implicit(cost=own_cost),
        {
            "ce_weight": 0.3,
            "solver.max_steps": 1,
            # Neither of these fits without the other.
            "primary.samples": 5,
            "sampler": sampling.StraightThrough(),
            # The part is set before what is in it.
            "trust.ratio": 2.0,
            "trust": TrustLimits(distance=0.5),
        },
    )
    assert method == Implicit(
        cost=own_cost,
        ce_weight=0.3,
        solver=bilevel.CG(rtol=None, max_steps=1),
        primary=Margin(samples=5),
        sampler=sampling.StraightThrough(),
        trust=TrustLimits(ratio=2.0, distance=0.5),
    )
    assert with_options(method, {}) == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"method: Implicit\(.*\) has no field 'rate'; it has primary, gradient"),
        ({"solver.rate": 1.0}, r"method\.solver: CG\(.*\) has no field 'rate'; it has rtol"),
        ({"ce_weight.rate": 1.0}, r"method\.ce_weight: 1\.0 has no field 'rate'; it has none"),
        ({"solver.": 1}, r"method\.solver: CG\(.*\) has no field ''"),
        ({"ce_weight": -1.0}, "ce_weight: found -1"),
    ],
)
def test_an_option_that_is_not_there_or_does_not_fit_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_options(Implicit(), options)
