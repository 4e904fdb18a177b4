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


@pytest.fixture
def uncompiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled path without a compiler: graphs run as they are."""
    # Imported here: the compiler's front takes seconds, which few tests should pay.
    from bilevel._compiling import dispatch, programs

    monkeypatch.setattr(programs, "compiled", lambda graph, inputs: graph)
    dispatch.forget()
    yield
    dispatch.forget()
