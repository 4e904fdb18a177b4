"""Checkpoints: what goes in comes out, damaged files are named, and nothing is ever lost."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import structured._atomic
from structured.checkpoint import VERSION, check_same, load_state, save_state
from structured.errors import CheckpointError
from structured.randomness import own_randomness, random_state, set_random_state

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def _tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    seed = draw(st.integers(0, 99))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50
    return values.to(draw(st.sampled_from(DTYPES)))


KEYS = st.text(max_size=6) | st.integers(-3, 3) | st.sampled_from(["$", "0", "a/b", "~", "~1", "é"])

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _tensors()

STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def _same(a: Any, b: Any) -> bool:
    """Whether two states are equal in every type and bit, orders of keys included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and bool(
            torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        )
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


@given(state=STATES)
@settings(max_examples=60)
def test_a_nested_state_comes_back_in_every_type_and_bit(
    state: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_state(path, state, kind="test")
    assert _same(load_state(path, kind="test"), state)


def test_keys_that_look_alike_stay_apart(path: Path) -> None:
    state = {0: torch.zeros(1), "0": torch.ones(1), "a/b": torch.ones(2), "a": {"b": torch.ones(3)}}
    save_state(path, state, kind="test")
    assert _same(load_state(path, kind="test"), state)


def test_tensors_that_share_memory_or_are_strided_are_saved_by_their_values(path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    save_state(path, {"base": base, "turned": base.T, "part": base[:, 1]}, kind="test")
    loaded = load_state(path, kind="test")
    assert torch.equal(loaded["turned"], base.T)
    assert torch.equal(loaded["part"], torch.tensor([1.0, 4.0]))
    loaded["base"].zero_()  # what was loaded is memory of its own
    assert torch.equal(loaded["turned"], base.T)


def test_an_optimizer_goes_through_a_file_unchanged(path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    save_state(path, optimizer.state_dict(), kind="test")
    assert _same(load_state(path, kind="test"), optimizer.state_dict())


def test_equal_states_make_equal_files(path: Path) -> None:
    files = set()
    for _ in range(5):
        save_state(path, {"b": torch.ones(2), "a": [1, {"c": torch.zeros(1)}]}, kind="test")
        files.add(path.read_bytes())
    assert len(files) == 1


def test_the_file_is_plain_safetensors_that_others_can_read(path: Path) -> None:
    save_state(path, {"network": {"weight": torch.ones(2)}, "lr": 0.5}, kind="test")
    with safetensors.safe_open(path, framework="np") as file:
        assert list(file.keys()) == ["network/weight"]
        assert json.loads(file.metadata()["structured"])["state"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"entry 'a/b' is a builtins\.set"),
        (np.float32(1.0), r"entry 'a/b' is a numpy\.float32"),
        (torch.eye(2).to_sparse(), "entry 'a/b' is a tensor of layout torch.sparse_coo"),
        ({1.5: 0}, r"entry 'a/b' has the key 1\.5"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_its_place_and_nothing_is_written(
    path: Path, value: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        save_state(path, {"a": {"b": value}}, kind="test")
    assert list(path.parent.iterdir()) == []


@given(data=st.data())
@settings(max_examples=60)
def test_a_file_cut_anywhere_is_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    save_state(path, {"a": torch.ones(50), "b": 1}, kind="test")
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: is cut short or damaged"):
        load_state(path, kind="test")


@given(data=st.data())
@settings(max_examples=60)
def test_a_changed_bit_is_noticed_wherever_it_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bit.safetensors"
    save_state(path, {"a": torch.ones(20), "b": 1}, kind="test")
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"bit\.safetensors: "):
        load_state(path, kind="test")


def test_another_version_another_kind_and_a_foreign_file_are_told_apart(path: Path) -> None:
    save_state(path, {"a": 1}, kind="model")
    with pytest.raises(CheckpointError, match="holds a model; wanted a run"):
        load_state(path, kind="run")
    newer = {"structured": json.dumps({"version": VERSION + 1})}
    path.write_bytes(safetensors.torch.save({"a": torch.ones(1)}, newer))
    with pytest.raises(CheckpointError, match=f"format version {VERSION + 1}; this release reads"):
        load_state(path, kind="model")
    path.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="was not written by this package"):
        load_state(path, kind="model")


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.safetensors: cannot be read \(No such file"):
        load_state(path, kind="test")


class _FullDisk:
    """A file that takes half of what is written, as a disk does when it becomes full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, data: bytes) -> None:
        self._stream.write(data[: len(data) // 2])
        raise _no_space()


def _no_space(*_: object) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fail(*_: object) -> None:
    raise _no_space()


def _fill_disk(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "write":
        full = lambda path, mode: _FullDisk(open(path, mode))  # noqa: E731, SIM115
        monkeypatch.setattr(structured._atomic, "open", full, raising=False)
    else:
        monkeypatch.setattr(os, where, _fail)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_nothing_beside_it(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(path, {"a": torch.zeros(100)}, kind="test")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        _fill_disk(patch, where)
        with pytest.raises(CheckpointError, match=r"could not be written \(No space left on dev"):
            save_state(path, {"a": torch.ones(100)}, kind="test")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    save_state(path, {"a": torch.ones(100)}, kind="test")
    assert load_state(path, kind="test")["a"].sum() == 100


# One process imports torch; its children save without a pause, each until it is killed.
_KILLED_WHILE_SAVING = """
import os, random, signal, sys, time
import torch
from structured.checkpoint import load_state, save_state

torch.set_num_threads(1)
path, rng, last = sys.argv[1], random.Random(0), 0
save_state(path, {"count": 0, "same": torch.zeros(50_000)}, kind="test")
kills = 0
while kills < 20 or last < 20:
    child = os.fork()
    if child == 0:
        count = last
        while True:
            count += 1
            save_state(path, {"count": count, "same": torch.full((50_000,), count)}, kind="test")
    time.sleep(rng.uniform(0.0, 0.04))
    kills += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = load_state(path, kind="test")
    assert state["count"] >= last and bool((state["same"] == state["count"]).all()), state
    last = state["count"]
save_state(path, {"count": last}, kind="test")
print(sorted(os.listdir(os.path.dirname(path))))
"""


def test_a_kill_while_saving_leaves_one_whole_checkpoint(path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_SAVING, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "['state.safetensors']"  # the next save used up what a kill left


def test_differences_are_shown_by_name() -> None:
    before = {"lr": 0.1, "primary": {"samples": 10}, "hidden": [8], "old": 1}
    now = {"lr": 0.2, "primary": {"samples": 10}, "hidden": (8,), "new": 2}
    with pytest.raises(CheckpointError) as caught:
        check_same("run/checkpoint", before, now, "method")
    assert str(caught.value) == (
        "run/checkpoint: was saved with another method: lr is 0.1, now 0.2; old is 1, now absent; "
        "new is absent, now 2"
    )
    check_same("run/checkpoint", before, before, "method")


def test_random_streams_go_on_where_they_were_saved(path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        import random

        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    with own_randomness(3):
        draw()
        save_state(path, random_state(), kind="test")
        wanted = [draw(), draw()]
        set_random_state(load_state(path, kind="test"))
        assert [draw(), draw()] == wanted


def test_a_block_of_its_own_randomness_leaves_the_callers_streams_alone() -> None:
    before = random_state()
    with own_randomness(5):
        torch.rand(3)
    assert _same(random_state(), before)
