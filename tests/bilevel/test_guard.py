"""Nothing is left behind: random state, buffers, parameters, gradients."""

from __future__ import annotations

import argparse
import functools
from collections import deque
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bilevel
from bilevel.products import HVP
from tests.bilevel.traces import (
    MODES,
    PHI,
    Network,
    Untouched,
    X,
    Y,
    parameters,
    penalised,
    predicted,
    total,
)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


class Trainer:
    def __init__(self, network: nn.Module) -> None:
        self.parts = {"networks": [network]}

    def __call__(self, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        return penalised(self.parts["networks"][0], phi, theta)

    def loss(self, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        return self(phi, theta)


class Slotted:
    __slots__ = ("network",)

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def loss(self, phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        return penalised(self.network, phi, theta)


GLOBAL: dict[str, Any] = {}


def _by_global(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return penalised(GLOBAL["network"], phi, theta)


def _inside_a_comprehension(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return torch.stack([penalised(GLOBAL["network"], phi, theta) for _ in range(1)]).sum()


def _through_a_helper(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return _by_global(phi, theta)


def _decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Tensor:
        return function(*args)

    return wrapper


def _as_default(network: nn.Module) -> Callable[..., Tensor]:
    def inner(phi: Tensor, theta: dict[str, Tensor], *, model: nn.Module = network) -> Tensor:
        return penalised(model, phi, theta)

    return inner


def _in_a_closure(network: nn.Module) -> Callable[..., Tensor]:
    return lambda phi, theta: penalised(network, phi, theta)


def _in_a_nested_function(network: nn.Module) -> Callable[..., Tensor]:
    def inner(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        def loss() -> Tensor:
            return penalised(network, phi, theta)

        return loss()

    return inner


def _held_by(holder: Any, network: Callable[[Any], nn.Module]) -> Callable[..., Tensor]:
    return lambda phi, theta: penalised(network(holder), phi, theta)


settings = ModuleType("settings")  # stands for a file of the user's


def _by_module(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return penalised(settings.network, phi, theta)


def _in_a_module(network: nn.Module) -> Callable[..., Tensor]:
    settings.network = network  # type: ignore[attr-defined]
    return _by_module


WAYS: dict[str, Callable[[Network], Callable[..., Tensor]]] = {
    "attribute of a module": _in_a_module,
    "namespace": lambda net: _held_by(SimpleNamespace(net=net), lambda holder: holder.net),
    "options": lambda net: _held_by(argparse.Namespace(net=net), lambda holder: holder.net),
    "queue": lambda net: _held_by(deque([net]), lambda holder: holder[0]),
    "set": lambda net: _held_by({net}, lambda holder: next(iter(holder))),
    "closure": _in_a_closure,
    "nested function": _in_a_nested_function,
    "global": lambda network: _by_global,
    "global in a comprehension": lambda network: _inside_a_comprehension,
    "helper function": lambda network: _through_a_helper,
    "partial": lambda network: functools.partial(penalised, network),
    "bound method of the module": lambda network: network.penalised,
    "bound method of an object": lambda network: Trainer(network).loss,
    "object with slots": lambda network: Slotted(network).loss,
    "callable object": Trainer,
    "keyword default": _as_default,
    "decorated": lambda network: _decorated(functools.partial(penalised, network)),
    "cached factory": lambda network: functools.lru_cache(lambda: _in_a_closure(network))(),
}


@pytest.fixture(params=WAYS)
def inner(request: pytest.FixtureRequest, network: Network) -> Iterator[Callable[..., Tensor]]:
    """The inner objective, which reaches the module in one way or another."""
    GLOBAL["network"] = network
    yield WAYS[request.param](network)
    GLOBAL.clear()


def hypergradient(inner: Callable[..., Tensor], network: nn.Module, **options: Any) -> Tensor:
    outer = functools.partial(predicted, network)
    options = {"damping": 20.0, "on_failure": "ignore", **options}
    return bilevel.implicit_grad(outer, inner, PHI, parameters(network), **options)


def test_implicit_grad_leaves_no_trace_however_a_module_is_reached(
    inner: Callable[..., Tensor], network: Network
) -> None:
    untouched = Untouched(network)
    assert bool(torch.isfinite(hypergradient(inner, network)).all())
    untouched.check()


@MODES
def test_implicit_grad_leaves_no_trace_however_products_are_made(
    network: Network, hvp: HVP
) -> None:
    untouched = Untouched(network, PHI)
    hypergradient(_in_a_closure(network), network, hvp=hvp)
    untouched.check()


def test_all_ways_to_reach_a_module_give_the_same_number(network: Network) -> None:
    GLOBAL["network"] = network
    found = []
    for way in WAYS.values():
        torch.manual_seed(1)  # the same dropout mask
        found.append(hypergradient(way(network), network))
    GLOBAL.clear()
    assert all(torch.equal(one, found[0]) for one in found)


def test_buffers_handed_to_functional_call_are_not_written(network: Network) -> None:
    buffers = {name: buffer for name, buffer in network.named_buffers() if name != "seen"}

    def inner(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        out = functional_call(network, {**theta, **buffers}, (X,))
        return ((out - Y) ** 2).mean() + sum(
            ((leaf - phi[0]) ** 2).sum() for leaf in theta.values()
        )

    untouched = Untouched(network)
    hypergradient(inner, network)
    untouched.check()
    assert all(buffers[name] is dict(network.named_buffers())[name] for name in buffers)


def test_a_module_among_the_arguments_is_left_alone(network: Network) -> None:
    untouched = Untouched(network)
    gradient = bilevel.implicit_grad(
        lambda phi, theta, model: predicted(model[0], phi, theta),
        lambda phi, theta, model: penalised(model["model"], phi, theta),
        PHI,
        parameters(network),
        outer_args=([network],),
        inner_args=({"model": network},),
        damping=20.0,
    )
    assert gradient.shape == PHI.shape
    untouched.check()


def test_a_module_that_gauss_newton_alone_reaches_is_left_alone(network: Network) -> None:
    other = Network()
    untouched = Untouched(other)
    curvature = bilevel.GaussNewton(
        lambda phi, theta: functional_call(other, theta, (X,)),
        lambda phi, out: ((out - Y) ** 2).mean(),
        lambda phi, theta: total(theta),
    )
    hypergradient(_in_a_closure(network), network, curvature=curvature)
    untouched.check()


def test_a_module_that_is_the_objective_is_left_alone() -> None:
    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False, dtype=torch.float64)

        def forward(self, phi: Tensor, theta: Tensor) -> Tensor:
            return (self.norm(X * theta) ** 3).mean() + ((theta - phi.sum()) ** 2).sum()

    inner, theta = Objective(), torch.ones(3, dtype=torch.float64)
    untouched = Untouched(inner, theta, PHI)
    bilevel.implicit_grad(lambda phi, theta: theta.sum(), inner, PHI, theta)
    untouched.check()


def test_a_graph_of_the_callers_own_survives_a_call(network: Network) -> None:
    network.eval()  # saves the running statistics for its backward
    loss = network(X).square().sum()
    network.train()
    hypergradient(_in_a_closure(network), network)
    loss.backward()
    assert network.first.weight.grad is not None


@pytest.mark.parametrize("attach", ["backward", "double backward", "func.grad"])
def test_argmin_and_its_derivatives_leave_no_trace(network: Network, attach: str) -> None:
    phi = PHI.clone().requires_grad_()
    theta, inner = parameters(network), _in_a_closure(network)
    untouched = Untouched(network, phi)
    solved = bilevel.argmin(inner, phi, theta, damping=20.0)
    if attach == "func.grad":
        torch.func.grad(lambda p: total(bilevel.argmin(inner, p, theta, damping=20.0)))(PHI)
    else:
        loss = total(solved)
        (first,) = torch.autograd.grad(loss, phi, create_graph=attach == "double backward")
        if attach == "double backward":
            torch.autograd.grad(first.sum(), phi)
    untouched.check()


def test_the_methods_of_a_problem_leave_no_trace(network: Network) -> None:
    problem = bilevel.ImplicitProblem(
        functools.partial(predicted, network), functools.partial(penalised, network), damping=20.0
    )
    theta = parameters(network)
    untouched = Untouched(network, PHI)
    problem.stationarity(PHI, theta)
    problem.operator(PHI, theta).to_dense()
    problem.refine(PHI, theta, tolerance=1e9)
    problem.refine(PHI, theta, tolerance=1.0, max_steps=50)
    bilevel.hessian(lambda t: penalised(network, PHI, t), theta).to_dense()
    untouched.check()


@MODES
def test_buffers_that_an_activation_checkpoint_writes_again_are_restored(
    network: Network, hvp: HVP
) -> None:
    def inner(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return functional_call(network, theta, (x,))

        out = checkpoint(run, X, use_reentrant=False) if hvp != "forward_over_reverse" else run(X)
        assert isinstance(out, Tensor)
        return ((out - Y) ** 2).mean() * phi[0].exp() + sum(
            ((leaf - phi[1]) ** 2).sum() for leaf in theta.values()
        )

    plain = hypergradient(_in_a_closure(network), network)
    untouched = Untouched(network)
    found = hypergradient(inner, network, hvp=hvp)
    untouched.check()
    assert torch.allclose(found, plain, rtol=1e-6)


class Failure(Exception):
    pass


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        raise Failure


def _failing(function: Callable[..., Tensor], after: int) -> Callable[..., Tensor]:
    calls = iter(range(after))

    def fails(*args: Any) -> Tensor:
        value = function(*args)
        if next(calls, None) is None:
            raise Failure
        return value

    return fails


@MODES
@pytest.mark.parametrize("where", ["outer", "inner", "a later product", "backward"])
def test_nothing_is_left_behind_when_a_function_raises(
    network: Network, hvp: HVP, where: str
) -> None:
    outer: Callable[..., Tensor] = functools.partial(predicted, network)
    inner = _in_a_closure(network)
    if where == "outer":
        outer = _failing(outer, 0)
    elif where == "backward":
        good = inner
        outer = lambda phi, theta: FailsInBackward.apply(good(phi, theta))  # noqa: E731
    else:
        anew = hvp in ("forward_over_reverse", "finite_difference")
        inner = _failing(inner, 3 if where == "a later product" and anew else 0)
    untouched = Untouched(network, PHI)
    with pytest.raises(Failure):
        bilevel.implicit_grad(outer, inner, PHI, parameters(network), hvp=hvp, damping=20.0)
    untouched.check()


@pytest.mark.parametrize("evaluations", [0, 1, 2])
def test_nothing_is_left_behind_when_argmin_or_its_backward_raises(
    network: Network, evaluations: int
) -> None:
    phi = PHI.clone().requires_grad_()
    inner = _failing(_in_a_closure(network), evaluations)
    untouched = Untouched(network, phi)

    def differentiate() -> None:
        solved = bilevel.argmin(inner, phi, parameters(network), damping=20.0)
        torch.autograd.grad(total(solved), phi)

    with pytest.raises(Failure):
        differentiate()
    untouched.check()


def test_an_interrupt_leaves_nothing_behind(network: Network) -> None:
    def inner(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        penalised(network, phi, theta)
        raise KeyboardInterrupt

    untouched = Untouched(network)
    with pytest.raises(KeyboardInterrupt):
        hypergradient(inner, network)
    untouched.check()
