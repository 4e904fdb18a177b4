"""Ways to take phi's gradient besides the implicit one: at fixed theta, or through the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bilevel

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class NoAdjoint(bilevel.Solver):
    """Answers every system with zero: the hypergradient is its direct part alone.

    Example:
        >>> import torch
        >>> bilevel.solve(bilevel.Identity(2), torch.ones(2), NoAdjoint()).value
        tensor([0., 0.])
    """

    def compute(
        self, operator: bilevel.LinearOperator, rhs: Tensor, target: Tensor, state: Any
    ) -> bilevel.Outcome:
        outcome = bilevel.Outcome.after(torch.zeros_like(rhs), steps=0)
        return dataclasses.replace(outcome, residual=rhs)


def unroll(
    inner: Callable[..., Tensor],
    phi: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    path: Sequence[Sequence[Any]],
    rate: float,
) -> Tensors:
    """Take plain gradient steps on ``inner(phi, theta, *args)``, differentiable in phi and start.

    Args:
        inner: ``(phi, theta, *args) -> 0-d tensor``.
        phi: held fixed while stepping.
        start: the first theta.
        path: the arguments of each step.
        rate: the step size.

    Returns:
        The last theta.

    Example:
        >>> import torch
        >>> phi, theta = {"p": torch.tensor(1.0)}, {"t": torch.tensor(0.0)}
        >>> unroll(lambda p, t: (t["t"] - p["p"]) ** 2, phi, theta, [(), ()], 0.25)
        {'t': tensor(0.7500)}
    """
    theta = dict(start)
    for args in path:
        slope = torch.func.grad(inner, argnums=1)(phi, theta, *args)
        theta = {name: leaf - rate * slope[name] for name, leaf in theta.items()}
    return theta


@dataclass(frozen=True)
class UnrolledProblem:
    """A problem whose hypergradient goes through the last inner steps, for `BilevelOptimizer`.

    The derivative is ``d_phi outer + (d theta_T / d phi)' d_theta outer``, where theta_T is what T
    plain gradient steps of `rate` lead to from the given start, along the minibatches in use.
    Both parts of `outer` are taken at the theta it is handed: exact where that is theta_T (the
    inner optimizer is plain SGD of the same rate), and the derivative of the SGD steps in place of
    its own where the optimizer is another one, such as Adam.

    In `outer_args` the start and the arguments of the steps follow the arguments of `outer`.

    Args:
        direct: the objectives; its solver is `NoAdjoint`.
        rate: the step size.
    """

    direct: bilevel.ImplicitProblem
    rate: float

    @property
    def inner(self) -> Callable[..., Tensor]:
        """The inner objective."""
        return self.direct.inner

    def implicit_grad(
        self,
        phi: Tensors,
        theta: Tensors,
        *,
        outer_args: Sequence[Any] = (),
        inner_args: Sequence[Any] = (),
        initial: Any = None,
        state: Any = None,
        return_info: bool = True,
    ) -> Any:
        """The hypergradient; ``info.implicit`` is the part through the steps."""
        *args, start, path = outer_args
        gradient, info = self.direct.implicit_grad(
            phi, theta, outer_args=args, inner_args=inner_args, return_info=True
        )
        fixed = {name: leaf.detach() for name, leaf in phi.items()}
        reached = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        with torch.enable_grad():
            value = self.direct.outer(fixed, reached, *args)
        leaves = list(reached.values())
        slope = torch.autograd.grad(value, leaves, materialize_grads=True)
        pull = torch.func.vjp(
            lambda moving: unroll(self.direct.inner, moving, start, path, self.rate), fixed
        )[1]
        (through,) = pull(dict(zip(reached, slope, strict=True)))
        gradient = {name: leaf + through[name] for name, leaf in gradient.items()}
        if not return_info:
            return gradient
        return gradient, dataclasses.replace(info, implicit=through)
