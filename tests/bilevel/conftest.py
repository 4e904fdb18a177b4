"""Fixtures of the tests of bilevel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.bilevel.refusals import PHI, THETA


@pytest.fixture
def nothing_changes() -> Iterator[None]:
    """A call that is refused has changed nothing."""
    random, phi, theta = torch.get_rng_state(), PHI.clone(), THETA.clone()
    versions = PHI._version, THETA._version
    yield
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(PHI, phi)
    assert torch.equal(THETA, theta)
    assert (PHI._version, THETA._version) == versions
    assert PHI.grad is None
    assert THETA.grad is None
