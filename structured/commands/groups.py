"""Options in groups: a dataclass among the parameters of a command is an option for each field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as `typer` is to see it: the fields of its groups in place of the groups.

    Typer makes an option of each parameter in a signature. This one is the command's own, with
    every dataclass replaced by what makes one; when it is called, the groups are put together.

    Args:
        command: Some of its parameters may be annotated with dataclasses, whose fields are options
            as `typer` wants them and are named unlike all others of the command.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: int = 2
        ...     height: int = 1
        >>> @spread
        ... def draw(name: str, *, size: Size) -> None:
        ...     print(name, size)
        >>> list(inspect.signature(draw).parameters)
        ['name', 'width', 'height']
        >>> draw(name="a door", width=1, height=2)
        a door Size(width=1, height=2)
    """
    groups: dict[str, tuple[type, list[str]]] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            fields = inspect.signature(group, eval_str=True).parameters
            groups[parameter.name] = group, list(fields)
            options.extend(fields.values())
        else:
            options.append(parameter)

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field: values.pop(field) for field in fields})
            for name, (group, fields) in groups.items()
        }
        command(**values, **made)

    # By name alone: then those with a default may stand before those without.
    named = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    vars(run)["__signature__"] = inspect.Signature(named)
    return run
