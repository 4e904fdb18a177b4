"""The loop over epochs and steps: what it does, what it remembers, and how it goes on.

What the loop itself remembers is one small `Progress`; a checkpoint is that, the learner, the place
in the data and the random generators. Nothing else decides the numbers, so a run that is killed and
resumed ends with the same ones, on the CPU to the last bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import NonFiniteError
from structured.averaging import WeightAverage
from structured.batches import Batches, Rows
from structured.checkpoint import check_same
from structured.errors import CheckpointError, TrainingError
from structured.evaluation import validation_figures
from structured.joint import JointExpectedF1
from structured.logs import StepLog, TensorBoardLog, write_rows
from structured.methods import Learner
from structured.metrics import example_f1
from structured.model_file import shapes_of, weights_of
from structured.models import evaluating
from structured.progress import ProgressBar
from structured.randomness import random_state, set_random_state
from structured.run_folder import CHECKPOINT, EVENTS, LOG, STEPS, TIMING, RunFolder
from structured.train_config import MONITORS, TrainConfig

_log = logging.getLogger("structured.training")

_ALL_EPOCHS = "all epochs done"
_ROWS = 512  # predicted at once
_JOINT_SAMPLES = 200

OnEpoch = Callable[[Mapping[str, Any]], None]


@dataclass
class Best:
    """The best epoch so far: its number, its value of the monitor, its phase, its weights."""

    epoch: int
    value: float | None
    phase: str
    weights: dict[str, dict[str, Tensor]]


@dataclass
class Progress:
    """What the loop itself remembers; plain values, but for the best weights.

    Attributes:
        steps: steps done.
        sums: of the present epoch: figure -> its sum over rows, and those rows.
        noticed: steps of the present epoch on which the learner had something to say.
        notice: what it said last.
        waited: epochs since the best one, or since the phase began.
        best: the best epoch so far.
        stopped: why training ended; empty while it goes on.
        history: a record per epoch.
        seconds: of each epoch.
        elapsed: seconds spent in the present epoch.
    """

    steps: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    noticed: int = 0
    notice: str = ""
    waited: int = 0
    best: Best | None = None
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0

    def add(self, figures: Mapping[str, float], rows: int, notice: str) -> None:
        """Count a step on so many rows."""
        self.steps += 1
        for name, value in figures.items():
            total = self.sums.setdefault(name, [0.0, 0])
            total[0] += value * rows
            total[1] += rows
        if notice:
            self.noticed += 1
            self.notice = notice

    def close_epoch(
        self, phase: str, steps: int, validation: Mapping[str, float]
    ) -> dict[str, Any]:
        """Turn what was counted since the last epoch into a record, and return it."""
        record: dict[str, Any] = {
            "epoch": len(self.history) + 1,
            "step": self.steps,
            "phase": phase,
            **{name: total / rows for name, (total, rows) in self.sums.items()},
            **validation,
        }
        if self.noticed:
            record |= {"noticed": self.noticed / steps, "notice": self.notice}
        self.sums, self.noticed, self.notice = {}, 0, ""
        self.history.append(record)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return vars(self) | {"best": None if self.best is None else vars(self.best)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Progress:
        """Return the progress that `state_dict` was called on."""
        best = state["best"]
        return cls(**{**state, "best": None if best is None else Best(**best)})


class Loop:
    """One run, from the first step or from a checkpoint to the end.

    Args:
        learner: what learns.
        batches: what from.
        validation: the inputs and the gold labels ``[n, L]`` to watch; None watches nothing, trains
            for all epochs and keeps the last weights.
        config: the settings.
        folder: where to save and log; None does neither.
        on_epoch: called with each epoch's record.

    Attributes:
        progress: what was done so far.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        validation: tuple[Rows, Tensor] | None,
        config: TrainConfig,
        folder: RunFolder | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.progress = Progress()
        self._learner, self._batches, self._config = learner, batches, config
        self._validation = validation
        self._average = WeightAverage(learner.models, config.average)
        self._folder, self._on_epoch = folder, on_epoch
        self._name = learner.method.name
        self._step_log: StepLog | None = None
        self._board: TensorBoardLog | None = None
        self._saved = self._clock = time.monotonic()

    def open(self, resume: bool) -> None:
        """Claim the folder, or go on from its checkpoint."""
        if self._folder is None:
            return
        if resume:
            state = self._folder.resume()
            if state is not None:
                self._load(state, self._folder / CHECKPOINT)
        else:
            self._folder.start()

    def run(self, show: bool | None = None) -> None:
        """Train until the epochs are done or patience is out.

        Args:
            show: whether there is a progress bar, see `ProgressBar`.
        """
        self._open_logs()
        total = self._config.epochs * self._batches.steps_per_epoch
        self._saved = self._clock = time.monotonic()
        try:
            with ProgressBar(self._name, total, self.progress.steps, show) as bar:
                while not self.progress.stopped:
                    self._epoch(bar)
                bar.say(f"{self._name}: {self.progress.stopped}")
        finally:
            if self._board is not None:
                self._board.close()

    def _epoch(self, bar: ProgressBar) -> None:
        phase = self._learner.phase
        for x, y in self._batches:
            figures = self._step(x, y)
            bar.step(len(self.progress.history) + 1, phase, figures)
            if time.monotonic() - self._saved >= self._config.checkpoint_seconds:
                self._save()
        self._learner.end_epoch()
        steps = self._batches.steps_per_epoch
        record = self.progress.close_epoch(phase, steps, self._validate())
        best = self._judge(record)
        self._take_time()
        self.progress.seconds.append(self.progress.elapsed)
        self.progress.elapsed = 0.0
        self._write_epochs()
        if self._board is not None:
            self._board.write("epoch", record, self.progress.steps)
        if self.progress.stopped or self._config.checkpoint_seconds == 0:
            self._save()
        self._tell(record, best, bar)

    def _step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        try:
            with self._precision():
                figures = self._learner.step(x, y)
        except NonFiniteError as error:
            raise TrainingError(f"{self._place()}: {error}") from error
        for name, value in figures.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{self._place()}: {name} is {value}; lower the learning rates (or the "
                    "solver's step), or clip with max_norm"
                )
        self._average.update()
        self.progress.add(figures, len(x), self._learner.notice)
        if self._step_log is not None:
            self._step_log.append(
                {
                    "step": self.progress.steps,
                    "epoch": len(self.progress.history) + 1,
                    "phase": self._learner.phase,
                    **figures,
                }
            )
        if self._board is not None:
            self._board.write("step", figures, self.progress.steps)
        return figures

    def _validate(self) -> dict[str, float]:
        method, models = self._learner.method, self._average.models
        if self._validation is None:
            weights = weights_of(models).values()
            if not all(bool(v.isfinite().all()) for part in weights for v in part.values()):
                raise TrainingError(
                    f"{self._place()}: a weight is not finite; lower the learning rates"
                )
            return {}
        inputs, gold = self._validation
        with evaluating(models):
            chunks = [method.predict(models, x).cpu() for x in inputs.chunks(_ROWS)]
        probabilities = torch.cat(chunks).float()
        if not bool(torch.isfinite(probabilities).all()):
            raise TrainingError(
                f"{self._place()}: the network's output on validation data is not finite; lower "
                "the learning rates"
            )
        figures = validation_figures(probabilities, gold)
        if self._config.monitor == "f1_joint":
            figures["validation_f1_joint"] = figures["validation_f1_expected"]
            if method.reweights:
                sets = JointExpectedF1(samples=_JOINT_SAMPLES).decode(models, inputs)
                figures["validation_f1_joint"] = example_f1(sets, gold)
        return figures

    def _judge(self, record: Mapping[str, Any]) -> Best:
        """Keep the weights if they are the best, and decide whether to go on."""
        progress, config = self.progress, self._config
        if len(progress.history) > 1 and progress.history[-2]["phase"] != record["phase"]:
            progress.waited = 0
            if config.last_phase_only:
                progress.best = None
        best = progress.best
        value = record.get(f"validation_{config.monitor}")
        if best is None or value is None or _better(value, best.value, config.monitor):
            weights = weights_of(self._average.models)
            best = progress.best = Best(record["epoch"], value, record["phase"], weights)
            progress.waited = 0
        else:
            progress.waited += 1
        progress.stopped = self._reason(record)
        return best

    def _reason(self, record: Mapping[str, Any]) -> str:
        """Why training ends after an epoch; empty if it goes on."""
        config, waited = self._config, self.progress.waited
        if record["epoch"] >= config.epochs:
            return _ALL_EPOCHS
        last_phase = record["epoch"] > self._learner.preparation
        if config.patience is not None and waited >= config.patience and last_phase:
            return f"no better validation_{config.monitor} for {waited} epochs"
        return ""

    def _tell(self, record: Mapping[str, Any], best: Best, bar: ProgressBar) -> None:
        monitor = self._config.monitor
        now = record.get(f"validation_{monitor}")
        if now is not None and best.value is not None:
            bar.epoch(f"{monitor} {now:.4f} (best {best.value:.4f})")
            _log.info("%s, epoch %d: %s %.4f", self._name, record["epoch"], monitor, now)
        first = [earlier for earlier in self.progress.history if "notice" in earlier][:1]
        if first == [record]:  # said once; every later one is in the log
            share = f"{self._name}, epoch {record['epoch']}, {record['noticed']:.0%} of the steps"
            text = f"{share}: {record['notice']}"
            if not bar.say(text):
                _log.warning("%s", text)
        if self._on_epoch is not None:
            self._on_epoch(record)

    def _save(self) -> None:
        if self._folder is None:
            return
        if self._step_log is not None:
            self._step_log.flush()
        if self._board is not None:
            self._board.flush()
        self._take_time()
        self._folder.save(
            {
                "shapes": shapes_of(weights_of(self._learner.models)),
                "learner": self._learner.state_dict(),
                "average": self._average.state_dict(),
                "batches": self._batches.state_dict(),
                "random": random_state(self._learner.device),
                "progress": self.progress.state_dict(),
            }
        )
        self._saved = time.monotonic()

    def _load(self, state: Mapping[str, Any], file: Path) -> None:
        check_same(file, state["shapes"], shapes_of(weights_of(self._learner.models)), "model")
        progress = Progress.from_state_dict(state["progress"])
        done = len(progress.history)
        if done > self._config.epochs:
            raise CheckpointError(
                f"{file}: has {done} epochs done already; epochs is {self._config.epochs}"
            )
        try:
            self._learner.load_state_dict(state["learner"])
            self._average.load_state_dict(state["average"])
            self._batches.load_state_dict(state["batches"])
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from error
        set_random_state(state["random"], self._learner.device)
        self.progress = progress
        if progress.stopped == _ALL_EPOCHS:  # there may be more of them now
            progress.stopped = self._reason(progress.history[-1])

    def _open_logs(self) -> None:
        """Open the logs at the place of the checkpoint; what a killed run wrote after it goes."""
        if self._folder is None:
            return
        self._write_epochs()
        if self._config.log_steps:
            self._step_log = StepLog(self._folder / STEPS, keep=self.progress.steps)
        if self._config.tensorboard and not self.progress.stopped:
            first = self.progress.steps + 1
            self._board = TensorBoardLog(self._folder / EVENTS, first_step=first)

    def _write_epochs(self) -> None:
        if self._folder is None:
            return
        write_rows(self._folder / LOG, self.progress.history)
        timed = enumerate(self.progress.seconds, start=1)
        write_rows(
            self._folder / TIMING, [{"epoch": epoch, "seconds": value} for epoch, value in timed]
        )

    def _take_time(self) -> None:
        now = time.monotonic()
        self.progress.elapsed += now - self._clock
        self._clock = now

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._config.mixed_precision:
            return nullcontext()
        return torch.autocast(self._learner.device.type, dtype=torch.bfloat16)

    def _place(self) -> str:
        epoch = len(self.progress.history) + 1
        return f"{self._name}, epoch {epoch}, step {self.progress.steps + 1}"


def _better(value: float, best: float | None, monitor: str) -> bool:
    if best is None:
        return True
    return value > best if MONITORS[monitor] else value < best
