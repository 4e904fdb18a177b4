"""Training: the best weights are kept, and a killed run ends as if nothing had happened."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structured._loop
import structured.checkpoint
from structured.data import MultiLabelData
from structured.errors import CheckpointError, DataError, StructuredError
from structured.evaluation import predict_probabilities, validation_figures
from structured.methods import CrossEntropy, CrossEntropyLearner, Implicit, Learner, Method
from structured.model_file import load_models
from structured.models import ModelConfig, Models, build_models
from structured.progress import ProgressBar
from structured.train_config import TrainConfig
from structured.training import RunResult, TrainingError, train

HERE = Path(__file__).parent


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_killed_run", HERE / "_killed_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROGRAM = _program()
TRAINING, VALIDATION = PROGRAM.parts()
MODEL, CONFIG, METHODS = PROGRAM.MODEL, PROGRAM.CONFIG, PROGRAM.METHODS
STEPS = 3  # in an epoch
QUICK = replace(CONFIG, epochs=3, checkpoint_seconds=1e9, log_steps=False)


def _train(method: Method | None = None, config: TrainConfig = QUICK, **options: Any) -> RunResult:
    return train(
        method or CrossEntropy(), TRAINING, VALIDATION, config, **({"model": MODEL} | options)
    )


def _outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for what it says about time and place."""
    files = {name: (folder / name).read_bytes() for name in ("log.csv", "model.safetensors")}
    if (folder / "steps.csv").exists():
        files["steps.csv"] = (folder / "steps.csv").read_bytes()
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"], result["folder"]
    return files | {"result": result}


class _Killed(BaseException):
    """Stands for a kill, where a process of its own would be too slow."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}

    def outcome(method: str) -> dict[str, Any]:
        if method not in known:
            folder = tmp_path_factory.mktemp("whole")
            PROGRAM.run(method, folder, resume=False)
            known[method] = _outcome(folder)
        return known[method]

    return outcome


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that another process killed and resumed; one folder per method."""
    folder = tmp_path_factory.mktemp("killed")
    found = subprocess.run(
        [sys.executable, str(HERE / "_killed_run.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_every_kind_of_place_ends_with_the_same_bits(
    method: str, killed: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    assert _outcome(killed / method) == uninterrupted(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seconds", [0.0, 4.5, 1e9])  # by the clock below: each step, some, never
@pytest.mark.parametrize("stop", [1, STEPS, STEPS + 1, 2 * STEPS + 2])
def test_whatever_the_last_checkpoint_was_a_resumed_run_ends_with_the_same_bits(
    method: str,
    seconds: float,
    stop: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(structured._loop.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(PROGRAM, "CONFIG", replace(CONFIG, checkpoint_seconds=seconds))
    learner = type(METHODS[method].learner(_models(), steps_per_epoch=STEPS))
    original, calls = learner.step, 0

    def step(self: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise _Killed
        return original(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "step", step)
        with pytest.raises(_Killed):
            PROGRAM.run(method, tmp_path, resume=False)
    torch.rand(7)  # the streams that this process happens to be at do not matter
    PROGRAM.run(method, tmp_path)
    assert _outcome(tmp_path) == uninterrupted(method)


def _models() -> Models:
    return build_models(TRAINING.n_features, TRAINING.n_labels, MODEL, seed=0)


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_the_attempt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
) -> None:
    write, calls = structured.checkpoint.write_atomically, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(structured.checkpoint, "write_atomically", full)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: could not be written"):
            PROGRAM.run("implicit", tmp_path)
    PROGRAM.run("implicit", tmp_path)
    assert _outcome(tmp_path) == uninterrupted("implicit")


def test_a_finished_run_gives_its_result_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _train(run_dir=tmp_path)
    monkeypatch.setattr(CrossEntropyLearner, "step", None)
    again = _train(run_dir=tmp_path, resume=True)
    assert again.history == first.history
    assert again.seconds == first.seconds
    assert torch.equal(again.predict(VALIDATION.X), first.predict(VALIDATION.X))


def test_more_epochs_later_are_the_longer_run(tmp_path: Path) -> None:
    _train(run_dir=tmp_path / "a", config=replace(QUICK, epochs=2))
    _train(run_dir=tmp_path / "a", config=replace(QUICK, epochs=4), resume=True)
    _train(run_dir=tmp_path / "b", config=replace(QUICK, epochs=4))
    assert _outcome(tmp_path / "a") == _outcome(tmp_path / "b")
    with pytest.raises(CheckpointError, match="has 4 epochs done already; epochs is 3"):
        _train(run_dir=tmp_path / "a", config=replace(QUICK, epochs=3), resume=True)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    runs = [_train(config=replace(QUICK, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


def test_training_leaves_the_callers_random_streams_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    _train(METHODS["implicit"])
    assert torch.equal(torch.rand(3), wanted)


def test_cross_entropy_learns_the_digits() -> None:
    config = replace(QUICK, epochs=30, patience=None)
    result = _train(CrossEntropy(lr=0.01), config, model=ModelConfig(hidden=(64,), dropout=0.0))
    assert result.history[-1]["cross_entropy"] < 0.5 * result.history[0]["cross_entropy"]


def test_the_models_returned_and_written_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    config = replace(QUICK, epochs=8, monitor="cross_entropy")
    result = _train(CrossEntropy(lr=0.3), config, run_dir=tmp_path)
    values = [record["validation_cross_entropy"] for record in result.history]
    assert result.best_epoch == 1 + int(np.argmin(values)) < 8
    gold = torch.from_numpy(VALIDATION.Y.toarray()).float()
    for models in (result.models, load_models(tmp_path / "model.safetensors")[0]):
        found = validation_figures(predict_probabilities(result.method, models, VALIDATION.X), gold)
        assert found["validation_cross_entropy"] == min(values) == result.best_value


# A method whose validation figures are known beforehand.


@dataclass(frozen=True)
class Scripted(Method):
    """Its network is right on a given share of the validation labels in each epoch."""

    values: tuple[float, ...]
    phases: tuple[str, ...]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "scripted"

    def learner(self, models: Models, **options: Any) -> ScriptedLearner:
        return ScriptedLearner(self, models, seed=0, device="cpu")


class ScriptedLearner(Learner):
    mixed_precision: ClassVar[bool] = True
    method: Scripted

    @property
    def phase(self) -> str:
        return self.method.phases[min(self.epoch, len(self.method.phases) - 1)]

    @property
    def notice(self) -> str:
        return self.method.notices[self.epoch] if self.method.notices else ""

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        *others, bias = self.models.network.parameters()
        for leaf in others:
            nn.init.zeros_(leaf)
        nn.init.constant_(bias, _logit(self.method.values[self.epoch]))
        return {"rows": float(len(x)), "epoch_so_far": float(self.epoch)}

    def _progress(self) -> dict[str, Any]:
        return {}

    def _load_progress(self, state: dict[str, Any]) -> None:
        assert state == {}


def _logit(p: float) -> float:
    return math.inf if p == 1.0 else math.log(p / (1.0 - p))


ONE_LABEL = MultiLabelData(X=np.ones((5, 2)), Y=np.ones((5, 1)))


def _scripted(
    values: Sequence[float], phases: Sequence[str] = ("joint",), **options: Any
) -> RunResult:
    """With one label, always present, the cross-entropy is minus the logarithm of the value."""
    config = TrainConfig(
        epochs=len(values),
        batch_size=2,
        patience=2,
        monitor="cross_entropy",
        average=0.0,
        device="cpu",
    )
    config = replace(config, **options)
    method = Scripted(tuple(values), tuple(phases))
    return train(method, ONE_LABEL, ONE_LABEL, config, model=MODEL)


def test_training_stops_when_patience_is_out() -> None:
    result = _scripted([0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    assert (result.best_epoch, len(result.history)) == (2, 4)
    assert result.stopped == "no better validation_cross_entropy for 2 epochs"
    assert len(_scripted([0.5, 0.4, 0.3, 0.2, 0.1], patience=None).history) == 5


def test_patience_begins_anew_with_a_phase_and_never_ends_pretraining() -> None:
    preparing = _scripted([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], ["pretraining"] * 4 + ["implicit"])
    assert len(preparing.history) == 6
    assert (preparing.best_epoch, preparing.best_phase) == (1, "pretraining")
    between = _scripted([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], ["direct", "direct", "implicit"])
    assert len(between.history) == 4


def test_the_best_epoch_is_of_all_phases_or_of_the_last_one_alone() -> None:
    phases = ["pretraining", "pretraining", "joint", "joint"]
    assert _scripted([0.5, 0.9, 0.6, 0.7], phases).best_epoch == 2
    only = _scripted([0.5, 0.9, 0.6, 0.7], phases, last_phase_only=True)
    assert (only.best_epoch, only.best_phase) == (4, "joint")


def test_a_record_holds_the_means_over_rows_of_the_figures_of_its_steps() -> None:
    record = _scripted([0.5, 0.5]).history[1]
    assert record["rows"] == (2 * 2 + 2 * 2 + 1 * 1) / 5  # batches of 2, 2 and 1 rows
    assert (record["epoch"], record["step"], record["phase"]) == (2, 6, "joint")
    assert record["epoch_so_far"] == 1.0


def test_what_a_learner_has_to_say_is_recorded_each_time_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    method = Scripted((0.5, 0.5, 0.5), ("joint",), ("", "Beware.", "Beware."))
    config = TrainConfig(epochs=3, device="cpu")
    result = train(method, ONE_LABEL, ONE_LABEL, config, model=MODEL, progress=False)
    assert [record.get("notice") for record in result.history] == [None, "Beware.", "Beware."]
    assert result.history[1]["noticed"] == 1.0
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "scripted, epoch 2, 100% of the steps: Beware."
    ]


def test_records_go_to_a_callback() -> None:
    seen: list[int] = []
    _train(on_epoch=lambda record: seen.append(record["epoch"]))
    assert seen == [1, 2, 3]


def test_a_folder_with_a_run_is_refused_and_not_a_byte_of_it_changes(tmp_path: Path) -> None:
    _train(run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"holds a run already .* resume"):
        _train(run_dir=tmp_path)
    wider = replace(MODEL, hidden=(7,))
    fewer = MultiLabelData(TRAINING.X[1:], TRAINING.Y[1:], TRAINING.label_names)
    batches = replace(QUICK, batch_size=8)
    for method, training, config, model, message in (
        (CrossEntropy(lr=0.5), TRAINING, QUICK, MODEL, r"method: lr is 0\.001, now 0\.5"),
        (CrossEntropy(), TRAINING, QUICK, wider, r"model: hidden is \[6\], now \[7\]"),
        (CrossEntropy(), TRAINING, QUICK, _models(), r"model: hidden is \[6\], now absent"),
        (CrossEntropy(), fewer, QUICK, MODEL, "data set: training.title .*rows is 48, now 47"),
        (CrossEntropy(), TRAINING, batches, MODEL, "training configuration: batch_size is 16"),
    ):
        with pytest.raises(CheckpointError, match=f"was saved with another {message}"):
            train(method, training, VALIDATION, config, model=model, run_dir=tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_models_with_other_shapes_is_refused(tmp_path: Path) -> None:
    _train(run_dir=tmp_path, model=_models())
    other = build_models(TRAINING.n_features, TRAINING.n_labels, replace(MODEL, hidden=(9,)), 0)
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint\.safetensors: .*another model: network\.hidden\.0\.weight is \[6, 192\]",
    ):
        _train(run_dir=tmp_path, model=other, resume=True)


def test_a_cut_checkpoint_is_named_on_resuming(tmp_path: Path) -> None:
    _train(run_dir=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is cut short or damaged"):
        _train(run_dir=tmp_path, resume=True)


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="resume: found True without run_dir"):
        _train(resume=True)


def test_parts_of_different_data_sets_are_refused() -> None:
    with pytest.raises(DataError, match="validation: found 2 features and 1 labels, wanted"):
        train(CrossEntropy(), TRAINING, ONE_LABEL)


@pytest.mark.parametrize("method", METHODS)
def test_a_figure_that_is_not_finite_stops_the_run_and_is_named(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = type(METHODS[method].learner(_models(), steps_per_epoch=STEPS))
    original = learner.step

    def step(self: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
        figures = original(self, x, y)
        return figures | {"cross_entropy": float("nan")} if self.epoch == 1 else figures

    monkeypatch.setattr(learner, "step", step)
    with pytest.raises(TrainingError, match=r", epoch 2, step 4: cross_entropy is nan; lower"):
        _train(METHODS[method])


def test_a_network_that_is_no_longer_finite_stops_the_run() -> None:
    with pytest.raises(TrainingError, match="output on validation data is not finite"):
        _scripted([0.5, float("nan")])


def test_an_inner_problem_that_diverges_is_a_training_error() -> None:
    # Adam's second moment overflows long before a step of 1e300 could be taken.
    method = Implicit(
        pretrain_epochs=0, inner_optimizer="sgd", inner_lr=1e30, energy_start="random"
    )
    with pytest.raises(TrainingError, match=r"implicit-margin, epoch 1, step \d"):
        _train(method)


def test_mixed_precision_is_refused_with_a_reason_where_a_method_differentiates_twice() -> None:
    config = replace(QUICK, mixed_precision=True)
    with pytest.raises(ValueError, match=r"implicit-contr.* differentiates twice; in bfloat16"):
        _train(METHODS["implicit"], config)


def test_mixed_precision_trains_cross_entropy_nearly_as_full_precision_does() -> None:
    full, mixed = (
        _train(config=replace(QUICK, epochs=5, mixed_precision=flag)).history
        for flag in (False, True)
    )
    assert full[-1]["cross_entropy"] != mixed[-1]["cross_entropy"]
    assert mixed[-1]["cross_entropy"] == pytest.approx(full[-1]["cross_entropy"], rel=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: found 0, wanted an integer of at least 1"),
        ({"batch_size": 1.5}, r"batch_size: found 1\.5"),
        ({"seed": -1}, "seed: found -1"),
        ({"patience": 0}, "patience: found 0"),
        ({"monitor": "f2"}, "monitor: found 'f2', wanted one of f1_expected"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds: found -1"),
        ({"device": "abacus"}, "device: found 'abacus', wanted"),
        ({"epoch": 3}, "found unknown 'epoch', wanted epochs, batch_size"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"device: found '{missing}', but this machine has"):
        _train(config=replace(QUICK, device=missing), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_takes_what_there_is() -> None:
    wanted = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert TrainConfig().torch_device() == wanted


def test_settings_and_results_are_plain_json(tmp_path: Path) -> None:
    result = _train(METHODS["implicit"], run_dir=tmp_path)
    assert json.loads(json.dumps(result.to_dict())) == json.loads(
        (tmp_path / "result.json").read_text()
    )
    described = json.loads((tmp_path / "run.json").read_text())
    assert TrainConfig.from_dict(described["training"]) == QUICK
    assert described["method"]["primary"]["samples"] == 3


def test_tensorboard_gets_the_figures_of_steps_and_epochs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(config=replace(QUICK, tensorboard=True), run_dir=tmp_path)
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
        _train(config=replace(QUICK, tensorboard=True), run_dir=tmp_path)


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _train()
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
