"""Tree-reweighted sum-product: the beliefs that maximise ``<theta, b> + H(b)``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from structured.graphs.graph import LabelGraph


@torch.no_grad()
def sum_product(
    graph: LabelGraph,
    theta: Tensor,
    *,
    iterations: int = 100,
    tolerance: float | None = None,
    messages: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the beliefs that maximise ``<theta, b> + H(b)`` over the local polytope.

    On a forest they are the exact marginals of ``p(y) ~ exp(<theta, beliefs(y)>)``, found in as
    many iterations as its longest path has pairs. With cycles they are the optimum of a concave
    problem whose value bounds ``log Z`` from above; messages are then damped by half.

    Args:
        graph: labels and pairs.
        theta: potentials, ``[..., L + P]``.
        iterations: the most; every one updates all messages at once.
        tolerance: stop when no message has moved by more; None is 20 times the grain of the type.
        messages: where to start, ``[..., 2 P]``, as returned before; None starts at zero.

    Returns:
        Beliefs ``[..., L + P]``, inside the polytope whatever the number of iterations, and the
        last messages. No gradient passes.

    Example:
        >>> graph = LabelGraph(2, torch.tensor([[0, 1]]))
        >>> theta = torch.tensor([0.0, 0.0, 1.0])  # weights 1, 1, 1, e of none, one, other, both
        >>> sum_product(graph, theta)[0]
        tensor([0.6502, 0.6502, 0.4754])

    Reference:
        Wainwright, Jaakkola and Willsky 2005, with log-ratios for messages.
    """
    local, couplings = theta[..., : graph.labels], theta[..., graph.labels :]
    rho = graph.appearance.to(theta.dtype)
    strength = torch.cat([couplings / rho] * 2, dim=-1)
    weight = torch.cat([rho, rho])
    # Message e runs from source[e] to target[e]; e + P (mod 2 P) is the one the other way.
    first, second = graph.ends
    source, target = torch.cat([first, second]), torch.cat([second, first])
    count, half = len(source), len(first)
    if messages is None:
        messages = theta.new_zeros(*theta.shape[:-1], count)
    if tolerance is None:
        tolerance = 20.0 * torch.finfo(theta.dtype).eps
    for _ in range(iterations if count else 0):
        field = local.index_add(-1, target, weight * messages)
        cavity = field.index_select(-1, source) - messages.roll(half, dims=-1)
        new = functional.softplus(cavity + strength) - functional.softplus(cavity)
        if not graph.forest:
            new = 0.5 * (new + messages)
        moved = (new - messages).abs().max()
        messages = new
        if moved <= tolerance:
            break
    single = torch.sigmoid(local.index_add(-1, target, weight * messages))
    both = pair_beliefs(*graph.at_ends(single), strength[..., :half])
    return torch.cat([single, both], dim=-1), messages


def pair_beliefs(first: Tensor, second: Tensor, strength: Tensor) -> Tensor:
    """Return ``b_ij(1, 1)`` given ``b_i(1)``, ``b_j(1)`` and the logarithm of the odds ratio.

    At the optimum that logarithm is ``theta_ij / rho_ij``, so that the labels' beliefs decide those
    of the pairs (Welling & Teh 2001). The result is inside the polytope for any input.

    Args:
        first: b_i(1), any shape.
        second: b_j(1), the same shape.
        strength: ``log(b(1,1) b(0,0) / (b(1,0) b(0,1)))``.

    Example:
        >>> half = torch.tensor([0.5])
        >>> pair_beliefs(half, half, torch.tensor([0.0])), pair_beliefs(half, half, half * 1e3)
        (tensor([0.2500]), tensor([0.5000]))
    """
    # Where labels repel, turn the second one around: then all terms below are at least zero, and
    # nothing cancels. With a = e^-|strength| the belief is the smaller root of
    # (1 - a) b^2 - (a + (1 - a)(q + r)) b + q r = 0.
    repel = strength < 0
    other = torch.where(repel, 1.0 - second, second)
    a = torch.exp(-strength.abs())
    rest, total, twice = 1.0 - a, first + other, 2.0 * first * other
    linear = a + rest * total
    spread = total - twice
    root = (a.square() + (rest * (first - other)).square() + 2.0 * a * rest * spread).sqrt()
    both = twice / (linear + root).clamp(min=torch.finfo(first.dtype).tiny)
    both = torch.where(repel, first - both, both)
    least = (first + second - 1.0).clamp(min=0.0)
    return torch.minimum(torch.maximum(both, least), torch.minimum(first, second))
