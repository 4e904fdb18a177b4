"""Methods and decoders by short names, and decoders as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from structured.decoding import Decoder, ExpectedF1, FittedDecoder, Threshold, TunedThreshold
from structured.joint import JointExpectedF1
from structured.methods import Method
from structured.methods.registry import known

DECODERS: Mapping[str, Decoder | JointExpectedF1] = {
    "threshold": Threshold(),
    "tuned": TunedThreshold(),
    "expected_f1": ExpectedF1(),
    "joint": JointExpectedF1(),
}
"""The decoders that can be asked for by name."""

_KINDS = {kind.__name__: kind for kind in (Threshold, TunedThreshold, ExpectedF1, JointExpectedF1)}


def as_method(method: str | Method) -> Method:
    """Return a method given by name or as it is.

    Raises:
        ValueError: No method has that name.

    Example:
        >>> as_method("cross_entropy")
        CrossEntropy(lr=0.001, weight_decay=0.0)
    """
    if isinstance(method, Method):
        return method
    methods = known()
    if method not in methods:
        raise ValueError(
            f"method: found {method!r}, wanted one of {', '.join(map(repr, methods))}, or an "
            "object of structured.methods"
        )
    return methods[method]()


def as_decoder(decoder: str | Decoder | JointExpectedF1) -> Decoder | JointExpectedF1:
    """Return a decoder given by name or as it is.

    Raises:
        ValueError: No decoder has that name, or the object is none.

    Example:
        >>> as_decoder("threshold")
        Threshold(value=0.5)
    """
    if isinstance(decoder, str):
        decoder = DECODERS.get(decoder, decoder)
    if isinstance(decoder, str) or not hasattr(decoder, "fit"):
        raise ValueError(
            f"decoder: found {decoder!r}, wanted one of {', '.join(map(repr, DECODERS))}, or an "
            "object with a method `fit(probabilities, y)`"
        )
    return decoder


def decoder_to_dict(decoder: Decoder | FittedDecoder | JointExpectedF1) -> dict[str, Any]:
    """Return a decoder as plain values; `decoder_from_dict` undoes it.

    Raises:
        TypeError: It is none of this package's.

    Example:
        >>> decoder_to_dict(Threshold(0.25))
        {'kind': 'Threshold', 'value': 0.25}
    """
    kind = type(decoder).__name__
    if _KINDS.get(kind) is not type(decoder):
        raise TypeError(
            f"decoder: found {decoder!r}, which only pickle could save; wanted one of "
            f"{', '.join(_KINDS)}"
        )
    return {"kind": kind, **vars(decoder)}


def decoder_from_dict(values: Mapping[str, Any]) -> Any:
    """Return the decoder that `decoder_to_dict` was called on.

    Example:
        >>> decoder_from_dict({"kind": "Threshold", "value": 0.25})
        Threshold(value=0.25)
    """
    fields = dict(values)
    return _KINDS[fields.pop("kind")](**fields)
