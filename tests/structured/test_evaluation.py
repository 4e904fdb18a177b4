"""Evaluation: three decoders, fitted on validation alone, and figures that say where from."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import sparse
from torch import Tensor, nn

from structured.decoding import ExpectedF1, Threshold, TunedThreshold
from structured.errors import DataError
from structured.evaluation import (
    DECODERS,
    Evaluation,
    Scores,
    evaluate,
    predict_probabilities,
    validation_figures,
)
from structured.methods import CrossEntropy
from structured.metrics import example_f1
from structured.models import ModelConfig, Models, build_models
from structured.spaces import Labels
from structured.train_config import MONITORS


def _random(rows: int, seed: int, labels: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(rows, labels, generator=generator, dtype=torch.float64)
    return probabilities, (torch.rand(rows, labels, generator=generator) < probabilities).float()


def _parts(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    found = {part: _random(12, seed + i) for i, part in enumerate(("train", "validation", "test"))}
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}


def test_every_part_is_scored_under_the_three_decoders() -> None:
    found = evaluate(*_parts())
    assert list(found.scores) == ["train", "validation", "test"]
    for decoders in found.scores.values():
        assert list(decoders) == ["threshold 0.5", "tuned threshold", "expected F1"]
    assert [type(decoder) for decoder in DECODERS.values()] == [
        Threshold,
        TunedThreshold,
        ExpectedF1,
    ]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_scores_are_those_of_decoders_fitted_on_validation(seed: int) -> None:
    probabilities, gold = _parts(seed)
    found = evaluate(probabilities, gold)
    for name, decoder in DECODERS.items():
        fitted = decoder.fit(probabilities["validation"], gold["validation"])
        wanted = example_f1(fitted.decode(probabilities["test"]), gold["test"])
        assert found.scores["test"][name].example_f1 == wanted


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_gold_labels_of_other_parts_change_no_threshold_and_no_other_score(seed: int) -> None:
    probabilities, gold = _parts(seed)
    first = evaluate(probabilities, gold)
    second = evaluate(probabilities, gold | {"test": 1.0 - gold["test"]})
    assert first.thresholds == second.thresholds
    assert first.scores["validation"] == second.scores["validation"]


def test_the_tuned_threshold_is_reported_and_is_the_best_on_validation() -> None:
    probabilities, gold = _parts(3)
    found = evaluate(probabilities, gold)
    scores = found.scores["validation"]
    assert list(found.thresholds) == ["tuned threshold"]
    assert scores["tuned threshold"].example_f1 >= scores["threshold 0.5"].example_f1
    again = Threshold(found.thresholds["tuned threshold"]).decode(probabilities["validation"])
    assert example_f1(again, gold["validation"]) == scores["tuned threshold"].example_f1


def test_scores_of_a_known_prediction_are_those_computed_by_hand() -> None:
    gold = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    probabilities = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.1]])
    found = evaluate({"validation": probabilities}, {"validation": gold})
    scores = found.scores["validation"]["threshold 0.5"]
    wanted = Scores(
        example_f1=(2 / 3 + 1) / 2,
        micro_f1=2 / 3,
        macro_f1=1 / 3,
        hamming_accuracy=5 / 6,
        subset_accuracy=1 / 2,
    )
    assert asdict(scores) == pytest.approx(asdict(wanted))


def test_gold_labels_may_be_tensors_or_sparse_or_dense_arrays() -> None:
    probabilities, gold = _parts()
    wanted = evaluate(probabilities, gold)
    for convert in (np.asarray, sparse.csr_array, lambda y: sparse.csr_array(y).astype(np.int8)):
        assert evaluate(probabilities, {k: convert(v) for k, v in gold.items()}) == wanted


def test_without_a_validation_part_nothing_is_evaluated() -> None:
    probabilities, gold = _parts()
    del probabilities["validation"]
    with pytest.raises(DataError, match=r"wanted one called 'validation' .* never fit on test"):
        evaluate(probabilities, gold)


def test_parts_that_do_not_agree_are_refused() -> None:
    probabilities, gold = _parts()
    del gold["test"]
    with pytest.raises(DataError, match=r"gold: found the parts \['train', 'validation'\]"):
        evaluate(probabilities, gold)


def test_an_evaluation_goes_through_json_unchanged() -> None:
    found = evaluate(*_parts(), data="bibtex", split="split", method="cross-entropy", seed=2)
    assert Evaluation.from_dict(json.loads(found.to_json())) == found


def test_files_have_the_hamming_accuracy_under_the_key_they_always_had() -> None:
    for decoders in evaluate(*_parts()).to_dict()["scores"].values():
        for scores in decoders.values():
            assert list(scores) == [
                "example_f1",
                "micro_f1",
                "macro_f1",
                "hamming",
                "subset_accuracy",
            ]


def test_the_table_names_data_set_split_method_seed_rows_and_threshold() -> None:
    found = evaluate(*_parts(), data="bibtex", split="split3", method="implicit", seed=2)
    out = io.StringIO()
    Console(file=out, width=80).print(found.table())
    text = out.getvalue()
    for part in ("bibtex", "'split3'", "implicit", "seed 2", "test, 12 rows", "example-F1"):
        assert part in text
    assert f"tuned threshold {found.thresholds['tuned threshold']:.3f}" in text
    assert f"{100 * found.scores['test']['expected F1'].example_f1:.2f}" in text
    assert evaluate(*_parts(), data="toy").title == "toy"


SMALL = ModelConfig(hidden=(4,), energy_hidden=(3,), global_size=2)


def test_prediction_is_one_forward_pass_in_batches_without_energy_or_dropout() -> None:
    models = build_models(5, 3, SMALL, seed=0)

    class NoEnergy(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            raise AssertionError("the energy was asked")

    without = Models(models.space, models.network, NoEnergy())
    X = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    calls: list[int] = []
    models.network.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    found = predict_probabilities(CrossEntropy(), without, sparse.csr_array(X), batch_size=3)
    assert calls == [3, 3, 1]
    wanted = torch.sigmoid(models.network.eval()(torch.from_numpy(X)))
    assert torch.allclose(found, wanted.detach())
    assert not found.requires_grad


def test_prediction_leaves_every_module_in_its_mode() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    network[1].eval()
    predict_probabilities(CrossEntropy(), Models(Labels(1), network), np.ones((2, 2)))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)


def test_validation_figures_are_those_that_can_be_monitored() -> None:
    probabilities, gold = _random(20, 1)
    figures = validation_figures(probabilities, gold)
    # The joint figure needs the energy: the trainer adds it where it is watched.
    assert figures.keys() == {f"validation_{name}" for name in MONITORS if name != "f1_joint"}
    wanted = -(gold * probabilities.log() + (1 - gold) * (1 - probabilities).log()).sum(-1).mean()
    assert figures["validation_cross_entropy"] == pytest.approx(float(wanted))
    found = evaluate({"validation": probabilities}, {"validation": gold}).scores["validation"]
    assert [figures[f"validation_f1_{name}"] for name in ("half", "tuned", "expected")] == [
        scores.example_f1 for scores in found.values()
    ]


def test_saturated_probabilities_have_a_finite_cross_entropy() -> None:
    figures = validation_figures(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert 30 < figures["validation_cross_entropy"] < 40
