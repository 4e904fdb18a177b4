"""What the implicit term consists of, and when there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bilevel
from structured import costs
from structured.methods import ContrastiveDivergence, Implicit, Margin
from structured.methods._objectives import Minibatch, Objectives
from structured.methods.figures import norm
from structured.models import Models
from structured.networks import MLP
from structured.spaces import Labels

Tree = dict[str, Tensor]


class Bowl(nn.Module):
    """``5 ||y - sigmoid(W x)||^2 / 2``: least inside the hypercube, unlike most energies."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2.5 * (y - torch.sigmoid(self.centre(x))).square().sum(dim=-1)


def bowl_problem(
    make_batch: Callable[..., Minibatch], **options: Any
) -> tuple[bilevel.ImplicitProblem, Objectives, Tree, Tree, Minibatch]:
    """A method with the same cost inside and outside, at the optimum of its inner problem."""
    torch.manual_seed(1)
    models = Models(Labels(3), MLP(4, 3, ()).double(), Bowl().double())
    method = Implicit(
        cost=costs.hamming,
        cost_weight=1.0,
        solver=bilevel.Exact(),
        damping=0.0,
        gauss_newton=False,
        **options,
    )
    objectives = method.objectives(models)
    problem = method.problem(objectives)
    assert models.energy is not None
    phi = {name: leaf.detach() for name, leaf in models.energy.named_parameters()}
    theta = {name: leaf.detach() for name, leaf in models.network.named_parameters()}
    batch = make_batch(3, rows=8)
    theta = problem.refine(phi, theta, inner_args=(batch,), tolerance=1e-12)
    return problem, objectives, phi, theta, batch


def theta_gradient(function: Callable[[Tree], Tensor], theta: Tree) -> Tree:
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    found = torch.autograd.grad(function(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def all_active(objectives: Objectives, phi: Tree, theta: Tree, batch: Minibatch) -> bool:
    found = objectives.compare_samples(phi, theta, batch)
    return bool((found.costs - found.energies + found.gold_energy > 0).all())


def test_the_implicit_term_is_zero_where_the_inner_objective_is_the_outer_one_negated(
    make_batch: Callable[..., Minibatch],
) -> None:
    problem, objectives, phi, theta, batch = bowl_problem(make_batch, ce_weight=0.0, l2=0.0)
    assert all_active(objectives, phi, theta, batch)
    _, info = problem.implicit_grad(
        phi, theta, outer_args=(batch,), inner_args=(batch,), return_info=True
    )
    assert info.stationarity < 1e-10
    assert norm(info.direct) > 0.1
    assert norm(info.implicit) < 1e-8
    assert norm(info.adjoint) < 1e-8


def test_away_from_the_optimum_too_the_two_slopes_are_opposite(
    make_batch: Callable[..., Minibatch],
) -> None:
    _, objectives, phi, theta, batch = bowl_problem(make_batch, ce_weight=0.0, l2=0.0)
    theta = {name: leaf + 0.3 for name, leaf in theta.items()}
    assert all_active(objectives, phi, theta, batch)
    outer = theta_gradient(lambda at: objectives.outer(phi, at, batch), theta)
    inner = theta_gradient(lambda at: objectives.inner(phi, at, batch), theta)
    assert norm(outer) > 0.01
    for name in theta:
        torch.testing.assert_close(outer[name], -inner[name], atol=1e-12, rtol=0.0)


def test_with_all_margins_active_only_cross_entropy_and_penalty_drive_the_implicit_term(
    make_batch: Callable[..., Minibatch],
) -> None:
    lam, r = 0.3, 0.02
    _, objectives, phi, theta, batch = bowl_problem(make_batch, ce_weight=lam, l2=r)
    assert all_active(objectives, phi, theta, batch)
    slope = theta_gradient(lambda at: objectives.outer(phi, at, batch), theta)
    expected = theta_gradient(
        lambda at: (
            lam * objectives.cross_entropy(objectives.logits(at, batch), batch.y).mean()
            + r * sum(leaf.square().sum() for leaf in at.values())
        ),
        theta,
    )
    assert norm(slope) > 0.01
    for name in theta:
        torch.testing.assert_close(slope[name], expected[name], atol=1e-8, rtol=0.0)


def test_inactive_hinges_give_no_gradient_at_all(
    make_models: Callable[..., Models], make_batch: Callable[..., Minibatch]
) -> None:
    models, batch = make_models(), make_batch()
    batch = Minibatch(batch.x, torch.ones_like(batch.y))
    method = Implicit(primary=Margin())
    assert isinstance(models.energy, nn.Module)
    phi = {name: leaf.detach() for name, leaf in models.energy.named_parameters()}
    theta = {name: leaf.detach() for name, leaf in models.network.named_parameters()}
    # Every label present is worth 50: the gold output, all labels, lies far below any other.
    phi["unaries.output.bias"] = phi["unaries.output.bias"] - 50.0
    args: Any = {"outer_args": (batch,), "inner_args": (batch,), "return_info": True}
    problem = method.problem(method.objectives(models))
    gradient, info = problem.implicit_grad(phi, theta, **args)
    assert info.outer_value == 0.0
    assert norm(gradient) == norm(info.direct) == norm(info.implicit) == 0.0
    soft = Implicit(primary=ContrastiveDivergence(1))
    batch = Minibatch(batch.x, batch.y, None, torch.zeros(1, *batch.y.shape, dtype=torch.float64))
    args |= {"outer_args": (batch,), "inner_args": (batch,)}
    gradient, _ = soft.problem(soft.objectives(models)).implicit_grad(phi, theta, **args)
    assert norm(gradient) > 0.0
