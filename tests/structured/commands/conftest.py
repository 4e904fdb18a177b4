"""Data for the commands, a finished run, and a folder for each test to run in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from structured.data import MultiLabelData, Split, write_npz
from tests.structured.commands.cli import IMPLICIT, LABELS, TINY, ok


@pytest.fixture(scope="session")
def data() -> MultiLabelData:
    """Sixty rows whose labels follow from their features, split into three parts."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    return MultiLabelData(
        X=X,
        Y=(X[:, :3] > 0).astype(int),
        label_names=LABELS,
        feature_names=("north", "east", "south", "west"),
        splits={"thirds": Split(np.arange(60) % 3, ("train", "validation", "test"))},
        name="coast",
    )


@pytest.fixture(scope="session")
def file(data: MultiLabelData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "coast.npz"
    write_npz(data, path)
    return path


@pytest.fixture(scope="session")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = ("train", "-m", IMPLICIT, "-d", file, *TINY, "-o", folder, "--plots")
    ok(*command, "-e", 15, "--patience", 100, "--batch-size", 4)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they run in; narrow terminals are the hard case for help."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Processes started meanwhile can be interrupted, even if these tests ignore it.

    A shell makes what it runs in the background ignore interrupts, and that is inherited.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
