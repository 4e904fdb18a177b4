"""Methods as plain JSON values and back, and with other options."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import bilevel
from structured import costs, sampling
from structured._parameters import with_fields
from structured.methods import primaries
from structured.methods._objectives import Cost
from structured.methods.base import Method
from structured.methods.figures import TrustLimits
from structured.methods.hypergradient import NoAdjoint
from structured.methods.registry import known, written_name

_TYPE = "type"

_PARTS: dict[str, type] = {
    written_name(cls.__name__): cls
    for cls in (
        primaries.Margin,
        primaries.ContrastiveDivergence,
        primaries.Value,
        sampling.Soft,
        sampling.StraightThrough,
        sampling.Gumbel,
        sampling.GumbelStraightThrough,
        sampling.DetachedHard,
        sampling.DetachedSoft,
        TrustLimits,
        NoAdjoint,
        bilevel.Auto,
        bilevel.BiCGStab,
        bilevel.CG,
        bilevel.Chebyshev,
        bilevel.Exact,
        bilevel.GMRES,
        bilevel.MINRES,
        bilevel.Neumann,
        bilevel.Nystrom,
        bilevel.ScaledIdentity,
        bilevel.Jacobi,
        bilevel.NystromPreconditioner,
    )
}
_FUNCTIONS = {
    function.__name__: function
    for function in (costs.hamming, costs.soft_f1, costs.soft_iou, costs.zero_one)
}


def to_dict(method: Method) -> dict[str, Any]:
    """Describe a method as plain JSON values; `from_dict` undoes it.

    Args:
        method: made of numbers and of objects of this package and `bilevel`.

    Raises:
        TypeError: if an option is a function or an object of your own; the message names it.

    Example:
        >>> from structured.methods import CrossEntropy
        >>> to_dict(CrossEntropy(lr=0.01))
        {'type': 'CrossEntropy', 'lr': 0.01, 'weight_decay': 0.0}
    """
    return _describe(method, "method")


def from_dict(values: Mapping[str, Any]) -> Method:
    """Make the method that `to_dict` described; options left out take their defaults.

    Raises:
        ValueError: if a type or an option is unknown, or a value does not fit.

    Example:
        >>> from_dict({"type": "CrossEntropy", "lr": 0.01})
        CrossEntropy(lr=0.01, weight_decay=0.0)
    """
    method = _restore(values, "method", tuple(_methods()))
    if not isinstance(method, Method):
        raise ValueError(f"method: found {values!r}, wanted the description of a method")
    return method


def with_options(method: Method, options: Mapping[str, Any]) -> Method:
    """Return a method with other values of some options, all set at once.

    Args:
        method: whose other options stay.
        options: option -> value, as in `Method.search_space`; a dot reaches into a part, where a
            part is set, too, into the new one.

    Raises:
        ValueError: if there is no such option, or the values do not fit.

    Example:
        >>> from structured.methods import Implicit
        >>> method = with_options(Implicit(), {"ce_weight": 0.3, "solver.max_steps": 1})
        >>> method.ce_weight, method.solver.max_steps
        (0.3, 1)
    """
    return with_fields(method, options, name="method", separator=".")


def _describe(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = getattr(value, "__name__", "")
    if _FUNCTIONS.get(name) is value:
        return {_TYPE: name}
    cls, classes = type(value), _classes()
    name = written_name(cls.__name__)
    if classes.get(name) is not cls:
        raise TypeError(
            f"{place}: found {value!r}, which cannot be written as JSON; wanted one of "
            f"{', '.join((*classes, *_FUNCTIONS))}"
        )
    fields = {
        field.name: _describe(getattr(value, field.name), f"{place}.{field.name}")
        for field in dataclasses.fields(value)
    }
    return {_TYPE: name, **fields}


def _restore(value: Any, place: str, fitting: Sequence[str]) -> Any:
    """Make what was described; `fitting` are the types that the place takes, or none."""
    if not isinstance(value, Mapping):
        if isinstance(value, str) and fitting:
            if value in fitting:
                raise ValueError(f'{place}: found {value!r}, wanted {{"{_TYPE}": "{value}"}}')
            raise ValueError(f"{place}: found {value!r}, {_wanted(value, fitting)}")
        return value
    name, classes = value.get(_TYPE), _classes()
    name = written_name(name) if isinstance(name, str) else name
    fitting = fitting or (*classes, *_FUNCTIONS)
    if name not in fitting:
        raise ValueError(f"{place}: found the type {name!r}, {_wanted(name, fitting)}")
    cls = classes.get(str(name))
    known = [field.name for field in dataclasses.fields(cls)] if cls is not None else []
    options = {key: item for key, item in value.items() if key != _TYPE}
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(
            f"{place}: found unknown {', '.join(map(repr, unknown))}, wanted options of {name}: "
            f"{', '.join(known) or 'it has none'}"
        )
    if cls is None:
        return _FUNCTIONS[str(name)]
    kinds = _fitting(cls)
    restored = {
        key: _restore(item, f"{place}.{key}", kinds.get(key, ())) for key, item in options.items()
    }
    for field in dataclasses.fields(cls):
        found = restored.get(field.name, field.default)
        if isinstance(field.default, bool) and not isinstance(found, bool):
            # A text such as "no" would count as true.
            raise ValueError(f"{place}: {field.name}: found {found!r}, wanted true or false")
    try:
        return cls(**restored)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _wanted(name: object, fitting: Sequence[str]) -> str:
    """Say what fits, and which of it was probably meant."""
    by_lower = {each.lower(): each for each in fitting}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[close[0]]!r}?" if close else ""
    return f"wanted one of {', '.join(fitting)}{hint}"


def _fitting(cls: type) -> dict[str, tuple[str, ...]]:
    """Option -> the names of the types that it takes, for the options that take any."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a method of one's own, whose types are imported for type checkers alone
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for option, hint in hints.items():
        union = get_origin(hint) in (Union, types.UnionType)
        kinds = get_args(hint) if union else (hint,)
        # What is no class, or a protocol, cannot be asked whether it fits.
        plain = (kind for kind in kinds if isinstance(kind, type))
        bases = tuple(kind for kind in plain if not getattr(kind, "_is_protocol", False))
        names = tuple(name for name, part in _PARTS.items() if issubclass(part, bases))
        found[option] = names + (tuple(_FUNCTIONS) if Cost in kinds else ())
    return found


def _methods() -> dict[str, type]:
    return {written_name(cls.__name__): cls for cls in known().values()}


def _classes() -> dict[str, type]:
    return _methods() | _PARTS
