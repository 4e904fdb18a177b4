"""The settings of training: what is refused, and that they are plain values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from structured.train_config import TrainConfig
from tests.structured.runs import METHODS, QUICK, run


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
        run(config=replace(QUICK, device=missing), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_device_auto_is_an_accelerator_where_there_is_one() -> None:
    wanted = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert TrainConfig().torch_device() == wanted


def test_settings_and_results_are_plain_json(tmp_path: Path) -> None:
    result = run(METHODS["implicit"], run_dir=tmp_path)
    assert json.loads(json.dumps(result.to_dict())) == json.loads(
        (tmp_path / "result.json").read_text()
    )
    described = json.loads((tmp_path / "run.json").read_text())
    assert TrainConfig.from_dict(described["training"]) == QUICK
    assert described["method"]["primary"]["samples"] == 3
