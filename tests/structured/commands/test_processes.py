"""Commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.structured.commands.cli import REPOSITORY, TINY, ok, process, rows


def test_real_processes_keep_mistakes_and_results_apart_in_exit_codes_and_streams(
    file: Path, trained: Path
) -> None:
    here = Path.cwd()
    bad = process("train", "--data", "nowhere.npz", cwd=here)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "structured: nowhere.npz: there is no such file; check the path\n"
    good = process("predict", trained, file, cwd=here)
    assert (good.returncode, good.stderr) == (0, "")
    assert len(good.stdout.splitlines()) == 60


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300  # the machine may be busy
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_training_says_how_to_go_on_and_does(file: Path, tmp_path: Path) -> None:
    settings = ("-m", "cross_entropy", "-d", str(file), *TINY, "--batch-size", "4")
    common = ("train", *settings, "--patience", "100000", "--checkpoint-seconds", "0")
    log = tmp_path / "run/log.csv"
    running = subprocess.Popen(
        [sys.executable, "-m", "structured", *common, "-e", "100000", "-o", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: log.exists() and len(rows(log)) >= 3, running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        "structured: interrupted; the same command with --resume goes on with run"
    )
    epochs = str(len(rows(log)) + 2)
    ok(*common, "-e", epochs, "-o", "run", "--resume")
    ok(*common, "-e", epochs, "-o", "whole")
    assert log.read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    model = (tmp_path / "run/model.safetensors").read_bytes()
    assert model == (tmp_path / "whole/model.safetensors").read_bytes()
