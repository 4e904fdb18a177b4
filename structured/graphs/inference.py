"""Maximise ``<theta, b> + T(b) + entropy H(b)`` over the local polytope, T any function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from structured.graphs.graph import LabelGraph
from structured.graphs.oracles import best_labels, linear_program
from structured.graphs.sum_product import sum_product
from structured.inference import energy_gradient

BeliefFunction = Callable[[Tensor], Tensor]
"""``[..., B, L + P] -> [..., B]``, one value for each example; HIGH is good. A
`structured.inference.SlopedEnergy` brings the formula of its gradient along."""


@dataclass(frozen=True)
class BestBeliefs:
    """Where inference ended.

    Attributes:
        point: beliefs inside the polytope, ``[..., B, L + P]``; carries no gradient.
        gap: ``[..., B]``, at least 0. If T is concave the best value is higher by no more.
    """

    point: Tensor
    gap: Tensor


@torch.no_grad()
def frank_wolfe(
    graph: LabelGraph,
    theta: Tensor,
    function: BeliefFunction,
    *,
    entropy: float = 0.0,
    steps: int = 50,
) -> BestBeliefs:
    """Move towards the vertex that the gradient likes best, by a share of ``2 / (step + 3)``.

    Vertices come from max-product on a forest, from a linear program elsewhere. The gap is that of
    Frank and Wolfe, ``max_v <grad, v - b>``.

    Args:
        graph: labels and pairs.
        theta: potentials, ``[..., B, L + P]``.
        function: T.
        entropy: weight of the entropy, which is part of what is linearized.
        steps: how many.

    Raises:
        ValueError: if `steps` or `entropy` is out of range.

    Example:
        >>> graph = LabelGraph(2, torch.tensor([[0, 1]]))
        >>> theta = torch.tensor([[1.0, 1.0, -3.0]])  # either label, not both
        >>> found = frank_wolfe(graph, theta, lambda b: -b[..., :2].square().sum(-1), steps=300)
        >>> found.point.round(decimals=2), bool(found.gap < 0.02)
        (tensor([[0.5000, 0.5000, 0.0000]]), True)
    """
    _check(steps, entropy, least=0.0)

    def objective(beliefs: Tensor) -> Tensor:
        value = (theta * beliefs).sum(dim=-1) + function(beliefs)
        return value + entropy * graph.entropy(beliefs) if entropy else value

    def towards(point: Tensor) -> tuple[Tensor, Tensor]:
        gradient = energy_gradient(objective, point)
        if graph.forest:
            vertex = graph.beliefs(best_labels(graph, gradient))
        else:
            vertex = linear_program(graph, gradient)
        return vertex, (gradient * (vertex - point)).sum(dim=-1)

    # From the inside: at a vertex the entropy has no gradient.
    point, _ = sum_product(graph, theta)
    for step in range(steps):
        point = torch.lerp(point, towards(point)[0], 2.0 / (step + 3.0))
    return BestBeliefs(point, towards(point)[1].clamp(min=0.0))


@torch.no_grad()
def mirror_ascent(
    graph: LabelGraph,
    theta: Tensor,
    function: BeliefFunction,
    *,
    entropy: float = 1.0,
    steps: int = 20,
    rate: float = 1.0,
    iterations: int = 100,
) -> BestBeliefs:
    """Ascend by entropic mirror steps, each a run of sum-product.

    A step maximises the linearized T with the entropy as it is, less the Bregman distance of that
    entropy from the present beliefs over `rate`. In potentials u, whose beliefs maximise ``<u, b> +
    H(b)``, it is ``u <- (u + rate (theta + grad T(b))) / (1 + rate entropy)``. Without T the first
    beliefs are the answer. The gap is what the linearized problem could still gain with its
    entropy, and needs no vertices.

    Args:
        graph: labels and pairs.
        theta: potentials, ``[..., B, L + P]``.
        function: T.
        entropy: weight of the entropy, positive.
        steps: how many.
        rate: the step size; the smaller, the more strongly T is curved.
        iterations: the most of each run of sum-product, which starts from the last one's messages.

    Raises:
        ValueError: if `steps`, `rate` or `entropy` is out of range.

    Example:
        >>> graph = LabelGraph(2, torch.tensor([[0, 1]]))
        >>> found = mirror_ascent(graph, torch.tensor([[0.0, 0.0, 1.0]]), lambda b: 0.0 * b.sum(-1))
        >>> found.point, found.gap
        (tensor([[0.6502, 0.6502, 0.4754]]), tensor([0.]))

    Reference:
        Graber & Schwing, Graph Structured Prediction Energy Networks, 2019 (structured entropic
        mirror descent).
    """
    _check(steps, entropy, least=1e-12)
    if not rate > 0:
        raise ValueError(f"rate: found {rate}, wanted a positive number")
    potentials = theta / entropy
    point, messages = sum_product(graph, potentials, iterations=iterations)
    for _ in range(steps):
        slope = theta + energy_gradient(function, point)
        potentials = (potentials + rate * slope) / (1.0 + rate * entropy)
        point, messages = sum_product(graph, potentials, iterations=iterations, messages=messages)
    slope = theta + energy_gradient(function, point)
    best, _ = sum_product(graph, slope / entropy, iterations=iterations, messages=messages)
    gain = (slope * (best - point)).sum(dim=-1)
    gain = gain + entropy * (graph.entropy(best) - graph.entropy(point))
    return BestBeliefs(point, gain.clamp(min=0.0))


def _check(steps: int, entropy: float, least: float) -> None:
    if steps < 0 or not least <= entropy < float("inf"):
        raise ValueError(
            f"found steps={steps}, entropy={entropy}; wanted steps >= 0 and a finite entropy "
            f"{'of at least 0' if least == 0.0 else 'above 0'}"
        )
