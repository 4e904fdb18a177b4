"""The state of the shared random generators: saved, restored, and kept from leaking out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state of the generators of Python, NumPy and torch, as tensors and plain values.

    Args:
        device: the accelerator whose generator is included; "cpu" adds none.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(3)
        >>> set_random_state(state)
        >>> bool((torch.rand(3) == first).all())
        True
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what others may draw from
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    device = torch.device(device)
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Set the generators to what `random_state` returned for the same device."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    device = torch.device(device)
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def own_randomness(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed all generators within the block; the caller's streams go on undisturbed after it.

    Example:
        >>> with own_randomness(0):
        ...     a = torch.rand(1)
        >>> with own_randomness(0):
        ...     bool((torch.rand(1) == a).all())
        True
    """
    before = random_state(device)
    seed_all(seed)
    try:
        yield
    finally:
        set_random_state(before, device)
