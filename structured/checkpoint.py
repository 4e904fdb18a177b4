"""Checkpoints without pickle: one safetensors file, its plain values as JSON in the header.

One file, because only one name can be replaced at a time: tensors and plain values can never be of
two different moments.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from structured._atomic import write_atomically
from structured._state import State, flatten_state, unflatten_state
from structured.errors import CheckpointError

VERSION = 2
"""Of the format; a file of another version is refused."""

_ENTRY = "structured"  # of the header's metadata, which maps texts to texts
_LENGTH_BYTES = 8  # safetensors: the header's length, little-endian, before the header


def save_state(path: str | os.PathLike[str], state: State, *, kind: str) -> None:
    """Write a state to one file, whole or not at all.

    Args:
        path: the file; one that is there is replaced in one instant, after the new one is on disk.
        state: dicts (keys: texts or integers), lists, tuples, tensors, texts, numbers, booleans
            and None, nested as you like.
        kind: what it is, such as "run" or "model"; `load_state` wants the same word.

    Raises:
        CheckpointError: if the disk is full or the file cannot be written; an earlier file is then
            whole and unchanged.
        TypeError: if the state holds anything else; nothing is written.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "state.safetensors"
        >>> save_state(path, {"weights": torch.ones(2), "betas": (0.9, 0.999)}, kind="demo")
        >>> load_state(path, kind="demo")
        {'weights': tensor([1., 1.]), 'betas': (0.9, 0.999)}
        >>> folder.cleanup()
    """
    value, tensors = flatten_state(state)
    entries = {
        "version": VERSION,
        "kind": kind,
        "sha256": _digest(value, tensors),
        "state": value,
    }
    # A single entry: safetensors writes several in an order that differs from call to call, and
    # equal states are to make equal files.
    data = safetensors.torch.save(tensors, {_ENTRY: json.dumps(entries, allow_nan=False)})
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)}: could not be written ({error.strerror or error}); what was saved "
            "before is whole; free space or choose another folder, then resume"
        ) from error


def load_state(path: str | os.PathLike[str], *, kind: str) -> State:
    """Read what `save_state` wrote, tensors on the CPU.

    Args:
        path: the file.
        kind: the word it was saved with.

    Raises:
        CheckpointError: if the file is missing, cut short, damaged, of another version or kind.
    """
    file = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    entries = _entries(file, data)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _damaged(file, str(error)) from error
    if _digest(entries.get("state"), tensors) != entries.get("sha256"):
        raise _damaged(file, "its SHA-256 is another one than when it was written")
    if entries.get("kind") != kind:
        raise CheckpointError(f"{file}: holds a {entries.get('kind')}; wanted a {kind}")
    return unflatten_state(entries["state"], tensors)


def check_same(
    file: str | os.PathLike[str], found: Mapping[str, Any], wanted: Mapping[str, Any], what: str
) -> None:
    """Compare nested plain values, such as configurations or shapes by name.

    Args:
        file: named in the error.
        found: what the file holds.
        wanted: what it must hold to fit.
        what: what is compared, named in the error.

    Raises:
        CheckpointError: if they differ; the message shows the first few entries that do.

    Example:
        >>> check_same("a.safetensors", {"lr": 0.1}, {"lr": 0.2}, "method")
        Traceback (most recent call last):
        structured.errors.CheckpointError: a.safetensors: was saved with another method: lr is 0.1,
            now 0.2
    """
    before, now = _leaves(found), _leaves(wanted)
    differences = [
        f"{key} is {_show(before, key)}, now {_show(now, key)}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    if differences:
        shown = "; ".join(differences[:3])
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(f"{os.fspath(file)}: was saved with another {what}: {shown}{more}")


_ABSENT = object()


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        leaves: dict[str, Any] = {}
        for key, item in value.items():
            leaves |= _leaves(item, f"{path}.{key}" if path else str(key))
        return leaves
    return {path: list(value) if isinstance(value, tuple) else value}


def _show(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def _entries(file: str, data: bytes) -> dict[str, Any]:
    """The plain values in the header; the format and its version are checked before all else."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(data) < _LENGTH_BYTES or len(header) < length:
        raise _damaged(file, f"it ends after {len(data)} bytes, within its header")
    try:
        metadata = dict(json.loads(header)).get("__metadata__", {})
        entries = json.loads(metadata[_ENTRY]) if _ENTRY in metadata else None
    except (ValueError, TypeError) as error:
        raise _damaged(file, "its header is not the JSON of safetensors") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: was not written by this package (its header says nothing)")
    if entries.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: has format version {entries.get('version')}; this release reads {VERSION}; "
            "use the release that wrote it, or train anew in another folder"
        )
    return entries


def _damaged(file: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: is cut short or damaged ({reason}); restore it or train anew")


def _digest(value: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(value).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
