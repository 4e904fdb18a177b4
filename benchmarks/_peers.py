"""Other libraries of PyTorch, each by the solvers it has, on the networks of ``_models.py``.

A maker gets a network, a number of Hessian products and the step of a Neumann series, and gives
back what computes the hypergradient. Products are what is made equal: a library that spends none
on a first or last residual takes one step more than the floor, which ``extra`` says, and is held
against the answer after as many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from _floor import flat
from _harness import Contender
from _models import Leaves, Network
from torch import Tensor, nn

Maker = Callable[[Network, int, float], Contender]


@dataclass(frozen=True)
class Peer:
    """One solver of one library.

    Attributes:
        name: what the tables call it.
        module: what is imported.
        package: what is installed.
        solver: the series or method, as the floor calls it.
        make: gives the contender.
        extra: steps beyond the floor's for as many products.
        unrolled: whether it differentiates the steps of training, which is another estimate.
    """

    name: str
    module: str
    package: str
    solver: str
    make: Maker
    extra: int = 0
    unrolled: bool = False


def _leaves(network: Network) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves of phi and of theta that require gradients."""
    return (
        [leaf.detach().requires_grad_() for leaf in network.phi.values()],
        [leaf.detach().requires_grad_() for leaf in network.theta.values()],
    )


def _trees(network: Network, phi: Any, theta: Any) -> tuple[Leaves, Leaves]:
    return dict(zip(network.phi, phi, strict=True)), dict(zip(network.theta, theta, strict=True))


class _InnerObjective(nn.Module):
    """The inner objective as a module of its own parameters, for libraries that ask for one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.phi = network.phi
        self.count = len(network.theta)
        for index, leaf in enumerate(network.theta.values()):
            self.register_parameter(f"leaf{index}", nn.Parameter(leaf.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        theta = [getattr(self, f"leaf{index}") for index in range(self.count)]
        trees = _trees(self.network, self.phi.values(), theta)
        return self.network.inner(*trees, x, self.network.batch[1])


class _Itself(nn.Module):
    """The loss of a prediction that is a loss already."""

    reduction = "sum"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction


def _torchopt(network: Network, solve: Any) -> Contender:
    """``torchopt.diff.implicit.custom_root`` with one of its linear solvers."""
    import torchopt  # pyright: ignore[reportMissingImports]

    def condition(theta: Any, phi: Any) -> Any:
        slope = torch.func.grad(network.inner, argnums=1)
        return tuple(slope(*_trees(network, phi, theta), *network.batch).values())

    root = torchopt.diff.implicit.custom_root(condition, argnums=1, solve=solve)(
        lambda theta, phi: theta
    )

    def hypergradient() -> Leaves:
        phi = tuple(_leaves(network)[0])
        theta = root(tuple(network.theta.values()), phi)
        value = network.outer(*_trees(network, phi, theta), *network.validation)
        return dict(zip(network.phi, torch.autograd.grad(value, phi), strict=True))

    return hypergradient


def torchopt_cg(network: Network, products: int, step: float) -> Contender:
    """One product for the first residual, the others for steps."""
    from torchopt import linear_solve  # pyright: ignore[reportMissingImports]

    return _torchopt(network, linear_solve.solve_cg(maxiter=products - 1, rtol=0.0, atol=0.0))


def torchopt_neumann(network: Network, products: int, step: float) -> Contender:
    """Its count leaves the first term out."""
    from torchopt import linear_solve  # pyright: ignore[reportMissingImports]

    return _torchopt(network, linear_solve.solve_inv(ns=True, maxiter=products, alpha=step))


def _betty(network: Network, rule: Callable[..., Any], **config: Any) -> Contender:
    """Betty's rules for hypergradients, without its training engine around them."""

    def hypergradient() -> Leaves:
        phi, theta = _leaves(network)
        trees = _trees(network, phi, theta)
        slope = torch.autograd.grad(network.outer(*trees, *network.validation), theta)
        lower = SimpleNamespace(
            paths=[],
            cur_batch=network.batch,
            config=SimpleNamespace(**config),
            training_step_exec=lambda batch: network.inner(*trees, *batch),
            trainable_parameters=lambda: theta,
            parameters=lambda: theta,
        )
        upper = SimpleNamespace(trainable_parameters=lambda: phi)
        return dict(zip(network.phi, rule(slope, lower, upper), strict=True))

    return hypergradient


def betty_cg(network: Network, products: int, step: float) -> Contender:
    """Every product makes a step."""
    from betty.hypergradient.cg import cg  # pyright: ignore[reportMissingImports]

    return _betty(network, cg, cg_iterations=products, cg_alpha=1.0)


def betty_neumann(network: Network, products: int, step: float) -> Contender:
    """Its count leaves the first term out."""
    from betty.hypergradient.neumann import neumann  # pyright: ignore[reportMissingImports]

    return _betty(network, neumann, neumann_iterations=products, neumann_alpha=step)


def _hypergrad(network: Network, rule: Callable[..., Any], products: int, lr: float) -> Contender:
    """``hypergrad.approx_hypergrad`` (forward over reverse, built anew for every product)."""

    def objective(function: Callable[..., Tensor], batch: Any) -> Callable[[Any, Any], Tensor]:
        return lambda theta, phi: function(*_trees(network, phi, theta), *batch)

    inner = objective(network.inner, network.batch)
    outer = objective(network.outer, network.validation)
    theta, phi = tuple(network.theta.values()), tuple(network.phi.values())
    return lambda: dict(zip(network.phi, rule(inner, outer, theta, phi, products, lr), strict=True))


def hypergrad_cg(network: Network, products: int, step: float) -> Contender:
    """Every product makes a step."""
    from hypergrad import approx_hypergrad  # pyright: ignore[reportMissingImports]

    return _hypergrad(network, approx_hypergrad.conjugate_gradient, products, 1.0)


def hypergrad_neumann(network: Network, products: int, step: float) -> Contender:
    """Its count leaves the first term out."""
    from hypergrad import approx_hypergrad  # pyright: ignore[reportMissingImports]

    return _hypergrad(network, approx_hypergrad.neumann, products, step)


def _curvlinops(network: Network, inverse: Callable[[Any], Any]) -> Contender:
    """An inverse of curvlinops' Hessian; the mixed product, which it has not, by autograd."""
    from curvlinops import HessianLinearOperator  # pyright: ignore[reportMissingImports]

    module = _InnerObjective(network)
    parameters = list(module.parameters())

    def hypergradient() -> Leaves:
        phi, theta = _leaves(network)
        trees = _trees(network, phi, theta)
        slope = torch.autograd.grad(network.outer(*trees, *network.validation), theta)
        hessian = HessianLinearOperator(
            module, _Itself(), parameters, [network.batch], check_deterministic=False, num_data=1
        )
        adjoint = inverse(hessian) @ flat(slope)
        graph = torch.autograd.grad(network.inner(*trees, *network.batch), theta, create_graph=True)
        mixed = torch.autograd.grad(flat(graph), phi, adjoint)
        return {key: -leaf for key, leaf in zip(network.phi, mixed, strict=True)}

    return hypergradient


def curvlinops_cg(network: Network, products: int, step: float) -> Contender:
    """One product for the first residual, the others for steps; never stopped before."""
    from curvlinops import CGInverseLinearOperator  # pyright: ignore[reportMissingImports]

    limits = {"max_iter": products - 1, "max_tridiag_iter": 0}
    never = {"tolerance": 0.0, "stop_updating_after": 0.0}
    return _curvlinops(network, lambda A: CGInverseLinearOperator(A, **limits, **never))


def curvlinops_neumann(network: Network, products: int, step: float) -> Contender:
    """Its count leaves the first term out."""
    from curvlinops import NeumannInverseLinearOperator  # pyright: ignore[reportMissingImports]

    return _curvlinops(
        network,
        lambda A: NeumannInverseLinearOperator(A, products, scale=step, check_nan=False),
    )


def higher_unrolled(network: Network, products: int, step: float) -> Contender:
    """As many steps of gradient descent from theta as there would be products, differentiated."""
    import higher  # pyright: ignore[reportMissingImports]

    module = _InnerObjective(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=step)

    def hypergradient() -> Leaves:
        phi, _ = _leaves(network)
        with higher.innerloop_ctx(module, optimizer) as (trained, differentiable):
            trained.phi = dict(zip(network.phi, phi, strict=True))
            for _ in range(products):
                differentiable.step(trained(network.batch[0]))
            trees = _trees(network, phi, trained.parameters())
            found = torch.autograd.grad(network.outer(*trees, *network.validation), phi)
        return dict(zip(network.phi, found, strict=True))

    return hypergradient


PEERS = (
    Peer("TorchOpt", "torchopt", "torchopt", "CG", torchopt_cg),
    Peer("TorchOpt", "torchopt", "torchopt", "Neumann", torchopt_neumann, extra=1),
    Peer("Betty", "betty", "betty-ml", "CG", betty_cg, extra=1),
    Peer("Betty", "betty", "betty-ml", "Neumann", betty_neumann, extra=1),
    Peer("hypergrad", "hypergrad", "hypergrad", "CG", hypergrad_cg, extra=1),
    Peer("hypergrad", "hypergrad", "hypergrad", "Neumann", hypergrad_neumann, extra=1),
    Peer("curvlinops", "curvlinops", "curvlinops-for-pytorch", "CG", curvlinops_cg),
    Peer(
        "curvlinops", "curvlinops", "curvlinops-for-pytorch", "Neumann", curvlinops_neumann, extra=1
    ),
    Peer("higher, unrolled", "higher", "higher", "Neumann", higher_unrolled, unrolled=True),
)


def installed() -> tuple[Peer, ...]:
    """Those that can be imported here."""
    return tuple(peer for peer in PEERS if find_spec(peer.module) is not None)


def versions(peers: tuple[Peer, ...]) -> dict[str, str]:
    """The version of every library that takes part."""
    return {peer.package: version(peer.package) for peer in peers}
