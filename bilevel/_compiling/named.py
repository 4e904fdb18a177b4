"""What code names, and which modules, functions and classes are installed and so hold still."""

from __future__ import annotations

import dis
import os
import site
import sys
import sysconfig
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, MemberDescriptorType, ModuleType
from typing import Any

import torch

_NAMES_OF_PLACES = ("site-packages", "dist-packages")
_PLACES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_PLACES |= {*site.getsitepackages(), site.getusersitepackages()}
# One environment may stand on another (a .pth file, PYTHONPATH), and PyTorch in a build tree.
_PLACES |= {place for place in sys.path if os.path.basename(place) in _NAMES_OF_PLACES}
_PLACES |= {os.path.dirname(torch.__file__)}
_INSTALLED = (*(os.path.join(place, "") for place in _PLACES if place), "<frozen")

# Type flags of CPython: no attribute can be set; dict and weak references are kept elsewhere.
_IMMUTABLE = 1 << 8
_MANAGED_DICT, _MANAGED_WEAKREF = 1 << 4, 1 << 3
_POINTER = object.__basicsize__ // 2

# Code is looked through once; scripts that make code all the time shall not fill the memory.
_MOST_CODE = 4096


@dataclass(frozen=True)
class Names:
    """What a function and the functions inside it name.

    Attributes:
        globals: looked up among the globals, in the order of the code.
        attributes: all names, and the words in it that may be one: ``getattr(module, "rate")``.
        imports: modules it imports while it runs.
        all_globals: whether the globals are read as a dict, so that any word may be one of them.
        runs_text: whether it runs code that is text.
        by_identity: whether it asks of objects which ones they are; asking for None is none such.
    """

    globals: tuple[str, ...]
    attributes: frozenset[str]
    imports: tuple[str, ...]
    all_globals: bool
    runs_text: bool
    by_identity: bool


_found: dict[int, tuple[CodeType, Names]] = {}


def names(code: CodeType) -> Names:
    """What a function's code names."""
    known = _found.get(id(code))
    if known is not None:
        return known[1]
    if len(_found) >= _MOST_CODE:
        _found.clear()
    found = _names(code)
    _found[id(code)] = (code, found)  # holds the code, so that its id is not given out again
    return found


def _names(code: CodeType) -> Names:
    read: dict[str, None] = {}
    imports: dict[str, None] = {}
    attributes: set[str] = set()
    words: set[str] = set()
    by_identity = False
    for part in _parts(code):
        attributes.update(part.co_names)
        words.update(_words(part.co_consts))
        before = ""
        for step in dis.get_instructions(part):
            by_identity |= step.opname == "IS_OP" and not before.startswith("LOAD_CONST")
            before = step.opname
            if step.opname == "IMPORT_NAME":
                imports[step.argval] = None
            elif "GLOBAL" in step.opname or step.opname == "LOAD_NAME":
                read[str(step.argval)] = None
    if attributes & {"import_module", "__import__", "modules"}:
        imports.update(dict.fromkeys(sorted(words)))
    return Names(
        tuple(read),
        frozenset(attributes | words),
        tuple(imports),
        "globals" in read or "vars" in read,
        "eval" in read or "exec" in read,
        by_identity or "id" in read or bool(attributes & {"is_", "is_not"}),
    )


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _words(constants: Iterable[Any]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str) and constant.replace(".", "_").isidentifier():
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _words(constant)


def imported(imports: Iterable[str], package: str) -> Iterator[ModuleType]:
    """The modules that ``import`` inside a function of a package gives, where they are loaded."""
    for name in imports:
        for base in _prefixes(package):
            for prefix in _prefixes(f"{base}.{name}" if name else base):
                yield from _loaded(prefix)
        for prefix in _prefixes(name):
            yield from _loaded(prefix)


def _prefixes(dotted: str) -> Iterator[str]:
    """``a.b.c``, ``a.b`` and ``a``."""
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


def _loaded(name: str) -> Iterator[ModuleType]:
    found = sys.modules.get(name)
    if isinstance(found, ModuleType):
        yield found


def is_installed(code: CodeType) -> bool:
    """Whether code comes from the standard library or an installed package."""
    return code.co_filename.startswith(_INSTALLED)


def module_holds_still(module: ModuleType) -> bool:
    """Whether a module is installed, or of this package."""
    name = getattr(module, "__name__", None)
    if not isinstance(name, str):
        return False
    top = name.partition(".")[0]
    if top == "bilevel":
        return True
    file = vars(module).get("__file__")
    if isinstance(file, str) and os.path.isabs(file):
        return file.startswith(_INSTALLED)
    root = sys.modules.get(top)
    if root is None or root is module:  # of a script, made at run time, or built in
        return top in sys.stdlib_module_names and sys.modules.get(name) is module
    return module_holds_still(root)


@dataclass(frozen=True)
class Kind:
    """What is known of a class for good.

    Attributes:
        still: it is installed: neither it nor what stands on it changes.
        members: descriptors of what its instances hold in slots.
        hidden: its instances hold more than attributes and slots show.
    """

    still: bool
    members: tuple[MemberDescriptorType, ...]
    hidden: bool


_kinds: weakref.WeakKeyDictionary[type, Kind] = weakref.WeakKeyDictionary()


def kind_of(cls: type) -> Kind:
    """What is known of a class for good."""
    found = _kinds.get(cls)
    if found is None:
        bases = cls.__mro__
        slots = (item for base in bases for name, item in vars(base).items() if name[:2] != "__")
        members = tuple(item for item in slots if isinstance(item, MemberDescriptorType))
        found = Kind(_holds_still(cls), members, _hides(cls, len(members)))
        _kinds[cls] = found
    return found


def _holds_still(cls: type) -> bool:
    if cls.__flags__ & _IMMUTABLE:
        return True
    module = sys.modules.get(cls.__module__) if isinstance(cls.__module__, str) else None
    if module is None or not module_holds_still(module):
        return False
    found: Any = module
    for part in cls.__qualname__.split("."):
        if part == "<locals>":  # made by a function that is installed
            return True
        found = getattr(found, part, None)
    return found is cls  # a module's name is soon borrowed


def _hides(cls: type, members: int) -> bool:
    """Whether instances are larger than their attributes and slots account for."""
    size = object.__basicsize__ + members * _POINTER
    if cls.__dictoffset__ and not cls.__flags__ & _MANAGED_DICT:
        size += _POINTER
    if cls.__weakrefoffset__ and not cls.__flags__ & _MANAGED_WEAKREF:
        size += _POINTER
    return bool(cls.__itemsize__) or cls.__basicsize__ > size
