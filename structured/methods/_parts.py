"""Checks of options that are objects, which a name in a text is not."""

from __future__ import annotations


def check_part(
    name: str, value: object, kind: type, example: str, *, optional: bool = False
) -> None:
    """Raise ValueError unless an option is an object of its kind.

    Args:
        name: of the option.
        value: what was given for it.
        kind: the class it must be an object of.
        example: such an object, as a user writes it.
        optional: whether None will do, too.
    """
    if isinstance(value, kind) or (optional and value is None):
        return
    none = ", or None" if optional else ""
    raise ValueError(f"{name}: found {value!r}, wanted an object such as {example}{none}")


def check_cost(value: object) -> None:
    """Raise ValueError unless the option "cost" is a function."""
    if not callable(value) or isinstance(value, type):
        raise ValueError(
            f"cost: found {value!r}, wanted a function such as structured.costs.soft_f1"
        )
