"""Nested states as tensors by name and JSON, and back: what a checkpoint is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any
"""Dicts (keys: texts or integers), lists, tuples, tensors, texts, numbers, booleans and None."""

_TAG = "$"


def flatten_state(state: State) -> tuple[Any, dict[str, Tensor]]:
    """Take a state apart into a JSON value and its tensors by name; `unflatten_state` undoes it.

    A tensor's name is its path, parts joined with "/" (as in a JSON pointer, "~" and "/" within a
    part are written "~0" and "~1"). Integer keys, tuples and non-finite floats, which JSON does not
    have, are tagged, so that they come back as they were.

    Args:
        state: see `State`. Tensors must be dense.

    Returns:
        The JSON value, with a reference in the place of each tensor, and contiguous CPU copies of
        the tensors.

    Raises:
        TypeError: if something else is in it; the message names its path.

    Example:
        >>> import torch
        >>> value, tensors = flatten_state({"lr": 0.1, "state": {0: torch.zeros(2)}})
        >>> value
        {'lr': 0.1, 'state': {'$': 'dict', 'items': [[0, {'$': 'tensor', 'name': 'state/0'}]]}}
        >>> tensors
        {'state/0': tensor([0., 0.])}
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, (), tensors), tensors


def _encode(value: State, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"{_place(path)} is a tensor of layout {value.layout}; wanted a dense")
        name = _name(path)
        while name in tensors:  # the keys 0 and "0" of one dict
            name += "~"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TAG: "tensor", "name": name}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else {_TAG: "float", "value": repr(value)}
    if isinstance(value, list):
        return [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        items = [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
        return {_TAG: "tuple", "items": items}
    if isinstance(value, Mapping):
        return _encode_dict(value, path, tensors)
    raise TypeError(
        f"{_place(path)} is a {type(value).__module__}.{type(value).__qualname__}; a state holds "
        "tensors, numbers, texts, booleans, None, and dicts, lists and tuples of them"
    )


def _encode_dict(
    value: Mapping[Any, State], path: tuple[str, ...], tensors: dict[str, Tensor]
) -> Any:
    for key in value:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(f"{_place(path)} has the key {key!r}; wanted texts or integers")
    items = {key: _encode(item, (*path, str(key)), tensors) for key, item in value.items()}
    if all(isinstance(key, str) for key in items) and _TAG not in items:
        return items
    return {_TAG: "dict", "items": [[key, item] for key, item in items.items()]}


def unflatten_state(value: Any, tensors: Mapping[str, Tensor]) -> State:
    """Put together what `flatten_state` took apart.

    Raises:
        KeyError: if a tensor is missing or a tag is unknown.
    """
    if isinstance(value, list):
        return [unflatten_state(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TAG):
        case None:
            return {key: unflatten_state(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[value["name"]]
        case "float":
            return float(value["value"])
        case "tuple":
            return tuple(unflatten_state(item, tensors) for item in value["items"])
        case "dict":
            return {key: unflatten_state(item, tensors) for key, item in value["items"]}
        case tag:
            raise KeyError(f"unknown tag {tag!r}")


def _name(path: tuple[str, ...]) -> str:
    return "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)


def _place(path: tuple[str, ...]) -> str:
    return f"state entry {_name(path)!r}" if path else "the state"
