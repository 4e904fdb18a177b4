"""Good input to spoil, and what a refusal looks like."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel

F64 = torch.float64
NAN, INF = float("nan"), float("inf")
PHI = torch.tensor([0.5, -1.0], dtype=F64)
THETA = torch.tensor([1.0, 2.0], dtype=F64)
META = torch.zeros(2, dtype=F64, device="meta")


def outer(phi: Any, theta: Any, *args: Any) -> Tensor:
    return (theta**2).sum()


def inner(phi: Any, theta: Any, *args: Any) -> Tensor:
    return ((theta - phi) ** 2).sum()


def never(*args: Any) -> Tensor:
    pytest.fail("a user function was called before its arguments were checked")


def raises(message: str, kind: type[Exception] = bilevel.InputError) -> Any:
    """An error that says this, word for word, is wanted of the block."""
    return pytest.raises(kind, match=re.escape(message))
