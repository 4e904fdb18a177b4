"""What is seen of a training while it runs: TensorBoard and the progress bar."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from structured.errors import StructuredError
from structured.progress import ProgressBar
from tests.structured.runs import QUICK, run


def test_tensorboard_gets_the_figures_of_steps_and_epochs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(config=replace(QUICK, tensorboard=True), run_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"epoch/validation_f1_expected", "step/cross_entropy"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("epoch/cross_entropy")] == [3, 6, 9]
    assert len(events.Scalars("step/cross_entropy")) == 9


def test_tensorboard_is_optional_and_its_absence_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(StructuredError, match="pip install tensorboard"):
        run(config=replace(QUICK, tensorboard=True), run_dir=tmp_path)


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    assert capfd.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for show, expected in ((None, True), (False, False), (True, True)):
        stream = Terminal()
        with ProgressBar("cross-entropy", steps=2, show=show, stream=stream) as bar:
            bar.epoch("f1 0.5")
            bar.step(1, "joint", {"cross_entropy": 0.25, "unknown": 1.0})
            bar.step(1, "joint", {"cross_entropy": 0.125})
            assert bar.say("done") is expected
        text = stream.getvalue()
        assert ("cross-entropy: 100%" in text) is expected
        assert ("epoch 1 (joint), f1 0.5, CE 0.125" in text) is expected
        assert "unknown" not in text
