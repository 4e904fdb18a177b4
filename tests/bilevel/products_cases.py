"""A small network and the ways to multiply by its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.utils._pytree import tree_leaves

from bilevel.products import HVP
from tests.bilevel.problems import normal

F64 = torch.float64
EXACT: tuple[HVP, ...] = ("auto", "reverse", "forward_over_reverse")
MODES: tuple[HVP, ...] = (*EXACT, "finite_difference")
every_mode = pytest.mark.parametrize("hvp", MODES)

X, Y = normal(8, 3, seed=1), normal(8, 2, seed=2)
PHI = {"log_penalty": torch.tensor(-0.5, dtype=F64), "targets": [Y, torch.zeros(0, dtype=F64)]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


NETWORK = network()
THETA = {name: leaf.detach() for name, leaf in NETWORK.named_parameters()}


def inner(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    error = functional_call(NETWORK, theta, (X,)) - phi["targets"][0]
    return (error**2).mean() + phi["log_penalty"].exp() * flat(theta).square().sum()


def outer(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return functional_call(NETWORK, theta, (X,)).sin().mean() + phi["log_penalty"] ** 2


def flat(tree: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def assert_near(found: Any, wanted: Any, hvp: HVP = "reverse", rtol: float = 1e-10) -> None:
    differenced = hvp == "finite_difference"
    torch.testing.assert_close(
        found, wanted, rtol=1e-6 if differenced else rtol, atol=1e-7 if differenced else 1e-12
    )


def dense(objective: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    return torch.as_tensor(hessian(objective)(theta))
