"""A trained model as `evaluate` and `predict` need it: read from the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.settings import Source
from structured.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from structured.decoding import FittedDecoder
    from structured.evaluation import Evaluation
    from structured.models import Models

SHORT_NAMES = {
    "threshold": "threshold 0.5",
    "tuned": "tuned threshold",
    "expected_f1": "expected F1",
}
"""How a user calls the three decoders -> how tables do."""


@dataclass(frozen=True)
class Trained:
    """A trained model with what is known about it.

    Args:
        models: with their weights.
        n_features: the size of its input.
        label_names: of its outputs.
        source: where its data came from.
        evaluation: its scores, with the thresholds fitted on its validation part.
    """

    models: Models
    n_features: int
    label_names: tuple[str, ...]
    source: Source
    evaluation: Evaluation

    def decoders(self) -> dict[str, FittedDecoder]:
        """Return the three decoders, as they were fitted on the run's validation part."""
        from structured.decoding import Threshold
        from structured.evaluation import DECODERS

        fitted: dict[str, Any] = dict(DECODERS)
        for name, value in self.evaluation.thresholds.items():
            fitted[name] = Threshold(value)
        return fitted

    def features(self, X: Any, names: Sequence[str]) -> Any:
        """Return the columns of a table that the model wants, in its order.

        Args:
            X: sparse or dense, ``[n, d]``.
            names: of its columns, or none; then their number must be right.

        Raises:
            DataError: A column is missing, or there are more or fewer than wanted.
        """
        wanted = self.source.feature_names
        if wanted and names:
            return X[:, columns(names, wanted, "feature")]
        if X.shape[1] != self.n_features:
            raise DataError(
                f"the input has {X.shape[1]} features; the model was trained on {self.n_features}"
            )
        return X


def load_trained(folder: Path) -> Trained:
    """Read the folder of a finished run.

    Raises:
        CheckpointError: It holds none, or a file of it is damaged.
    """
    from structured.evaluation import Evaluation
    from structured.experiment import EVALUATION
    from structured.model_file import load_models
    from structured.run_folder import MODEL

    source = Source.read(folder)
    models, about = load_models(folder / MODEL)
    try:
        evaluation = Evaluation.from_dict(json.loads((folder / EVALUATION).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / EVALUATION}: is not there or damaged; train again with --resume"
        ) from error
    return Trained(models, source.n_features, tuple(about["label_names"]), source, evaluation)


def columns(names: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    """Return where the wanted names are.

    Raises:
        DataError: One is missing.

    Example:
        >>> columns(["a", "b", "c"], ["c", "a"], "feature")
        [2, 0]
    """
    place: Mapping[str, int] = {name: index for index, name in enumerate(names)}
    missing = [name for name in wanted if name not in place]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"the input has no {what} {missing[0]!r}{more}, which the model was trained with"
        )
    return [place[name] for name in wanted]
