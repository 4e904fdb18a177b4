"""The gradient in phi: against differences of the re-solved problem, and by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from structured.methods import (
    ContrastiveDivergence,
    Implicit,
    Margin,
    UnrolledProblem,
    Value,
    unroll,
)
from structured.methods._objectives import Minibatch
from structured.methods.figures import norm
from structured.models import Models
from structured.sampling import Gumbel

Tree = dict[str, Tensor]
MakeModels = Callable[..., Models]
MakeBatch = Callable[..., Minibatch]
Parameters = Callable[[Models], tuple[Tree, Tree]]

# A strong penalty makes the inner minimum unique, whatever the energy's curvature.
SOLVED = {
    "solver": bilevel.Exact(),
    "damping": 0.0,
    "gauss_newton": False,
    "l2": 0.05,
    "ce_weight": 0.7,
}
CASES = {
    "margin": Implicit(primary=Margin(), **SOLVED),
    "margin at relaxed samples": Implicit(primary=Margin(2), sampler=Gumbel(0.7), **SOLVED),
    "contrastive divergence": Implicit(
        primary=ContrastiveDivergence(4), sampler=Gumbel(0.5), **SOLVED
    ),
    "value": Implicit(primary=Value(), **SOLVED),
    "cost-augmented": Implicit(primary=Margin(), cost_weight=0.5, **SOLVED),
}
cases = pytest.mark.parametrize("method", CASES.values(), ids=CASES)


def moved(tree: Tree, direction: Mapping[str, Tensor], reach: float) -> Tree:
    return {name: leaf + reach * direction[name] for name, leaf in tree.items()}


def random_direction(tree: Tree, seed: int) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        for name, leaf in tree.items()
    }


def inner_product(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)


@cases
def test_the_hypergradient_is_the_derivative_of_the_primary_loss_at_the_re_solved_network(
    method: Implicit, make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    models = make_models(dropout=0.3)
    batch = make_batch(samples=method.primary.samples if method.drawing.needs_noise else 0)
    masks = models.network.dropout_masks(batch.x, torch.Generator().manual_seed(5))  # pyright: ignore[reportCallIssue]
    batch = dataclasses.replace(batch, masks=masks)
    objectives = method.objectives(models)
    problem = method.problem(objectives)
    phi, start = parameters(models)

    def solved(at: Tree, near: Tree) -> Tree:
        return problem.refine(at, near, inner_args=(batch,), tolerance=1e-11)

    theta = solved(phi, start)
    gradient, info = problem.implicit_grad(
        phi, theta, outer_args=(batch,), inner_args=(batch,), return_info=True
    )
    assert norm(info.implicit) > 0.02 * norm(info.direct)
    for seed in range(3):
        direction, reach = random_direction(phi, seed), 1e-4
        ahead, behind = (moved(phi, direction, sign * reach) for sign in (1.0, -1.0))
        difference = float(
            objectives.outer(ahead, solved(ahead, theta), batch)
            - objectives.outer(behind, solved(behind, theta), batch)
        )
        assert inner_product(gradient, direction) == pytest.approx(
            difference / (2 * reach), rel=1e-5, abs=1e-8
        )


@cases
def test_the_hypergradient_is_the_sum_of_the_direct_and_the_implicit_part(
    method: Implicit, make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    models, batch = make_models(), make_batch(samples=method.primary.samples)
    objectives, (phi, theta) = method.objectives(models), parameters(models)
    args: Any = {"outer_args": (batch,), "inner_args": (batch,), "return_info": True}
    gradient, info = method.problem(objectives).implicit_grad(phi, theta, **args)
    direct, report = method.problem(objectives, direct=True).implicit_grad(phi, theta, **args)
    assert norm(report.implicit) == 0.0
    assert report.stationarity == info.stationarity
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in phi.items()}
    by_hand = torch.autograd.grad(
        objectives.outer(leaves, theta, batch), list(leaves.values()), materialize_grads=True
    )
    for name, expected in zip(leaves, by_hand, strict=True):
        torch.testing.assert_close(direct[name], expected)
        torch.testing.assert_close(info.direct[name], expected)
        torch.testing.assert_close(gradient[name], expected + info.implicit[name])


def unrolled_by_hand(
    inner: Callable[..., Tensor], phi: Tree, start: Tree, batches: list[Minibatch], rate: float
) -> Tree:
    theta = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    for batch in batches:
        leaves = list(theta.values())
        slopes = torch.autograd.grad(inner(phi, theta, batch), leaves, create_graph=True)
        theta = {
            name: leaf - rate * slope
            for (name, leaf), slope in zip(theta.items(), slopes, strict=True)
        }
    return theta


@pytest.mark.parametrize("steps", [1, 3])
def test_unrolling_agrees_with_steps_differentiated_by_hand(
    steps: int, make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    method = Implicit(primary=Value(), l2=0.01)
    models, rate = make_models(), 0.3
    objectives, (phi, start) = method.objectives(models), parameters(models)
    batches = [make_batch(seed) for seed in range(steps)]
    final = make_batch(99)

    leaves = {name: leaf.clone().requires_grad_() for name, leaf in phi.items()}
    by_hand = unrolled_by_hand(objectives.inner, leaves, start, batches, rate)
    expected = torch.autograd.grad(
        objectives.outer(leaves, by_hand, final), list(leaves.values()), materialize_grads=True
    )

    path = [(batch,) for batch in batches]
    theta = unroll(objectives.inner, phi, start, path, rate)
    for name in theta:
        torch.testing.assert_close(theta[name], by_hand[name].detach())
    problem = UnrolledProblem(method.problem(objectives, direct=True), rate)
    gradient, info = problem.implicit_grad(
        phi, theta, outer_args=(final, start, path), inner_args=(final,)
    )
    assert norm(info.implicit) > 1e-3
    for name, wanted in zip(leaves, expected, strict=True):
        torch.testing.assert_close(gradient[name], wanted)


def test_unrolling_from_the_inner_optimum_is_the_neumann_series_of_as_many_terms(
    make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    """Lorraine, Vicol and Duvenaud 2020, theorem 1."""
    rate, terms = 0.4, 5
    method = Implicit(
        primary=Value(), **{**SOLVED, "solver": bilevel.Neumann(terms=terms, step=rate)}
    )
    models, batch = make_models(), make_batch()
    objectives, (phi, theta) = method.objectives(models), parameters(models)
    args: Any = {"outer_args": (batch,), "inner_args": (batch,), "return_info": True}
    problem = method.problem(objectives)
    theta = problem.refine(phi, theta, inner_args=(batch,), tolerance=1e-12)
    _, series = problem.implicit_grad(phi, theta, **args)
    args["outer_args"] = (batch, theta, [(batch,)] * terms)
    unrolled = UnrolledProblem(method.problem(objectives, direct=True), rate)
    _, info = unrolled.implicit_grad(phi, theta, **args)
    assert norm(info.implicit) > 1e-3
    for name in phi:
        torch.testing.assert_close(info.implicit[name], series.implicit[name], atol=1e-9, rtol=1e-6)


def test_gauss_newton_curvature_is_never_negative_where_the_hessian_is(
    make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    models, batch = make_models(), make_batch()
    phi, theta = parameters(models)
    phi = {name: 10.0 * leaf for name, leaf in phi.items()}
    lowest = {}
    for gauss_newton in (True, False):
        method = Implicit(damping=0.0, ce_weight=0.1, gauss_newton=gauss_newton)
        operator = method.problem(method.objectives(models)).operator(
            phi, theta, inner_args=(batch,)
        )
        lowest[gauss_newton] = float(torch.linalg.eigvalsh(operator.to_dense()).min())
    assert lowest[False] < -0.1
    assert lowest[True] >= -1e-12


def test_gauss_newton_is_the_hessian_of_a_linear_network_whose_energy_bends_upwards(
    make_models: MakeModels, make_batch: MakeBatch, parameters: Parameters
) -> None:
    """The kept part of the energy, and cross-entropy, exactly: nothing there is negative."""
    models, batch = make_models(hidden=()), make_batch()
    phi, theta = parameters(models)
    # E = 8 sum y and every y near 0: there relax'' > 0. No global term.
    phi = {name: torch.zeros_like(leaf) for name, leaf in phi.items()}
    phi["unaries.output.bias"] += 8.0
    theta = {name: 0.1 * leaf for name, leaf in theta.items()}
    theta["output.bias"] = theta["output.bias"] - 4.0
    found = {}
    for gauss_newton in (True, False):
        method = Implicit(damping=0.0, l2=0.1, gauss_newton=gauss_newton)
        problem = method.problem(method.objectives(models))
        found[gauss_newton] = problem.operator(phi, theta, inner_args=(batch,)).to_dense()
    torch.testing.assert_close(found[True], found[False])
