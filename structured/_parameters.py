"""Parameters: fields of nested frozen dataclasses by name, as `a__b`, and plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


def nested_fields(name: str, value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and of the dataclasses in it, by their nested names.

    Args:
        name: What `value` is called.
        value: A dataclass instance; anything else has no fields.

    Example:
        >>> from structured.decoding import Threshold
        >>> nested_fields("decoder", Threshold(0.4))
        {'decoder__value': 0.4}
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        key, item = f"{name}__{field.name}", getattr(value, field.name)
        found |= {key: item, **nested_fields(key, item)}
    return found


def with_fields(value: Any, new: Mapping[str, Any], *, name: str, separator: str = "__") -> Any:
    """Return a copy of a frozen dataclass with some fields, maybe of fields, replaced at once.

    Args:
        value: The dataclass instance.
        new: Path -> value, `a__b` being the field b of the field a; where a is replaced, too, of
            the new one. Only what comes out of all of them together has to fit.
        name: What `value` is called, for the error.
        separator: Between the names of a path.

    Raises:
        ValueError: There is no such field, or the dataclass refuses the values.

    Example:
        >>> from structured.decoding import Threshold
        >>> with_fields(Threshold(0.4), {"value": 0.3}, name="decoder")
        Threshold(value=0.3)
    """
    fields: list[str] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
    changed: dict[str, Any] = {}
    within: dict[str, dict[str, Any]] = {}
    for path, item in new.items():
        first, deeper, rest = path.partition(separator)
        if first not in fields:
            there = f"it has {', '.join(fields)}" if fields else "it has none"
            raise ValueError(f"{name}: {value!r} has no field {first!r}; {there}")
        if deeper:
            within.setdefault(first, {})[rest] = item
        else:
            changed[first] = item
    for first, paths in within.items():
        part = changed.get(first, getattr(value, first))
        place = f"{name}{separator}{first}"
        changed[first] = with_fields(part, paths, name=place, separator=separator)
    replace: Any = dataclasses.replace  # which wants a type that `is_dataclass` does not give
    return replace(value, **changed)


def plain(value: Any) -> Any:
    """Return numbers of NumPy, which parameter searches draw, as numbers of Python.

    Args:
        value: One, or a list or an array of them; anything else stays as it is.

    Example:
        >>> plain([np.int64(3), "x"])
        (3, 'x')
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(item) for item in value)
    return value
