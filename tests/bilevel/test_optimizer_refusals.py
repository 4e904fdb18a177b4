"""Parts, options and states that do not fit a loop are raises, and nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bilevel
from tests.bilevel.loops import (
    assert_same,
    inner,
    momentum,
    outer,
    pair,
    quadratic,
)
from tests.bilevel.refusals import raises


def _changes(good: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What may be wrong with a state; each is refused."""
    momentum = good["inner_optimizer"]
    groups = momentum["param_groups"]
    return {
        "version": {"version": 99},
        "no version": {"version": None},
        "version: True": {"version": True},
        "version: a float": {"version": 2.0},
        "recyclable: a word": {"recyclable": "yes"},
        "recyclable: nothing": {"recyclable": None},
        "phi: another number of leaves": {"phi": []},
        "phi: no list": {"phi": None},
        "theta: another shape": {"theta": [torch.zeros(5, dtype=torch.float64)]},
        "theta: another dtype": {"theta": [torch.zeros(2)]},
        "theta: no tensor": {"theta": [1.0]},
        "phi: a NaN": {"phi": [torch.full((2,), torch.nan, dtype=torch.float64)]},
        "theta: infinite": {"theta": [torch.full((2,), torch.inf, dtype=torch.float64)]},
        "outer_scheduler: only there": {"outer_scheduler": {"last_epoch": 1}},
        "inner_scheduler: only here": {"inner_scheduler": None},
        "inner_scheduler: another kind": {"inner_scheduler": {"last_epoch": 1, "T_max": 3}},
        "inner_optimizer: no groups": {"inner_optimizer": {"state": {}}},
        "inner_optimizer: nothing": {"inner_optimizer": None},
        "inner_optimizer: Adam": {
            "inner_optimizer": torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
        },
        "inner_optimizer: more parameters": {
            "inner_optimizer": momentum | {"param_groups": [groups[0] | {"params": [0, 1]}]}
        },
        "inner_optimizer: a broken state": {
            "inner_optimizer": momentum | {"state": {0: None, 7: "?"}}
        },
        "inner_optimizer: no entries": {"inner_optimizer": momentum | {"state": []}},
        "inner_optimizer: an entry too many": {"inner_optimizer": momentum | {"state": {7: {}}}},
        "outer_optimizer: other groups": {"outer_optimizer": {"state": {}, "param_groups": []}},
        "adjoints: another size": {"adjoints": [torch.zeros(3, dtype=torch.float64)]},
        "adjoints: another dtype": {"adjoints": [torch.zeros(2)]},
        "adjoints: no tensors": {"adjoints": [0.0, 0.0]},
        "adjoints: no list": {"adjoints": torch.zeros(1, 2, dtype=torch.float64)},
        "adjoints: nothing": {"adjoints": None},
        "adjoints: a NaN": {"adjoints": [torch.full((2,), torch.nan, dtype=torch.float64)]},
        "gathered: a NaN": {"gathered": [torch.full((2,), torch.nan, dtype=torch.float64)]},
        "gathered: another shape": {"gathered": [torch.zeros(3, dtype=torch.float64)]},
        "gathered: nothing": {"gathered": []},
        "solver_state: a list": {"solver_state": [torch.zeros(2)]},
        "solver_state: a number": {"solver_state": {"step": 1.0}},
        "calls: negative": {"calls": -1},
        "calls: a float": {"calls": 1.0},
        "pending: no number": {"pending": None},
        "rng: nothing": {"rng": {}},
        "rng: too short": {"rng": {"cpu": torch.zeros(3, dtype=torch.uint8)}},
        "rng: no bytes": {"rng": {"cpu": torch.zeros(5056)}},
    }


@pytest.mark.parametrize("name", _changes(momentum().state_dict()))
def test_a_state_that_does_not_fit_is_refused_whole(name: str) -> None:
    loop = momentum()
    for _ in range(3):
        loop.step()
    good = loop.state_dict()
    loop.step()
    torch.rand(3)
    before = loop.state_dict()
    groups = loop.inner_optimizer.param_groups
    with pytest.raises(bilevel.InputError, match=name.split(":")[0].removeprefix("no ") + "|state"):
        loop.load_state_dict(good | _changes(good)[name])
    assert_same(loop.state_dict(), before)
    # And it goes on as if nothing had been tried.
    loop.step()
    other = momentum()
    other.load_state_dict(good)
    other.step()
    torch.manual_seed(0)
    other.load_state_dict(before)
    other.step()
    assert_same(loop.state_dict(), other.state_dict())
    assert len(groups) == 1


@pytest.mark.parametrize("key", momentum().state_dict())
def test_a_state_that_lacks_something_is_refused_whole(key: str) -> None:
    loop = momentum()
    loop.step()
    state = loop.state_dict()
    del state[key]
    before = loop.state_dict()
    with pytest.raises(bilevel.InputError, match="state has version None|state lacks " + key):
        loop.load_state_dict(state)
    assert_same(loop.state_dict(), before)


def test_something_else_than_a_state_is_refused() -> None:
    with pytest.raises(bilevel.InputError, match="version"):
        quadratic().load_state_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"reuse_state": 0}, "reuse_state"),
        ({"outer_max_norm": 0.0}, "outer_max_norm"),
        ({"inner_max_norm": -1.0}, "inner_max_norm"),
        ({"phi": [torch.zeros(2, dtype=torch.float64, requires_grad=True)]}, "phi has 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        quadratic(**options)


def test_an_outer_optimizer_that_evaluates_again_is_refused() -> None:
    phi, theta = pair()
    with pytest.raises(bilevel.InputError, match="outer_optimizer is a LBFGS"):
        bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(outer, inner),
            torch.optim.LBFGS([phi]),
            torch.optim.SGD([theta], lr=0.1),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": outer}, "problem must be a bilevel.ImplicitProblem"),
        ({"outer_optimizer": torch.optim.SGD}, "outer_optimizer must be a torch.optim.Optimizer"),
        ({"inner_optimizer": None}, "inner_optimizer must be a torch.optim.Optimizer"),
        ({"theta": [torch.zeros(2), torch.zeros(2)]}, "theta has 2"),
        ({"inner_steps": 1.5}, "inner_steps must be an integer"),
        ({"accumulate": True}, "accumulate must be an integer"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    phi, theta = pair()
    parts: dict[str, Any] = {
        "problem": bilevel.ImplicitProblem(outer, inner),
        "outer_optimizer": torch.optim.SGD([phi], lr=0.1),
        "inner_optimizer": torch.optim.SGD([theta], lr=0.1),
    }
    with pytest.raises(bilevel.InputError, match=message):
        bilevel.BilevelOptimizer(**(parts | change))


def test_a_leaf_of_both_optimizers_or_of_no_parameter_is_refused() -> None:
    phi, theta = pair()
    problem = bilevel.ImplicitProblem(outer, inner)
    both = torch.optim.SGD([phi], lr=0.1), torch.optim.SGD([theta, phi], lr=0.1)
    with pytest.raises(bilevel.InputError, match="share a leaf"):
        bilevel.BilevelOptimizer(problem, *both)
    frozen = torch.optim.SGD([theta.detach().requires_grad_(False)], lr=0.1)
    with pytest.raises(bilevel.InputError, match="every leaf of theta must be a parameter"):
        bilevel.BilevelOptimizer(problem, torch.optim.SGD([phi], lr=0.1), frozen)


def test_inner_args_that_are_no_tuple_are_refused_before_theta_moves() -> None:
    loop = quadratic()
    with pytest.raises(bilevel.InputError, match="inner_args is a Tensor"):
        loop.step(inner_args=torch.zeros(3))  # type: ignore[arg-type]
    assert torch.equal(loop.theta[0], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("tied", ["phi", "theta"])
def test_a_parameter_at_two_places_of_a_tree_is_refused(tied: str) -> None:
    phi, theta = pair()
    trees: dict[str, Any] = {"phi": {"a": phi}, "theta": {"a": theta}}
    trees[tied]["b"] = trees[tied]["a"]
    with raises(f"{tied}['b'] is the very tensor of {tied}['a']"):
        bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(outer, inner),
            torch.optim.SGD([phi], lr=0.1),
            torch.optim.SGD([theta], lr=0.1),
            **trees,
        )


def test_a_parameter_used_twice_in_the_functions_is_moved_as_one() -> None:
    phi, theta = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    problem = bilevel.ImplicitProblem(
        lambda p, t: (t[0] * t[0]).sum(),
        lambda p, t: ((t[0] + 2 * t[0] - 3 * p[0]) ** 2 + t[0] ** 2).sum(),
    )
    sgd = torch.optim.SGD
    loop = bilevel.BilevelOptimizer(problem, sgd([phi], lr=0.1), sgd([theta], lr=0.0))
    loop.step()
    # d (10 t^2 - 18 p t) = 0 has t = 0.9 p; the outer gradient in t is 2.
    assert phi.item() == pytest.approx(1 - 0.1 * 0.9 * 2)


@pytest.mark.parametrize(
    ("batch", "kind"), [(torch.zeros(1, 2), "Tensor"), ({"x": torch.zeros(2)}, "dict")]
)
def test_a_batch_that_is_no_tuple_is_refused_before_it_is_used(batch: Any, kind: str) -> None:
    loop = quadratic(inner_steps=2)
    with raises(f"inner_batches[0] is a {kind}; wanted a tuple"):
        loop.step(inner_batches=[batch, batch])
    assert torch.equal(loop.theta[0], torch.ones(2, dtype=torch.float64))
    with raises(f"inner_batches[1] is a {kind}; wanted a tuple"):
        loop.step(inner_batches=[(), batch])
