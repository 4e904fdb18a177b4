"""From probabilities to figures: every decoder, fitted on validation data alone, on every part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from structured.batches import Rows
from structured.decoding import Decoder, ExpectedF1, FittedDecoder, Threshold, TunedThreshold
from structured.errors import DataError
from structured.joint import JointExpectedF1
from structured.methods.base import Method
from structured.metrics import example_f1, hamming_accuracy, macro_f1, micro_f1, subset_accuracy
from structured.models import Models, evaluating

if TYPE_CHECKING:
    from rich.table import Table

DECODERS: Mapping[str, Decoder] = {
    "threshold 0.5": Threshold(0.5),
    "tuned threshold": TunedThreshold(),
    "expected F1": ExpectedF1(),
}
"""The three decoders that need probabilities alone."""

JOINT = "joint expected F1"
"""The fourth, which asks the energy too: `structured.joint.JointExpectedF1`. For a method whose
labels are independent it is the third."""

COLUMNS = (*DECODERS, JOINT)
"""All decoders, in the order of the tables."""

VALIDATION = "validation"
"""The part that decoders are fitted on."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one decoder on one part, each from 0 to 1, high is good.

    Args:
        example_f1: the mean over examples of the F1 of each one's set; the tables' main figure.
        micro_f1: the F1 of all decisions pooled.
        macro_f1: the mean over labels of each label's F1.
        hamming_accuracy: the share of right decisions; "hamming" in files.
        subset_accuracy: the share of examples whose whole set is right.
    """

    example_f1: float
    micro_f1: float
    macro_f1: float
    hamming_accuracy: float
    subset_accuracy: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values; `from_dict` undoes it."""
        named = asdict(self).items()
        return {"hamming" if name == "hamming_accuracy" else name: value for name, value in named}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Scores:
        """Return what `to_dict` was called on."""
        others = dict(values)
        return cls(hamming_accuracy=others.pop("hamming"), **others)


@dataclass(frozen=True)
class Evaluation:
    """The scores of one trained model, with what a reader must know to compare them.

    Args:
        data: the name of the data set.
        split: the name of the split.
        method: the name of the method.
        seed: the run's seed.
        rows: the rows of each part.
        scores: part -> decoder -> `Scores`.
        thresholds: the threshold of each decoder that has one, as fitted on validation; the scale
            of the energy for the joint decoder.

    Example:
        >>> import torch
        >>> gold = {"validation": torch.eye(3), "test": torch.eye(3)}
        >>> found = evaluate(
        ...     {part: 0.2 + 0.2 * y for part, y in gold.items()}, gold, data="toy", seed=1
        ... )
        >>> found.scores["test"]["tuned threshold"].example_f1
        1.0
        >>> Evaluation.from_dict(found.to_dict()) == found
        True
    """

    data: str
    split: str
    method: str
    seed: int | None
    rows: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Scores]]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Data set, split, method and seed in a line."""
        parts = [self.method, f"{self.data}, split {self.split!r}" if self.split else self.data]
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join([part for part in parts if part] + seed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` undoes it."""
        scores = {
            part: {name: found.to_dict() for name, found in decoders.items()}
            for part, decoders in self.scores.items()
        }
        return asdict(self) | {"scores": scores}

    def to_json(self) -> str:
        """Return indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return what `to_dict` was called on."""
        scores = {
            part: {name: Scores.from_dict(found) for name, found in decoders.items()}
            for part, decoders in values["scores"].items()
        }
        return cls(**{**values, "scores": scores})

    def table(self) -> Table:
        """Return a table to print with `rich`: in percent, a row per part and decoder."""
        from rich import box
        from rich.table import Table
        from rich.text import Text  # for names, in which brackets are no markup

        table = Table(
            title=Text(self.title, style="table.title"),
            title_justify="left",
            caption="percent; Hamming acc.: of labels, subset acc.: of whole rows",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("part, decoder", no_wrap=True)
        for name in ("example-F1", "micro-F1", "macro-F1", "Hamming\nacc.", "subset\nacc."):
            table.add_column(name, justify="right", no_wrap=True)
        for part, decoders in self.scores.items():
            table.add_row(Text(f"{part}, {self.rows[part]} rows"), style="bold")
            for name, found in decoders.items():
                fitted = self.thresholds.get(name)
                shown = name if fitted is None else f"{name} {fitted:.3f}"
                table.add_row(
                    Text(f"  {shown}"), *(f"{100 * v:.2f}" for v in asdict(found).values())
                )
            table.add_section()
        return table


def evaluate(
    probabilities: Mapping[str, Tensor],
    gold: Mapping[str, Any],
    *,
    data: str = "",
    split: str = "",
    method: str = "",
    seed: int | None = None,
    decoders: Mapping[str, Decoder] = DECODERS,
    validation: str = VALIDATION,
) -> Evaluation:
    """Score probabilities under every decoder on every part.

    Args:
        probabilities: part -> ``[N, L]`` in [0, 1].
        gold: the same parts -> gold labels, a tensor or a sparse or dense array ``[N, L]``.
        data: the name of the data set, carried along.
        split: the name of the split, carried along.
        method: the name of the method, carried along.
        seed: the run's seed, carried along.
        decoders: by name; each is fitted on the part `validation` and on nothing else.
        validation: the name of that part.

    Raises:
        DataError: if there is no validation part, or the parts of the two mappings differ.

    Example:
        >>> import torch
        >>> parts = {"validation": torch.tensor([[0.4, 0.1]]), "test": torch.tensor([[0.1, 0.3]])}
        >>> gold = {"validation": torch.tensor([[1, 0]]), "test": torch.tensor([[0, 1]])}
        >>> found = evaluate(parts, gold)
        >>> [round(s.example_f1, 2) for s in found.scores["test"].values()]
        [0.0, 1.0, 0.0]
    """
    if validation not in probabilities:
        raise DataError(
            f"probabilities: found the parts {list(probabilities)}, wanted one called "
            f"{validation!r} to fit the decoders on; carve one out of the training part "
            "(structured.data.carve), never fit on test"
        )
    if probabilities.keys() != gold.keys():
        raise DataError(
            f"gold: found the parts {list(gold)}, wanted those of the probabilities, "
            f"{list(probabilities)}"
        )
    labels = {part: _labels(value) for part, value in gold.items()}
    fitted = {
        name: decoder.fit(probabilities[validation], labels[validation])
        for name, decoder in decoders.items()
    }
    return Evaluation(
        data=data,
        split=split,
        method=method,
        seed=seed,
        rows={part: len(value) for part, value in probabilities.items()},
        scores={
            part: {name: score(decoder, value, labels[part]) for name, decoder in fitted.items()}
            for part, value in probabilities.items()
        },
        thresholds={
            name: decoder.value
            for name, decoder in fitted.items()
            if isinstance(decoder, Threshold) and decoder != decoders[name]
        },
    )


def score(decoder: FittedDecoder, probabilities: Tensor, gold: Tensor) -> Scores:
    """Return the metrics of the sets that a fitted decoder makes.

    Args:
        decoder: fitted on validation.
        probabilities: of labels, ``[N, L]``.
        gold: in {0, 1}, ``[N, L]``.
    """
    return score_sets(decoder.decode(probabilities), gold)


def score_sets(sets: Tensor, gold: Any) -> Scores:
    """Return the metrics of label sets, given predicted and gold ones, ``[N, L]``."""
    gold = _labels(gold)
    return Scores(
        example_f1=example_f1(sets, gold),
        micro_f1=micro_f1(sets, gold),
        macro_f1=macro_f1(sets, gold),
        hamming_accuracy=hamming_accuracy(sets, gold),
        subset_accuracy=subset_accuracy(sets, gold),
    )


def with_joint(
    found: Evaluation,
    method: Method,
    models: Models,
    inputs: Mapping[str, Any],
    gold: Mapping[str, Any],
    *,
    held_out: Models | None = None,
    validation: str = VALIDATION,
) -> Evaluation:
    """Add the scores of the joint decoder to an evaluation.

    Args:
        found: the evaluation of the same parts.
        method: that trained the models; if its energy does not reweight the network's distribution,
            labels are independent and the joint decoder is the expected-F1 decoder.
        models: what is scored.
        inputs: part -> X ``[N, D]``.
        gold: part -> gold labels ``[N, L]``.
        held_out: models that never saw the validation part, where `models` did.
        validation: the name of the part that the scale of the energy is fitted on.
    """
    scores = {part: dict(decoders) for part, decoders in found.scores.items()}
    if not method.reweights:
        for decoders in scores.values():
            decoders[JOINT] = decoders["expected F1"]
        return replace(found, scores=scores)
    fresh = held_out or models
    decoder = JointExpectedF1().fit(fresh, inputs[validation], _labels(gold[validation]))
    for part, decoders in scores.items():
        sets = decoder.decode(fresh if part == validation else models, inputs[part])
        decoders[JOINT] = score_sets(sets, gold[part])
    return replace(found, scores=scores, thresholds={**found.thresholds, JOINT: decoder.scale})


def predict_probabilities(
    method: Method, models: Models, X: Any, *, batch_size: int = 512
) -> Tensor:
    """Return what a method predicts for every row of X; for most one pass of the network.

    Args:
        method: that trained the models.
        models: run in evaluation mode on the device they are on; all modules are left in the mode
            they were in.
        X: inputs, sparse or dense, ``[n, D]``.
        batch_size: rows at a time; bounds the memory.

    Returns:
        Points of the space, probabilities for labels, on the CPU, ``[n, L]``.

    Example:
        >>> import numpy as np
        >>> from structured.models import ModelConfig, build_models
        >>> from structured.methods import CrossEntropy
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> predict_probabilities(CrossEntropy(), models, np.ones((5, 4))).shape
        torch.Size([5, 3])
    """
    device = next((p.device for p in models.network.parameters()), torch.device("cpu"))
    with evaluating(models):
        rows = Rows(X, device).chunks(batch_size)
        return torch.cat([method.predict(models, x).cpu() for x in rows])


def validation_figures(probabilities: Tensor, gold: Tensor) -> dict[str, float]:
    """Return what is watched on validation data, named "validation_" and a name in `MONITORS`.

    Args:
        probabilities: in [0, 1], ``[N, L]``.
        gold: in {0, 1}, ``[N, L]``.

    Example:
        >>> gold = torch.tensor([[1.0, 0.0]])
        >>> list(validation_figures(torch.tensor([[0.4, 0.2]]), gold))[:2]
        ['validation_cross_entropy', 'validation_f1_half']
    """
    # Saturated probabilities of exactly 0 or 1 would make the logarithm infinite.
    p = probabilities.double().clamp(1e-7, 1 - 1e-7)
    entropy = functional.binary_cross_entropy(p, gold.double(), reduction="none")
    figures = {"validation_cross_entropy": float(entropy.sum(dim=-1).mean())}
    for name, decoder in zip(("half", "tuned", "expected"), DECODERS.values(), strict=True):
        sets = decoder.fit(probabilities, gold).decode(probabilities)
        figures[f"validation_f1_{name}"] = example_f1(sets, gold)
    return figures


def _labels(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.float()
    rows = Rows(value)
    return rows.take(range(len(rows)))
