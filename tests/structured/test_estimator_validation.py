"""The estimator with validation rows of the caller's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_multilabel_classification
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from structured.data import MultiLabelData
from structured.decoding import TunedThreshold
from structured.errors import DataError
from structured.estimators import MultiLabelClassifier
from structured.methods import CrossEntropy
from structured.model_file import weights_of
from structured.models import ModelConfig
from structured.train_config import TrainConfig
from structured.training import train
from tests.structured.frames import Frame

DATA: Any = make_multilabel_classification(120, 10, n_classes=4, random_state=0)
X, Y = DATA[0][:80], DATA[1][:80]
XV, YV = DATA[0][80:], DATA[1][80:]
NAMES = ["red", "green", "blue", "grey"]


def classifier(**params: Any) -> Any:
    defaults: dict[str, Any] = {
        "hidden": (8,),
        "decoder": "tuned",
        "epochs": 2,
        "device": "cpu",
        "random_state": 0,
    }
    return MultiLabelClassifier(**{**defaults, **params})


@pytest.mark.parametrize("refit", [False, True])
def test_given_validation_rows_all_of_x_is_trained_on_and_they_alone_validate(refit: bool) -> None:
    found = classifier(refit=refit).fit(X, Y, validation=(XV, YV))
    seed = int(np.random.RandomState(0).randint(2**31 - 1))  # the one that `fit` draws
    by_hand = train(
        CrossEntropy(),
        MultiLabelData(X, Y),
        MultiLabelData(XV, YV),
        TrainConfig(epochs=2, device="cpu", seed=seed, refit=refit),
        model=ModelConfig(hidden=(8,)),
    )
    weights, wanted = (weights_of(models)["network"] for models in (found.models_, by_hand.models))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert found.history_ == list(by_hand.history)
    gold = torch.from_numpy(YV).float()
    assert found.decoder_ == TunedThreshold().fit(by_hand.predict_held_out(np.float32(XV)), gold)


def test_without_validation_rows_a_share_of_x_validates_as_ever() -> None:
    alone, none = classifier().fit(X, Y), classifier().fit(X, Y, validation=None)
    assert none.history_ == alone.history_
    assert none.history_ != classifier().fit(X, Y, validation=(XV, YV)).history_


@pytest.mark.parametrize("wrap", [sparse.csr_array, sparse.coo_array, np.ndarray.tolist])
def test_validation_rows_may_be_of_another_kind_of_table(wrap: Any) -> None:
    dense = classifier(refit=True).fit(X, Y, validation=(XV, YV))
    found = classifier(refit=True).fit(X, Y, validation=[wrap(XV), wrap(YV)])
    np.testing.assert_allclose(found.predict_proba(X), dense.predict_proba(X), atol=1e-6)
    assert not sparse.issparse(found.predict(X))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (XV, r"found a ndarray, wanted a pair, .* \(X_validation, y_validation\)"),
        ((XV, YV, YV), "found a tuple, wanted a pair"),
        (0.2, "found a float, wanted a pair"),
        ((XV[:, :3], YV), "X has 3 features, but MultiLabelClassifier is expecting 10"),
        ((XV, YV[:, :3]), "found 3 labels, wanted those of y, 4"),
        ((XV, YV[:5]), "inconsistent numbers of samples"),
        ((XV[:0], YV[:0]), "0 sample"),
        ((XV, YV[:, 0]), "one class per row"),
        ((XV, [{0}, {1, 2}] * 20), "MultiLabelBinarizer"),
        ((XV, YV * 2), r"Y\[\d+, \d+\] is 2; labels are 0 or 1"),
        ((np.full_like(XV, np.nan), YV), "NaN"),
    ],
)
def test_validation_rows_that_do_not_fit_are_refused_by_name(validation: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^validation: .*{message}"):
        classifier(epochs=10**9).fit(X, Y, validation=validation)


def test_validation_labels_in_another_order_are_refused() -> None:
    turned = Frame(YV, ["red", "blue", "green", "grey"])
    with pytest.raises(
        DataError, match=r"validation: found the label 'blue' in column 1, where y has 'green'"
    ):
        classifier(epochs=10**9).fit(X, Frame(Y, NAMES), validation=(XV, turned))
    for y, own in ((Y, turned), (Frame(Y, NAMES), YV), (Frame(Y, NAMES), Frame(YV, NAMES))):
        classifier(epochs=1).fit(X, y, validation=(XV, own))


def test_validation_rows_reach_the_estimator_through_pipelines_and_searches() -> None:
    alone = classifier().fit(X, Y, validation=(XV, YV))
    pipeline = make_pipeline(FunctionTransformer(), classifier())
    found: Any = pipeline.fit(X, Y, multilabelclassifier__validation=(XV, YV))[-1]
    assert found.history_ == alone.history_
    search = GridSearchCV(classifier(), {"epochs": [1, 2]}, cv=2)
    best: Any = search.fit(X, Y, validation=(XV, YV)).best_estimator_
    assert best.history_ == alone.history_[: best.epochs]
