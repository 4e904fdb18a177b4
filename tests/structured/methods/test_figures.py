from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import bilevel
from structured.methods import Implicit, TrustLimits, Value
from structured.methods._objectives import Minibatch
from structured.methods.figures import distrust, norm, objective_figures
from structured.models import Models

Make = Callable[..., Any]
PENALTY = 0.05


def info_of(method: Implicit, make_models: Make, batch: Minibatch, parameters: Make, refine: bool):
    models = make_models()
    phi, theta = parameters(models)
    problem = method.problem(method.objectives(models))
    if refine:
        theta = problem.refine(phi, theta, inner_args=(batch,), tolerance=1e-10)
    _, info = problem.implicit_grad(
        phi, theta, outer_args=(batch,), inner_args=(batch,), return_info=True
    )
    return info, norm(theta)


def test_the_norm_of_a_tree_is_that_of_all_its_entries() -> None:
    assert norm({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)}) == 5.0


def test_figures_agree_with_the_objectives(
    make_models: Callable[..., Models], make_batch: Make, parameters: Make
) -> None:
    models, batch = make_models(), make_batch()
    objectives = Implicit(ce_weight=0.5).objectives(models)
    phi, theta = parameters(models)
    figures = objective_figures(objectives, phi, theta, batch)
    assert models.energy is not None
    logits = models.network(batch.x)
    point = models.space.relax(logits)
    energy, gold = models.energy(batch.x, point), models.energy(batch.x, batch.y)
    entropy = -models.space.log_prob(logits, batch.y)
    assert figures["cross_entropy"] == pytest.approx(float(entropy.mean().detach()))
    assert figures["energy_gap"] == pytest.approx(float((energy - gold).mean().detach()))
    assert figures["auxiliary"] == pytest.approx(float((energy + 0.5 * entropy).mean().detach()))
    active = objectives.cost(point, batch.y) - energy + gold > 0
    assert figures["active_hinges"] == float(active.double().mean())


def test_a_solved_problem_at_its_optimum_is_trusted(
    make_models: Make, make_batch: Make, parameters: Make
) -> None:
    method = Implicit(primary=Value(), gauss_newton=False, solver=bilevel.Exact(), l2=PENALTY)
    info, size = info_of(method, make_models, make_batch(), parameters, refine=True)
    assert distrust(info, size, TrustLimits()) == ""


@pytest.mark.parametrize(
    ("method", "limits", "refine", "reason"),
    [
        (
            Implicit(primary=Value(), solver=bilevel.Neumann(4, step=200.0), l2=PENALTY),
            TrustLimits(),
            True,
            "the linear solve ended as DIVERGED",
        ),
        (
            Implicit(
                primary=Value(),
                gauss_newton=False,
                damping=0.0,
                ce_weight=0.0,
                solver=bilevel.MINRES(),
            ),
            TrustLimits(),
            False,
            "the inner curvature is indefinite",
        ),
        (
            Implicit(primary=Value(), l2=PENALTY),
            TrustLimits(ratio=1e-6),
            True,
            "dwarfs the direct term",
        ),
        (
            Implicit(primary=Value(), l2=PENALTY),
            TrustLimits(distance=1e-6),
            False,
            "theta is far from the inner optimum",
        ),
    ],
    ids=["divergent", "indefinite", "too large", "not at the optimum"],
)
def test_distrust_names_its_reason(
    method: Implicit,
    limits: TrustLimits,
    refine: bool,
    reason: str,
    make_models: Make,
    make_batch: Make,
    parameters: Make,
) -> None:
    info, size = info_of(method, make_models, make_batch(), parameters, refine)
    sentence = distrust(info, size, limits)
    assert sentence.startswith("The implicit term cannot be trusted: ")
    assert reason in sentence


@pytest.mark.parametrize("name", ["ratio", "distance"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: found 0.0, wanted a positive number"):
        TrustLimits(**{name: 0.0})
