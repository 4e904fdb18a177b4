"""Methods as a user writes them: a name, a name with options, or a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.failures import UsageError
from structured.presets import ALL_METHODS, PRESETS, setting

if TYPE_CHECKING:
    from structured.methods import Method

OWN = ", ".join(name for name, own in PRESETS.items() if "methods" in own)
ALL = "all"
"""What stands for every method of `structured.presets.ALL_METHODS`."""
HELP = (
    "METHOD is a name that `structured methods` lists, alone or with options, as in 'implicit: "
    "primary=Value, inner_steps=2, solver=CG, solver.max_steps=5'; or a .json file with a method, "
    f"such as a run.json. On {OWN} some methods have options of their own, which "
    "`structured methods METHOD` shows."
)


def parse_methods(specs: Sequence[str], data: str | None = None) -> dict[str, Method]:
    """Return label -> method. A label is the method's own name, or the text where names collide.

    Args:
        specs: See `HELP`.
        data: The name of the data set, whose own options come before those of the text.

    Raises:
        UsageError: A text is no method; two are the same.

    Example:
        >>> list(parse_methods(["cross_entropy", "implicit:inner_steps=2"]))
        ['cross-entropy', 'implicit-margin']
        >>> list(parse_methods(["implicit", "implicit:inner_steps=2"]))
        ['implicit', 'implicit:inner_steps=2']
    """
    methods = {spec: parse_method(spec, data) for spec in specs}
    names = [method.name for method in methods.values()]
    if len(methods) < len(specs):
        raise UsageError(f"--method: {list(specs)} names one method twice")
    return {
        method.name if names.count(method.name) == 1 else spec.strip(): method
        for spec, method in methods.items()
    }


def chosen_methods(
    specs: Sequence[str], names: str | None, data: str | None = None
) -> dict[str, Method]:
    """Return label -> method, of `--method` and then of `--methods`, or the default ones.

    Args:
        specs: See `HELP`; may be empty.
        names: "all" for `ALL_METHODS`, or names with commas between them; what `specs` has already
            is left out.
        data: The name of the data set, whose own options come before those of the texts.

    Raises:
        UsageError: A text is no method; two are the same.

    Example:
        >>> list(chosen_methods(["implicit: inner_steps=2"], "cross_entropy, dvn"))
        ['implicit-margin', 'cross-entropy', 'dvn']
        >>> list(chosen_methods(["cross_entropy: lr=0.1"], "all"))[:2]
        ['cross_entropy: lr=0.1', 'cross-entropy']
    """
    if not specs and names is None:
        specs = setting("comparison", "methods", data)
    if names is None or names == ALL:
        own = parse_methods(specs, data)
    else:
        listed = [name.strip() for name in names.split(",")]
        own = parse_methods([*specs, *(name for name in listed if name not in specs)], data)
    if names != ALL:
        return own
    family = {label: parse_method(spec, data) for label, spec in ALL_METHODS.items()}
    given = list(own.values())
    own = {
        label if label not in family else spec.strip(): method
        for spec, (label, method) in zip(specs, own.items(), strict=True)
    }
    return {**own, **{label: method for label, method in family.items() if method not in given}}


def parse_method(spec: str, data: str | None = None) -> Method:
    """Return the method that a text stands for.

    Args:
        spec: See `HELP`.
        data: The name of the data set, whose own options come before those of the text.

    Raises:
        UsageError: The text is no method, or an option does not fit.

    Example:
        >>> parse_method("cross_entropy:lr=0.01").lr
        0.01
    """
    from structured.methods import from_dict

    try:
        in_file = spec.endswith(".json")
        return from_dict(_read(Path(spec)) if in_file else _described(spec, data))
    except ValueError as error:
        raise UsageError(f"--method {spec}: {error}") from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError("there is no such file")
    values = json.loads(path.read_bytes())
    # A run's description holds the method among other things.
    return values.get("method", values) if isinstance(values, dict) else values


def _described(spec: str, data: str | None) -> dict[str, Any]:
    from structured.methods import to_dict
    from structured.named import as_method

    name, _, options = (part.strip() for part in spec.partition(":"))
    described = to_dict(as_method(name))
    own = PRESETS.get(data or "", {}).get("methods", {}).get(name, "")
    for text in (own, options):
        given = [option.strip() for option in text.split(",")] if text else []
        # A part before its own options, in whatever order they stand, as `with_options` does.
        for option in sorted(given, key=lambda option: option.partition("=")[0].count(".")):
            _set(described, option)
    return described


def _set(described: dict[str, Any], option: str) -> None:
    key, equals, text = (part.strip() for part in option.partition("="))
    if not equals:
        raise ValueError(f"wanted name=value, found {option!r}")
    *path, last = key.split(".")
    for part in path:
        described = described.get(part, {})
        if not isinstance(described, dict) or not described:
            raise ValueError(f"{key}: {part} has no options of its own")
    described[last] = _value(text, described.get(last))


def _value(text: str, default: Any) -> Any:
    """JSON where it is, else a text; the type of an object where the default is an object."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    try:
        return json.loads(text)
    except ValueError:
        is_type = isinstance(default, dict) or (default is None and text[:1].isupper())
        return {"type": text} if is_type else text
