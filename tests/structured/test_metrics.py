from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, hamming_loss
from torch import Tensor

from structured.metrics import (
    example_f1,
    hamming_accuracy,
    label_f1,
    macro_f1,
    micro_f1,
    subset_accuracy,
)


def bits(seed: int, labels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((12, labels), generator=generator) < 0.3).long()


@given(seed=st.integers(0, 2**32 - 1), labels=st.integers(2, 6))
def test_metrics_agree_with_scikit_learn(seed: int, labels: int) -> None:
    prediction, gold = bits(seed, labels), bits(seed + 1, labels)
    p, g = prediction.numpy(), gold.numpy()

    def sklearn_f1(average: str | None, zero_division: float) -> Any:
        return f1_score(g, p, average=cast(Any, average), zero_division=cast(Any, zero_division))

    assert example_f1(prediction, gold) == pytest.approx(sklearn_f1("samples", 1.0))
    assert micro_f1(prediction, gold) == pytest.approx(sklearn_f1("micro", 1.0))
    for absent in (0.0, 1.0):
        macro = pytest.approx(sklearn_f1("macro", absent))
        assert macro_f1(prediction, gold, absent=absent) == macro
        per_label = torch.as_tensor(sklearn_f1(None, absent))
        torch.testing.assert_close(label_f1(prediction, gold, absent=absent), per_label)
    assert hamming_accuracy(prediction, gold) == pytest.approx(1 - hamming_loss(g, p))
    assert subset_accuracy(prediction, gold) == pytest.approx(accuracy_score(g, p))


def test_two_empty_sets_score_one_and_one_empty_set_scores_zero() -> None:
    empty, full = torch.zeros(1, 3), torch.ones(1, 3)
    assert example_f1(empty, empty) == 1.0
    assert example_f1(empty, full) == example_f1(full, empty) == 0.0


def test_example_averaged_f1_is_not_label_averaged_f1() -> None:
    """The published trap: here one reads 0.5 and the other 0.25."""
    prediction = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]])
    gold = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]])
    assert example_f1(prediction, gold) == 0.5
    assert macro_f1(prediction, gold) == pytest.approx((2 / 3) / 4)
    assert example_f1(prediction, gold) != macro_f1(prediction, gold)


def test_a_single_label_is_still_a_set() -> None:
    assert example_f1(torch.tensor([[1], [0]]), torch.tensor([[1], [1]])) == 0.5


@pytest.mark.parametrize(
    "metric", [example_f1, label_f1, macro_f1, micro_f1, hamming_accuracy, subset_accuracy]
)
def test_soft_predictions_and_wrong_shapes_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="prediction: found entries other than 0 and 1"):
        metric(torch.tensor([[0.5]]), torch.tensor([[1.0]]))
    with pytest.raises(ValueError, match=r"found shape \(1, 2\) for gold of shape \(1, 1\)"):
        metric(torch.zeros(1, 2), torch.zeros(1, 1))
