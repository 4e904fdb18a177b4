"""What an estimator decodes with: probabilities alone, or the energy as well."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from structured.data import MultiLabelData
from structured.decoding import Decoder, FittedDecoder
from structured.evaluation import predict_probabilities
from structured.joint import JointExpectedF1
from structured.methods import Method
from structured.models import Models
from structured.training import RunResult

AnyDecoder: TypeAlias = Decoder | JointExpectedF1
AnyFitted: TypeAlias = FittedDecoder | JointExpectedF1


def check_decoder(decoder: AnyDecoder, method: Method) -> None:
    """Refuse to ask an energy about labels that are independent without it.

    Raises:
        ValueError: The decoder is the joint one, and the method's energy does not reweight.
    """
    if isinstance(decoder, JointExpectedF1) and not method.reweights:
        raise ValueError(
            f"decoder: found the joint one with the method {method.name!r}, whose energy does not "
            "reweight the network's distribution, so that labels are independent; take "
            'decoder="expected_f1", which is the same for them, or a method such as "implicit"'
        )


def fit_decoder(decoder: AnyDecoder, result: RunResult, validation: MultiLabelData) -> AnyFitted:
    """Fit a decoder on validation rows, with models that never saw them.

    Args:
        decoder: what to fit.
        result: of the training.
        validation: the rows set aside.
    """
    gold = torch.from_numpy(validation.Y.toarray()).float()
    if isinstance(decoder, JointExpectedF1):
        return decoder.fit(result.selection or result.models, validation.X, gold)
    return decoder.fit(result.predict_held_out(validation.X), gold)


def decode_rows(decoder: AnyFitted, method: Method, models: Models, X: Any) -> Tensor:
    """Return the label sets of rows, ``[n, L]``.

    Args:
        decoder: as fitted.
        method: that trained the models.
        models: the network, and the energy if the decoder asks for it.
        X: inputs, sparse or dense, ``[n, D]``.
    """
    if isinstance(decoder, JointExpectedF1):
        return decoder.decode(models, X)
    return decoder.decode(predict_probabilities(method, models, X).double())
