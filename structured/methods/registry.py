"""The methods by name: each registers itself where it is written, and nowhere else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import structured.methods
from structured.methods.base import Method

M = TypeVar("M", bound=type[Method])

_REGISTERED: dict[str, type[Method]] = {}

_WRITTEN = {"SEAL": "Seal", "DetachedHard": "NoPathHard", "DetachedSoft": "NoPathSoft"}


def register(key: str) -> Callable[[M], M]:
    """Make a method known by a short name: to the command line, the estimator and run folders.

    Args:
        key: what users type, such as "cross_entropy".

    Returns:
        A decorator for the class.

    Raises:
        ValueError: if the name, or that of the class, belongs to another method already.

    Example:
        >>> from structured.methods import CrossEntropy
        >>> known()["cross_entropy"] is CrossEntropy
        True
    """

    def decorate(cls: M) -> M:
        # A module that is run anew (a notebook's cell) registers its class anew.
        for name, other in _REGISTERED.items():
            taken = name == key or written_name(other.__name__) == written_name(cls.__name__)
            if taken and (other.__module__, other.__name__) != (cls.__module__, cls.__name__):
                raise ValueError(
                    f"register: found {key!r} for {cls.__name__}, but {other.__module__} has the "
                    f"method {name!r} ({other.__name__}); wanted another name"
                )
        _REGISTERED[key] = cls
        return cls

    return decorate


def written_name(name: str) -> str:
    """Return what a class is called in files and on the command line.

    That is its name in Python but for a few classes which had another one when files were written
    that are still to be read. Both are understood.

    Example:
        >>> written_name("SEAL"), written_name("SPEN")
        ('Seal', 'SPEN')
    """
    return _WRITTEN.get(name, name)


def known() -> Mapping[str, type[Method]]:
    """Return short name -> method, of all files of `structured.methods` and of the caller's own.

    The baseline and the implicit method come first, the others by name.
    """
    for module in pkgutil.iter_modules(structured.methods.__path__):
        importlib.import_module(f"structured.methods.{module.name}")
    first = ("cross_entropy", "implicit")
    others = sorted(_REGISTERED.keys() - set(first))
    return MappingProxyType({key: _REGISTERED[key] for key in (*first, *others)})
