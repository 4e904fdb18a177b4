"""A trained model as `evaluate` and `predict` need it: read from the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.inputs import file_format
from structured.commands.options import Reading
from structured.commands.output import say
from structured.commands.settings import Source
from structured.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from structured.decoding import FittedDecoder
    from structured.evaluation import Evaluation
    from structured.methods import Method
    from structured.models import Models

SHORT_NAMES = {
    "threshold": "threshold 0.5",
    "tuned": "tuned threshold",
    "expected_f1": "expected F1",
}
"""How a user calls the decoders of probabilities -> how tables do."""


@dataclass(frozen=True)
class Trained:
    """A trained model with what is known about it.

    Args:
        method: that trained it.
        models: with their weights.
        held_out: models that never saw the validation part of the run; `models` but after a refit.
        n_features: the size of its input.
        label_names: of its outputs.
        source: where its data came from.
        evaluation: its scores, with the thresholds fitted on its validation part.
    """

    method: Method
    models: Models
    held_out: Models
    n_features: int
    label_names: tuple[str, ...]
    source: Source
    evaluation: Evaluation

    def decoders(self) -> dict[str, FittedDecoder]:
        """Return the decoders of probabilities, as fitted on the run's validation part."""
        from structured.decoding import Threshold
        from structured.evaluation import DECODERS

        fitted: dict[str, Any] = dict(DECODERS)
        for name in DECODERS.keys() & self.evaluation.thresholds.keys():
            fitted[name] = Threshold(self.evaluation.thresholds[name])
        return fitted

    def joint_sets(self, X: Any) -> Tensor:
        """Return the sets of the joint decoder, with the scale fitted on the run's validation part.

        For a method whose labels are independent they are those of the expected-F1 decoder.
        """
        from structured.evaluation import JOINT
        from structured.joint import JointExpectedF1

        if not self.method.reweights:
            return self.decoders()["expected F1"].decode(self.predict(X))
        return JointExpectedF1(self.evaluation.thresholds[JOINT]).decode(self.models, X)

    def predict(self, X: Any) -> Tensor:
        """Return probabilities for rows as `features` returns them, ``[n, L]``."""
        from structured.evaluation import predict_probabilities

        return predict_probabilities(self.method, self.models, X)

    def predict_held_out(self, X: Any) -> Tensor:
        """Return the same for the validation part of the run."""
        from structured.evaluation import predict_probabilities

        return predict_probabilities(self.method, self.held_out, X)

    def reading(self, file: str, given: Reading, *, labelled: bool = True) -> Reading:
        """Return how to read a file so that its numbers mean what those of the run's data meant.

        Args:
            file: what holds the rows.
            given: the options of the command; they count where they say something.
            labelled: whether labels are read, too.

        Raises:
            DataError: It is a LIBSVM file, neither was the model trained on one nor do the options
                say where it counts from.
        """
        if file_format(Path(file)) != "libsvm":
            return given
        bases = ("features_from", "labels_from") if labelled else ("features_from",)
        missing = [base for base in bases if getattr(given, base) is None]
        trained_on_such = file_format(Path(self.source.data)) == "libsvm"
        if trained_on_such:
            given = replace(given, **{base: self.source.reading[base] for base in missing})
            missing = [base for base in missing if getattr(given, base) is None]
        flags = " and ".join(f"--{base.replace('_', '-')}" for base in missing)
        if missing and not trained_on_such:
            raise DataError(
                "a LIBSVM file does not say where it counts from, and the model was trained on "
                f"data of another kind; give {flags} (0 or 1)",
                file,
            )
        if missing:  # in the folder of a run from before it was written down
            say(f"{file}: where it counts from is guessed from its rows; {flags} says it")
        return replace(
            given,
            n_features=given.n_features or self.n_features,
            n_labels=given.n_labels or len(self.label_names),
        )

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
    from structured.methods import from_dict
    from structured.model_file import load_models
    from structured.run_folder import MODEL, SELECTION

    source = Source.read(folder)
    models, about = load_models(folder / MODEL)
    held_out = models
    if (folder / SELECTION).exists():
        held_out, _ = load_models(folder / SELECTION)
    try:
        method = from_dict(about["method"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / MODEL}: {error}") from error
    _check_same_method(folder, about["method"])
    try:
        evaluation = Evaluation.from_dict(json.loads((folder / EVALUATION).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / EVALUATION}: is not there or damaged; train again with --resume"
        ) from error
    return Trained(
        method=method,
        models=models,
        held_out=held_out,
        n_features=source.n_features,
        label_names=tuple(about["label_names"]),
        source=source,
        evaluation=evaluation,
    )


def _check_same_method(folder: Path, found: Any) -> None:
    from structured.run_folder import DESCRIPTION, MODEL

    try:
        wanted = json.loads((folder / DESCRIPTION).read_bytes())["method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: is not there or damaged; train again with --resume"
        ) from error
    if found != wanted:
        raise CheckpointError(
            f"{folder / MODEL}: is of another method ({found.get('type')}) than the run of this "
            f"folder ({wanted.get('type')}), or of other options; put its own file back, or train "
            "again"
        )


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
