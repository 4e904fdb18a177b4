"""A bilevel problem as functions of flat vectors, and which of its derivatives do not fit them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._autodiff import filled, fresh, gradient
from bilevel._point import Point
from bilevel._tree import Layout, natural_scales
from bilevel.report import HypergradientInfo

_FAR = 1 / 5
_LOOSE = {torch.float32: 0.1, torch.float64: 0.02}


@dataclass(frozen=True)
class Probe:
    """The objectives of a point anywhere, under its one state of the random generators."""

    point: Point

    def outer(self, phi: Tensor, theta: Tensor) -> float:
        """The outer objective."""
        leaves = self._leaves(phi, theta)
        with torch.enable_grad():
            return float(self.point.outer(*leaves).detach())

    def inner(self, phi: Tensor, theta: Tensor) -> float:
        """The inner objective."""
        leaves = self._leaves(phi, theta)
        with torch.enable_grad():
            return float(self.point.inner(*leaves).detach())

    def slope(self, phi: Tensor, theta: Tensor) -> Tensor:
        """The gradient of the inner objective in theta, flat ``[n]``."""
        fixed, moving = self._leaves(phi, theta)
        with torch.enable_grad():
            value = self.point.inner(fixed, moving)
        return self.point.theta_layout.join(filled(gradient(value, moving, "inner"), moving))

    def _leaves(self, phi: Tensor, theta: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        phi_leaves = self.point.phi_layout.split(phi.clone())
        return fresh(phi_leaves), fresh(self.point.theta_layout.split(theta.clone()))


def random_directions(scales: Tensor, count: int, seed: int) -> Tensor:
    """Vectors ``[count, n]`` of norm 1, normal with these scales, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scales * torch.randn(count, len(scales), generator=generator, dtype=torch.float64)
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


def suspects(point: Point, info: HypergradientInfo, move: Tensor) -> tuple[str, ...]:
    """The first and second derivatives at a point that differ grossly from differences.

    Args:
        point: where theta is the inner solution.
        info: of the hypergradient there.
        move: a small step of phi, flat ``[p]``.
    """
    probe, join = Probe(point), point.theta_layout.join
    phi = point.phi_layout.join([leaf.detach() for leaf in point.phi])
    theta = join([leaf.detach() for leaf in point.theta])
    # Further than a difference quotient would go: the inner gradient is compared one such step
    # aside, as at the solution it is zero, and wrong derivatives are wrong by much.
    eps = torch.finfo(theta.dtype).eps
    scales = natural_scales(point.theta_layout.split(theta.to("cpu", torch.float64)))
    direction = random_directions(scales, 1, 0)[0]
    aside = (eps**_FAR * torch.linalg.vector_norm(scales) * direction).to(theta)
    _, _, outer_slope = point.first_order()
    curved = point.products().rows(aside.unsqueeze(0)).squeeze(0)
    ahead, behind = probe.slope(phi, theta + aside), probe.slope(phi, theta - aside)
    adjoint = join(point.theta_layout.matching_leaves(info.adjoint, "adjoint", "theta"))
    direct, implicit = slopes(point.phi_layout, info, move)
    moved = probe.slope(phi + move, theta) - probe.slope(phi - move, theta)
    inner_rise = probe.inner(phi, theta + 2 * aside) - probe.inner(phi, theta)
    outer_rise = probe.outer(phi, theta + aside) - probe.outer(phi, theta - aside)
    direct_rise = probe.outer(phi + move, theta) - probe.outer(phi - move, theta)
    noise = 10 * eps * (abs(probe.inner(phi, theta)) + abs(info.outer_value))
    pairs = {
        "the gradient of inner in theta": (ahead @ aside, inner_rise / 2, noise),
        "the second derivative of inner in theta": (curved, (ahead - behind) / 2, 0.0),
        "the mixed derivative of inner": (implicit, -float(adjoint @ moved) / 2, 0.0),
        "the gradient of outer in theta": (outer_slope @ aside, outer_rise / 2, noise),
        "the gradient of outer in phi": (direct, direct_rise / 2, noise),
    }
    loose = _LOOSE[theta.dtype]
    return tuple(name for name, (a, b, floor) in pairs.items() if _differ(a, b, loose, floor))


def slopes(layout: Layout, info: HypergradientInfo, direction: Tensor) -> tuple[float, float]:
    """The direct and the implicit part of a hypergradient along a direction ``[p]`` of phi."""
    parts = []
    for tree in (info.direct, info.implicit):
        leaves = layout.matching_leaves(tree, "gradient", "phi")
        parts.append(float(layout.join(leaves).double() @ direction.double()))
    return parts[0], parts[1]


def _differ(found: Tensor | float, wanted: Tensor | float, loose: float, noise: float) -> bool:
    a, b = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in (found, wanted))
    size = max(float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b)))
    return not float(torch.linalg.vector_norm(a - b)) <= loose * size + noise
