"""Whether a compiled program computes what the functions it was made from do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._autodiff import filled, fresh, uncompiled
from bilevel._compiling.graphs import Refused, refusal
from bilevel._compiling.programs import Call, First, Functions
from bilevel._guard import Guard
from bilevel._tree import Layout
from bilevel.products import Objective

_CHANGED = (
    "depends on something that cannot be seen from outside and has changed since it was compiled "
    "(a clock, a file, an iterator); pass it in outer_args or inner_args"
)


@dataclass(frozen=True)
class Audit:
    """The functions at a call's arguments, to compare a program to.

    Attributes:
        functions: the two objectives.
        call: the arguments.
        guard: of the functions.
        eps: relative rounding of the coarsest numbers they compute with.
    """

    functions: Functions
    call: Call
    guard: Guard
    eps: float

    @classmethod
    def of(cls, functions: Functions, call: Call) -> Audit:
        """To be made under the caller's autocast, which the functions then run under."""
        device = call.theta_layout.device
        eps = torch.finfo(call.theta_layout.dtype).eps
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            eps = max(eps, torch.finfo(torch.get_autocast_dtype(device.type)).eps)
        guard = Guard([functions.outer, functions.inner], call.arguments(), device)
        return cls(functions, call, guard, eps)

    def compare(self, first: First) -> None:
        """Compare values and first derivatives of both functions to those of a program.

        A change of a weight that hardly shows in a value does show in a gradient, which at an
        optimum is what is left of larger terms.

        Raises:
            Refused: they are not the same.
        """
        outer, inner = self.functions.objectives(self.call, self.guard)
        join = self.call.phi_layout.join
        try:
            with self.guard.replay():
                gaps = [
                    *self._gaps(outer, first.outer_value, (join(first.direct), first.slope)),
                    *self._gaps(inner, first.inner_value, (None, first.gradient)),
                ]
        except Exception as error:
            raise refusal("cannot be evaluated any more as it was compiled", error) from error
        if not bool(torch.stack(gaps).all()):
            raise Refused(_CHANGED)

    def _gaps(
        self, function: Objective, value: Tensor, gradients: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """For a value and its gradients in phi and theta: whether each is as it should be.

        Rounding errs by its share of the terms that are summed up. What these are is told by the
        change in value and gradient where all arguments change by such a share.
        """
        call = self.call
        phi, theta = fresh(call.phi), fresh(call.theta)
        leaves = [*phi, *theta]
        with torch.enable_grad(), uncompiled():
            wanted = function(phi, theta)
            slopes = torch.autograd.grad(wanted, leaves, create_graph=True, allow_unused=True)
            slopes = filled(slopes, leaves)
            curved = _along(slopes, leaves)
        slack = min(10 * self.eps**0.5, 0.1)
        floor = min(100 * self.eps, slack / 10)
        x = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        g, h = (
            torch.cat([leaf.detach().reshape(-1) for leaf in like]) for like in (slopes, curved)
        )
        terms = (g * x).abs().sum() + (h * x).abs().sum()
        near = [_near(value.reshape(1), wanted.detach().reshape(1), slack, floor * terms)]
        sizes = [call.phi_layout.size, call.theta_layout.size]
        for found, slope, bend in zip(gradients, g.split(sizes), h.split(sizes), strict=True):
            if found is not None:
                scale = floor * torch.linalg.vector_norm(bend)
                near.append(_near(found, slope, slack, scale))
        return near


def _along(slopes: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times the arguments themselves; zeros where there is no second derivative."""
    pairs = zip(slopes, leaves, strict=True)
    along = torch.stack([(slope * leaf.detach()).sum() for slope, leaf in pairs]).sum()
    none = [torch.zeros_like(leaf) for leaf in leaves]
    if not along.requires_grad:
        return none
    try:
        found = torch.autograd.grad(along, leaves, allow_unused=True)
    except RuntimeError:
        return none
    return [torch.nan_to_num(leaf) for leaf in filled(found, leaves)]


def _near(found: Tensor, wanted: Tensor, slack: float, floor: Tensor) -> Tensor:
    gap, *sizes = (torch.linalg.vector_norm(one) for one in (found - wanted, found, wanted))
    return gap <= slack * torch.maximum(*sizes) + floor


def check_agrees(layout: Layout, gradient: list[Tensor], wanted: Tensor) -> None:
    """Compare a program's gradient to that of the plain way.

    Raises:
        Refused: they are not the same.
    """
    found = layout.join(gradient)
    size = torch.linalg.vector_norm(wanted)
    gap = torch.linalg.vector_norm(found - wanted)
    # A check for another computation, not for rounding, which a long solve makes grow.
    if bool(gap > torch.finfo(wanted.dtype).eps ** 0.25 * size):
        raise Refused(f"comes out differently when compiled, by {float(gap / size):.0e}")
