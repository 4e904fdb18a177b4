"""What every test shares: one thread, failures that can be replayed, data that may be absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Small problems: more threads only add hand-over time, and an order of summation that varies.
torch.set_num_threads(1)

# No deadline: the first call of an operator warms up, which is no failure. print_blob: a failing
# property prints the `@reproduce_failure` line that replays it. In CI the examples are the same
# in every run; elsewhere each run looks for new ones.
settings.register_profile(
    "bilevel", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")), database=None
)
settings.load_profile("bilevel")

DATA_VARIABLE = "STRUCTURED_DATA"


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The folder of public data sets; only for tests marked `data`."""
    return Path(os.environ[DATA_VARIABLE])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `data` where no data is to be had."""
    if os.environ.get(DATA_VARIABLE):
        return
    without_data = [item for item in items if item.get_closest_marker("data") is not None]
    if without_data:
        config.hook.pytest_deselected(items=without_data)
        items[:] = [item for item in items if item.get_closest_marker("data") is None]


def pytest_report_header() -> str:
    """Say what the numbers below were computed with."""
    data = os.environ.get(DATA_VARIABLE) or "not set (tests marked `data` are left out)"
    return f"torch {torch.__version__}, {DATA_VARIABLE}: {data}"
