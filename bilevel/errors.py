"""The errors and warnings of the package: what can go wrong has a name."""

from __future__ import annotations

import sys


class BilevelError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(BilevelError, ValueError):
    """An argument does not fit; nothing was computed or changed."""


class NonFiniteError(BilevelError, ArithmeticError):
    """A NaN or an infinity was found; the message says where it was seen first."""


class SolveError(BilevelError, RuntimeError):
    """A linear solve failed and ``on_failure="raise"`` was asked for."""


class TransformError(BilevelError, RuntimeError):
    """A function transform (``vmap``, ``grad``, ``jvp``, ...) meets something it cannot carry."""


class ConvergenceWarning(UserWarning):
    """A solve ended without meeting its tolerance; the value is returned all the same."""


class CurvatureWarning(UserWarning):
    """The inner Hessian has a direction of negative curvature: theta is no minimum there."""


class ProductWarning(UserWarning):
    """Hessian-vector products fell back to a less exact way of being computed."""


class CompileWarning(UserWarning):
    """What ``compile=True`` asks for cannot be compiled; it is computed in the plain way."""


def outside() -> int:
    """The ``stacklevel`` of the first caller outside this package, where a warning belongs."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("bilevel"):
        frame, level = frame.f_back, level + 1
    return level
