"""Fields of nested frozen dataclasses by name, as scikit-learn names nested parameters: `a__b`."""

from __future__ import annotations

import dataclasses
from typing import Any


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


def with_field(value: Any, path: str, new: Any, *, name: str) -> Any:
    """Return a copy of a frozen dataclass with one field, maybe of a field, replaced.

    Args:
        value: The dataclass instance.
        path: The field's name, `a__b` for the field b of the field a.
        new: Its new value.
        name: What `value` is called, for the error.

    Raises:
        ValueError: There is no such field, or the dataclass refuses the value.

    Example:
        >>> from structured.decoding import Threshold
        >>> with_field(Threshold(0.4), "value", 0.3, name="decoder")
        Threshold(value=0.3)
    """
    first, _, rest = path.partition("__")
    fields: list[str] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
    if first not in fields:
        there = f"it has {', '.join(fields)}" if fields else "it has none"
        raise ValueError(f"{name}: {value!r} has no field {first!r}; {there}")
    if rest:
        new = with_field(getattr(value, first), rest, new, name=f"{name}__{first}")
    changed: Any = dataclasses.replace  # which wants a type that `is_dataclass` does not give
    return changed(value, **{first: new})
