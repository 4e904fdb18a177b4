"""Inference over any energy and space: gradient descent in y, and brute force to check it.

The energy is given as a function of y alone, ``energy_fn(y [..., B, *event]) -> [..., B]``, such as
``lambda y: energy(x, y)``. Every example moves by its own gradient: batching changes nothing.
Where the gradient has a formula, a `SlopedEnergy` brings it along.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from structured._space import Space, mirror_dual_step

EnergyFunction = Callable[[Tensor], Tensor]
# (state, gradient, rate) -> next state
_Step = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class SlopedEnergy:
    """An energy with a formula for its gradient, so that inference differentiates nothing.

    Args:
        value: y to energies, ``[..., B, *event] -> [..., B]``.
        slope: y to each example's gradient, of the shape of y.

    Example:
        >>> import torch
        >>> from structured.spaces import Labels
        >>> bowl = SlopedEnergy(lambda y: y.square().sum(dim=-1), lambda y: 2.0 * y)
        >>> projected_gradient(bowl, torch.ones(1, 2), Labels(2), steps=1, rate=0.25).point
        tensor([[0.5000, 0.5000]])
    """

    value: EnergyFunction
    slope: Callable[[Tensor], Tensor]

    def __call__(self, y: Tensor) -> Tensor:
        """Return the energies, ``[..., B]``."""
        return self.value(y)


def energy_gradient(energy_fn: EnergyFunction, point: Tensor) -> Tensor:
    """Return each example's gradient, by the energy's formula if it has one.

    Args:
        energy_fn: y to energies.
        point: ``[..., B, *event]``.

    Example:
        >>> import torch
        >>> energy_gradient(lambda y: y.square().sum(dim=-1), torch.tensor([[0.5, 1.0]]))
        tensor([[1., 2.]])
    """
    if isinstance(energy_fn, SlopedEnergy):
        return energy_fn.slope(point)
    # torch.func.grad, not autograd.grad: it also works inside another torch.func transform.
    return torch.func.grad(lambda y: energy_fn(y).sum())(point)


@dataclass(frozen=True)
class InferenceResult:
    """Where inference ended.

    Attributes:
        point: the last point (of the best restart), ``[..., B, *event]``; relaxed, not rounded.
        energy: its energy, ``[..., B]``.
        trace: the energies of all points visited, the start first, ``[steps + 1, ..., B]``.
        gap: the Frank-Wolfe gap at the point, ``[..., B]``: 0 where no feasible direction descends.
            The entropy bonus of `mirror_descent` is not part of it. Carries no gradient.
    """

    point: Tensor
    energy: Tensor
    trace: Tensor
    gap: Tensor


def projected_gradient(
    energy_fn: EnergyFunction,
    start: Tensor,
    space: Space,
    *,
    steps: int = 20,
    rate: float = 0.1,
    accelerated: bool = False,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    unroll: bool = False,
) -> InferenceResult:
    """Descend the energy by ``y <- project(y - rate * grad E(y))``.

    Args:
        energy_fn: y to energies.
        start: the first point, ``[..., B, *event]``; it has to lie in the space.
        space: the space to stay in.
        steps: how many steps.
        rate: the step size.
        accelerated: use Nesterov's method (Tseng 2008, algorithm 1), which is faster for convex
            energies and need not descend at every step.
        restarts: how many starts; those after the first are random, and the best end is returned,
            example by example.
        generator: the source of the random starts.
        unroll: keep the graph, so that the result can be differentiated with respect to everything
            `energy_fn` and `start` depend on. Otherwise the result is detached.

    Returns:
        The last point, its energy, the trace and the gap.

    Raises:
        ValueError: if `steps`, `rate` or `restarts` is out of range, or `energy_fn` does not return
            one value per example.

    Example:
        >>> import torch
        >>> from structured.spaces import Labels
        >>> slope = torch.tensor([1.0, -1.0])
        >>> start = torch.full((1, 2), 0.5)
        >>> projected_gradient(lambda y: y @ slope, start, Labels(2), steps=2, rate=0.1).point
        tensor([[0.3000, 0.7000]])
    """

    def step(state: Tensor, gradient: Tensor, size: float) -> Tensor:
        return space.project(state - size * gradient)

    return _descend(
        energy_fn, start, space, lambda point: point, lambda point: point, step,
        steps=steps, rate=rate, accelerated=accelerated, restarts=restarts, generator=generator,
        unroll=unroll,
    )  # fmt: skip


def mirror_descent(
    energy_fn: EnergyFunction,
    start: Tensor,
    space: Space,
    *,
    steps: int = 20,
    rate: float = 1.0,
    entropy: float = 0.0,
    accelerated: bool = False,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    unroll: bool = False,
) -> InferenceResult:
    """Descend the energy by entropic mirror steps, which never leave the inside of the space.

    The steps of `Space.mirror_step`, taken in logits so that nothing saturates: each moves the
    logits by exactly ``-rate * grad E`` (before the division that `entropy` brings).

    Args:
        energy_fn: y to energies.
        start: the first point, ``[..., B, *event]``; entries at the boundary are moved inside by
            the precision of the type.
        space: the space.
        steps: how many steps.
        rate: the step size, in logits; SPEN's ``2 eta``.
        entropy: weight of an entropy bonus, SPEN's ``lambda_H``.
        accelerated: use Tseng's accelerated mirror descent (2008, algorithm 1).
        restarts: how many starts, as in `projected_gradient`.
        generator: the source of the random starts.
        unroll: keep the graph, as in `projected_gradient`.

    Returns:
        The last point, its energy, the trace and the gap.

    Raises:
        ValueError: as `projected_gradient`, and if `entropy` is negative.

    Example:
        >>> import torch
        >>> from structured.spaces import Labels
        >>> slope = torch.tensor([1.0, -1.0])
        >>> start = torch.full((1, 2), 0.5)
        >>> found = mirror_descent(lambda y: y @ slope, start, Labels(2), steps=3, rate=0.5)
        >>> torch.logit(found.point)
        tensor([[-1.5000,  1.5000]])
    """
    if entropy < 0:
        raise ValueError(f"entropy: found {entropy}, wanted a weight of at least 0")

    def step(state: Tensor, gradient: Tensor, size: float) -> Tensor:
        return mirror_dual_step(state, gradient, size, entropy)

    return _descend(
        energy_fn, start, space, space.dual, space.relax, step,
        steps=steps, rate=rate, accelerated=accelerated, restarts=restarts, generator=generator,
        unroll=unroll,
    )  # fmt: skip


def _descend(
    energy_fn: EnergyFunction,
    start: Tensor,
    space: Space,
    to_state: Callable[[Tensor], Tensor],
    to_point: Callable[[Tensor], Tensor],
    step: _Step,
    *,
    steps: int,
    rate: float,
    accelerated: bool,
    restarts: int,
    generator: torch.Generator | None,
    unroll: bool,
) -> InferenceResult:
    if steps < 0 or restarts < 1 or not rate > 0:
        raise ValueError(
            f"found steps={steps}, rate={rate}, restarts={restarts}; wanted steps >= 0, rate > 0 "
            "and restarts >= 1"
        )
    space.check("start", start)
    run = _accelerated if accelerated else _plain
    with nullcontext() if unroll else torch.no_grad():
        if restarts > 1:
            start = _with_random_starts(start, space, restarts, generator)
        point, trace = run(energy_fn, to_state(start), to_point, step, steps, rate)
        gradient, energy = _gradient(energy_fn, point)
        gap = space.gap(point, gradient).detach()
        trace = torch.stack([*trace, energy])
        if restarts > 1:
            # dim 0 of point, energy and gap and dim 1 of the trace are the restarts.
            best = energy.argmin(dim=0)
            point = _pick(point, best, space.event_dims)
            energy, gap = _pick(energy, best), _pick(gap, best)
            trace = torch.stack([_pick(one, best) for one in trace])
        return InferenceResult(point=point, energy=energy, trace=trace, gap=gap)


def _plain(
    energy_fn: EnergyFunction,
    state: Tensor,
    to_point: Callable[[Tensor], Tensor],
    step: _Step,
    steps: int,
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    trace = []
    for _ in range(steps):
        gradient, energy = _gradient(energy_fn, to_point(state))
        trace.append(energy)
        state = step(state, gradient, rate)
    return to_point(state), trace


def _accelerated(
    energy_fn: EnergyFunction,
    state: Tensor,
    to_point: Callable[[Tensor], Tensor],
    step: _Step,
    steps: int,
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    # Tseng 2008, algorithm 1: the gradient is taken between the average and the state, and the
    # state takes ever longer steps. The trace holds the energies of the averages.
    average = to_point(state)
    trace = []
    for k in range(steps):
        share = 2.0 / (k + 2.0)
        trace.append(energy_fn(average))
        gradient, _ = _gradient(energy_fn, torch.lerp(average, to_point(state), share))
        state = step(state, gradient, rate / share)
        average = torch.lerp(average, to_point(state), share)
    return average, trace


def _gradient(energy_fn: EnergyFunction, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return each example's gradient and energy, differentiable when gradients are enabled."""

    def checked(y: Tensor) -> Tensor:
        energy = energy_fn(y)
        if energy.shape != y.shape[: energy.ndim] or energy.ndim == 0 or energy.ndim >= y.ndim:
            raise ValueError(
                f"energy_fn: returned shape {tuple(energy.shape)} for points of shape "
                f"{tuple(y.shape)}, wanted one value per example; do not sum over the batch"
            )
        return energy

    if isinstance(energy_fn, SlopedEnergy):
        return energy_fn.slope(point), checked(point)

    def total(y: Tensor) -> tuple[Tensor, Tensor]:
        energy = checked(y)
        return energy.sum(), energy

    return torch.func.grad(total, has_aux=True)(point)


def _with_random_starts(
    start: Tensor, space: Space, restarts: int, generator: torch.Generator | None
) -> Tensor:
    noise = space.noise(
        (restarts - 1, *start.shape), generator=generator, dtype=start.dtype, device=start.device
    )
    return torch.cat([start[None], space.relax(noise)])


def _pick(value: Tensor, best: Tensor, event_dims: int = 0) -> Tensor:
    """Select along the first dimension by an index of the shape ``[..., B]``."""
    index = best.reshape(1, *best.shape, *(1,) * event_dims).expand(1, *value.shape[1:])
    return value.gather(0, index).squeeze(0)


@dataclass(frozen=True)
class BruteForceResult:
    """All label sets with their energies, and the best.

    Attributes:
        point: the label set of least energy, ``[B, n]``.
        energy: its energy, ``[B]``.
        points: all label sets, ``[2^n, n]``.
        energies: their energies, ``[2^n, B]``.
    """

    point: Tensor
    energy: Tensor
    points: Tensor
    energies: Tensor


def brute_force(
    energy_fn: EnergyFunction,
    n: int,
    *,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> BruteForceResult:
    """Evaluate the energy at all ``2^n`` label sets.

    Args:
        energy_fn: y to energies; called once with ``[2^n, batch, n]``.
        n: how many labels, at most 12.
        batch: how many examples `energy_fn` holds.
        dtype: of the points; None takes torch's default.
        device: of the points.

    Raises:
        ValueError: if `n` is not between 1 and 12.

    Example:
        >>> import torch
        >>> brute_force(lambda y: y @ torch.tensor([1.0, -1.0]), 2).point
        tensor([[0., 1.]])
    """
    if not 1 <= n <= 12:
        raise ValueError(f"n: found {n}, wanted 1 to 12 labels; more take too many evaluations")
    numbers = torch.arange(2**n, device=device)
    bits = (numbers[:, None] >> torch.arange(n, device=device)) & 1
    points = bits.to(torch.get_default_dtype() if dtype is None else dtype)
    with torch.no_grad():
        energies = energy_fn(points[:, None].expand(-1, batch, -1))
    best = energies.argmin(dim=0)
    return BruteForceResult(
        point=points[best],
        energy=energies.gather(0, best[None]).squeeze(0),
        points=points,
        energies=energies,
    )
