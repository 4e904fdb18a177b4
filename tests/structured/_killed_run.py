"""A program for test_resume: runs killed at every kind of place and resumed, to their end.

Torch is imported once; each attempt is a child process that goes on with the run and kills itself
(SIGKILL, as the system would) at the given place. The last attempt reaches the end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from structured.data import MultiLabelData, digit_strips
from structured.methods import ContrastiveDivergence, CrossEntropy, Implicit, Method
from structured.models import ModelConfig
from structured.training import RunResult, TrainConfig, train

IMPLICIT = Implicit(
    primary=ContrastiveDivergence(3), pretrain_epochs=1, implicit_after=1, warm_start=True
)
METHODS: dict[str, Method] = {"cross-entropy": CrossEntropy(), "implicit": IMPLICIT}
MODEL = ModelConfig(hidden=(6,), energy_hidden=(5,), global_size=3)
CONFIG = TrainConfig(
    epochs=4, batch_size=16, seed=3, device="cpu", checkpoint_seconds=0.0, log_steps=True
)
# Places: the n-th call of a function, from the start of the attempt.
PLACES = [("step", 1), ("step", 2), ("fsync", 4), ("replace", 5), ("write", 3), ("step", 1)]


def parts() -> tuple[MultiLabelData, MultiLabelData]:
    split = digit_strips(48, 24, 16).split("disjoint_images")
    return split["train"], split["validation"]


def run(method: str, folder: Path | None, *, resume: bool = True, **options: Any) -> RunResult:
    return train(
        METHODS[method],
        *parts(),
        CONFIG,
        model=MODEL,
        run_dir=folder,
        resume=resume and folder is not None,
        progress=False,
        **options,
    )


def _attempt(method: str, folder: Path, kill_at: tuple[str, int] | None) -> int:
    """Go on with the run in a child process; return how the child ended."""
    child = os.fork()
    if child == 0:
        try:
            if kill_at is not None:
                _arrange(METHODS[method], *kill_at)
            run(method, folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_at is not None and kill_at[0] == "time":
        time.sleep(kill_at[1] / 1000)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _arrange(method: Method, place: str, count: int) -> None:
    """Make this process kill itself in the given call: before its work, or for a write within."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                if place == "write":
                    Path(args[0]).with_name(f".{Path(args[0]).name}.part").write_bytes(args[1][:99])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    import structured.checkpoint
    import structured.methods

    if place in ("fsync", "replace"):
        setattr(os, place, counted(getattr(os, place)))
    elif place == "write":
        structured.checkpoint.write_atomically = counted(structured.checkpoint.write_atomically)
    elif place == "step":
        learner: Any = (
            structured.methods.CrossEntropyLearner
            if isinstance(method, CrossEntropy)
            else structured.methods.ImplicitLearner
        )
        learner.step = counted(learner.step)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for method in METHODS:
        run(method, None)  # what is done once in a process is done before it is forked
        for place in PLACES:
            assert _attempt(method, folder / method, place) == -signal.SIGKILL, place
        rng = random.Random(method)
        for _ in range(4):  # and wherever it happens to be; a fast machine may reach the end
            status = _attempt(method, folder / method, ("time", rng.randrange(10, 80)))
            assert status in (0, -signal.SIGKILL), status
        assert _attempt(method, folder / method, None) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
