"""The folder of a run belongs to one run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from structured.errors import CheckpointError
from structured.run_folder import LOCK, STEPS, RunFolder, read_description
from tests.structured.runs import QUICK, run

DESCRIPTION = {"method": {"lr": 0.1}, "model": {}, "data": {"rows": 3}, "training": {"epochs": 2}}


def test_a_folder_that_holds_a_run_is_refused_without_a_change(tmp_path: Path) -> None:
    RunFolder(tmp_path, DESCRIPTION).start()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds a run already \(run\.json\); resume it"):
        RunFolder(tmp_path, {"method": {"lr": 0.2}}).start()
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_with_files_of_yours_is_used_but_none_of_them_is_overwritten(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path / "a", DESCRIPTION).start()
    RunFolder(tmp_path, DESCRIPTION).start()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.csv").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\(log\.csv\)"):
        RunFolder(tmp_path / "b", DESCRIPTION).resume()


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("method", "method"),
        ("model", "model"),
        ("data", "data set"),
        ("training", "training configuration"),
    ],
)
def test_only_the_same_run_is_resumed(tmp_path: Path, part: str, what: str) -> None:
    folder = RunFolder(tmp_path, DESCRIPTION)
    folder.start()
    folder.save({"steps": 7})
    assert RunFolder(tmp_path, DESCRIPTION).resume() == {"steps": 7}
    other = RunFolder(tmp_path, {**DESCRIPTION, part: {"x": 1}})
    with pytest.raises(CheckpointError, match=f"run.json: was saved with another {what}: "):
        other.resume()
    # The checkpoint says so itself, should it have been copied from elsewhere.
    (tmp_path / "run.json").write_text(json.dumps({**DESCRIPTION, part: {"x": 1}}))
    with pytest.raises(CheckpointError, match=f"checkpoint.safetensors: was .* another {what}: "):
        other.resume()


def test_more_epochs_are_the_same_run(tmp_path: Path) -> None:
    RunFolder(tmp_path, DESCRIPTION).start()
    assert RunFolder(tmp_path, {**DESCRIPTION, "training": {"epochs": 9}}).resume() is None


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json: cannot be read"):
        read_description(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json: is .*damaged"):
            read_description(tmp_path)


def test_every_file_of_a_run_is_renamed_into_its_place_but_the_one_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: dict[str, bytes] = {}
    replace_file = os.replace

    def note(source: Path, target: Path) -> None:
        replace_file(source, target)
        renamed[target.name] = target.read_bytes()

    monkeypatch.setattr("structured._atomic.os.replace", note)
    run(config=replace(QUICK, log_steps=True, checkpoint_seconds=0.0), run_dir=tmp_path)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.pop(LOCK) == b""
    grown = left.pop(STEPS)
    first = renamed.pop(STEPS)
    assert grown.startswith(first)
    assert len(grown) > len(first)
    assert left == renamed
