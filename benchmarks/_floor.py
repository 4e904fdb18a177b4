"""The hand-written floor: a kept graph, flat vectors, nothing checked, nothing reported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from _models import Leaves, Network
from torch import Tensor


def flat(leaves: Sequence[Tensor]) -> Tensor:
    """One vector."""
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def _begin(network: Network) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    phi = [leaf.detach().requires_grad_() for leaf in network.phi.values()]
    theta = [leaf.detach().requires_grad_() for leaf in network.theta.values()]
    trees = dict(zip(network.phi, phi, strict=True)), dict(zip(network.theta, theta, strict=True))
    slope = flat(torch.autograd.grad(network.outer(*trees, *network.validation), theta))
    found = torch.autograd.grad(network.inner(*trees, *network.batch), theta, create_graph=True)
    return phi, theta, slope, flat(found)


def _end(network: Network, graph: Tensor, phi: list[Tensor], adjoint: Tensor) -> Leaves:
    mixed = torch.autograd.grad(graph, phi, adjoint)
    return {key: -leaf for key, leaf in zip(network.phi, mixed, strict=True)}


def neumann(network: Network, products: int, step: float) -> Leaves:
    """By a Neumann series of ``products`` terms."""
    phi, theta, power, graph = _begin(network)
    total = torch.zeros_like(power)
    for _ in range(products):
        product = flat(torch.autograd.grad(graph, theta, power, retain_graph=True))
        total.add_(power, alpha=step)
        power.add_(product, alpha=-step)
    return _end(network, graph, phi, total)


def rebuilt(network: Network, products: int, step: float) -> Leaves:
    """The same with the gradient's graph built anew for every product: what a floor is not."""
    power = _begin(network)[2]
    total = torch.zeros_like(power)
    for _ in range(products):
        _, theta, _, graph = _begin(network)
        product = flat(torch.autograd.grad(graph, theta, power))
        total.add_(power, alpha=step)
        power.add_(product, alpha=-step)
    phi, _, _, graph = _begin(network)
    return _end(network, graph, phi, total)


def cg(network: Network, products: int) -> Leaves:
    """By conjugate gradients: one product less than asked for, and one for the true residual."""
    phi, theta, slope, graph = _begin(network)

    def product(vector: Tensor) -> Tensor:
        return flat(torch.autograd.grad(graph, theta, vector, retain_graph=True))

    solution, residual, direction = torch.zeros_like(slope), slope.clone(), slope.clone()
    square = torch.dot(residual, residual)
    for _ in range(products - 1):
        image = product(direction)
        length = square / torch.dot(direction, image)
        solution.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1.0)
        square, before = torch.dot(residual, residual), square
        direction.mul_(square / before).add_(residual)
    torch.linalg.vector_norm(slope - product(solution))
    return _end(network, graph, phi, solution)
