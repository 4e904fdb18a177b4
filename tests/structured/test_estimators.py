from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    get_scorer,
    log_loss,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from structured.decoding import ExpectedF1, Threshold, TunedThreshold
from structured.errors import CheckpointError
from structured.estimators import MultiLabelClassifier
from structured.methods import ContrastiveDivergence, CrossEntropy, Implicit, Margin, known
from structured.model_file import save_models
from structured.models import ModelConfig, build_models
from structured.named import DECODERS
from structured.train_config import TrainConfig

SMALL: dict[str, Any] = {
    "hidden": (8,),
    "dropout": 0.0,
    "input_dropout": 0.0,
    "energy_hidden": (4,),
    "global_size": 2,
    "epochs": 3,
    "device": "cpu",
    "random_state": 0,
}
DATA: Any = make_multilabel_classification(120, 10, n_classes=4, random_state=0)
X, Y = DATA

METHODS_TO_TRY = {
    "cross_entropy": CrossEntropy(lr=1e-2),
    "implicit": Implicit(pretrain_epochs=1, inner_lr=1e-2),
}

NO_INDICATORS = "y is a column of the classes 1 and 2, which are no indicators and are refused"
ONE_CLASS_PER_ROW = "y has one class per row, and predictions of one class per row are asked for"
EXPECTED_FAILURES = {
    "check_estimators_dtypes": NO_INDICATORS,
    "check_classifier_data_not_an_array": NO_INDICATORS,
    "check_fit2d_1feature": NO_INDICATORS,
    "check_estimator_sparse_array": ONE_CLASS_PER_ROW,
    "check_estimator_sparse_matrix": ONE_CLASS_PER_ROW,
    "check_classifiers_classes": ONE_CLASS_PER_ROW,
    "check_classifiers_train": ONE_CLASS_PER_ROW,
}
NOT_APPLICABLE = {
    "check_array_api_input": "the environment variable SCIPY_ARRAY_API is not set",
    "check_classifiers_multilabel_output_format_decision_function": "there is no decision function",
}


class OfTwoClasses(MultiLabelClassifier):
    """Makes indicators of a column of two classes, for the checks that have nothing else."""

    def fit(self, X: Any, y: Any, **unknown: Any) -> MultiLabelClassifier:
        return super().fit(X, (np.asarray(y) == np.max(np.asarray(y))).astype(int), **unknown)


def small(**params: Any) -> Any:
    return MultiLabelClassifier(**{**SMALL, **params})


def by_status(estimator: Any, expected: dict[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"passed": {}, "failed": {}, "xfail": {}, "skipped": {}}
    for result in estimator_checks.check_estimator(
        estimator, expected_failed_checks=expected, on_skip=None, on_fail=None
    ):
        found[result["status"]][result["check_name"]] = result["exception"]
    return found


@pytest.mark.parametrize("method", METHODS_TO_TRY.values(), ids=METHODS_TO_TRY)
def test_the_checks_of_scikit_learn_pass_but_for_those_of_single_outputs(method: Any) -> None:
    # The checks compare predictions with probabilities rounded at one half.
    found = by_status(small(method=method, decoder="threshold"), EXPECTED_FAILURES)
    assert not found["failed"]
    assert found["xfail"].keys() == EXPECTED_FAILURES.keys()
    assert found["skipped"].keys() == NOT_APPLICABLE.keys()
    assert len(found["passed"]) > 40


@pytest.mark.parametrize("name", ["check_estimators_dtypes", "check_fit2d_1feature"])
def test_checks_whose_classes_are_no_indicators_pass_once_they_are(name: str) -> None:
    check = getattr(estimator_checks, name)
    check("MultiLabelClassifier", OfTwoClasses(**{**SMALL, "decoder": "threshold"}))


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_scorers_of_probabilities_see_labels_however_few_there_are(labels: int) -> None:
    found, gold = small(epochs=1).fit(X, Y[:, :labels]), Y[:, :labels]
    probabilities = found.predict_proba(X)
    assert found.classes_.tolist() == [[0, 1]] * labels
    expected = {
        "roc_auc": roc_auc_score(gold, probabilities),
        "average_precision": average_precision_score(gold, probabilities),
    }
    for scoring, value in expected.items():
        assert get_scorer(scoring)(found, X, gold) == pytest.approx(value), scoring
    predicted = cross_val_predict(small(epochs=1), X, gold, cv=2, method="predict_proba")
    assert np.asarray(predicted).shape == gold.shape
    scores = cross_val_score(small(epochs=1), X, gold, cv=2, scoring="roc_auc")
    assert np.isfinite(scores).all()


# scikit-learn warns wherever several labels are independent.
@pytest.mark.filterwarnings("ignore:The y_p.* values do not sum to one")
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_the_log_loss_that_a_scorer_gives_is_that_of_the_probabilities(labels: int) -> None:
    found, gold = small(epochs=1).fit(X, Y[:, :labels]), Y[:, :labels]
    value = get_scorer("neg_log_loss")(found, X, gold)
    assert value == pytest.approx(-log_loss(gold, found.predict_proba(X)))


def test_the_defaults_are_those_of_the_configurations_they_stand_for() -> None:
    params = MultiLabelClassifier().get_params()
    sizes = vars(ModelConfig())
    training = vars(TrainConfig())
    shared = [name for name in params if name in training]
    assert {name: params[name] for name in sizes} == sizes
    assert {name: params[name] for name in shared} == {name: training[name] for name in shared}
    assert {"epochs", "batch_size", "patience", "monitor", "device"} <= set(shared)


@pytest.mark.parametrize("method", METHODS_TO_TRY.values(), ids=METHODS_TO_TRY)
def test_sparse_and_dense_tables_give_the_same_predictions(method: Any) -> None:
    dense = small(method=method).fit(X, Y)
    expected = dense.predict(X)
    for container in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        found = small(method=method).fit(container(X), container(Y))
        predicted = found.predict(container(X))
        assert sparse.issparse(predicted)
        np.testing.assert_array_equal(predicted.toarray(), expected)
        np.testing.assert_allclose(found.predict_proba(container(X)), dense.predict_proba(X))
        assert found.score(container(X), container(Y)) == dense.score(X, Y)


def test_predictions_have_the_type_of_the_labels_they_were_fitted_on() -> None:
    for dtype in (bool, np.int8, np.int64, np.float64):
        found = small(epochs=1).fit(X, Y.astype(dtype)).predict(X)
        assert found.dtype == dtype
        assert set(np.unique(found.astype(int))) <= {0, 1}


def test_score_is_the_example_f1_of_the_predictions_weighted_if_asked_for() -> None:
    classifier = small().fit(X, Y)
    weights = np.arange(120.0)
    predicted = classifier.predict(X)
    for weight in (None, weights):
        found = classifier.score(X, Y, sample_weight=weight)
        options: Any = {"average": "samples", "zero_division": 1.0, "sample_weight": weight}
        assert found == pytest.approx(f1_score(Y, predicted, **options))


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "joint"])
def test_a_decoder_by_name_is_that_decoder_fitted_on_validation_rows(name: str) -> None:
    by_name, by_object = (small(decoder=d).fit(X, Y) for d in (name, DECODERS[name]))
    assert by_name.decoder_ == by_object.decoder_
    decoded = by_name.decoder_.decode(torch.from_numpy(by_name.predict_proba(X)))
    np.testing.assert_array_equal(by_name.predict(X), decoded.numpy())


def test_one_seed_gives_one_model_and_another_seed_another() -> None:
    first, again, other = (small(random_state=seed).fit(X, Y) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    assert np.abs(first.predict_proba(X) - other.predict_proba(X)).max() > 1e-3


def test_fitting_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    small(epochs=1).fit(X, Y)
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_weights_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="found sample_weight; training weights all rows alike"):
        small().fit(X, Y, sample_weight=np.ones(120))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y[:, 0], "one class per row"),
        ([{0}, {1, 2}] * 60, "MultiLabelBinarizer"),
        ([[0], [1, 2]] * 60, "MultiLabelBinarizer"),
        (Y * 2, "labels are 0 or 1"),
        (np.where(Y, 1.0, np.nan), "NaN"),
        (Y[:100], "inconsistent numbers of samples"),
        (Y / 2, "continuous"),
    ],
    ids=["1-d", "sets", "lists", "two", "nan", "short", "continuous"],
)
def test_labels_that_are_no_indicators_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().fit(X, labels)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "svm"}, "method: found 'svm', wanted one of 'cross_entropy', 'implicit'"),
        ({"decoder": "best"}, "decoder: found 'best', wanted one of 'threshold'"),
        ({"decoder": None}, "decoder: found None"),
        ({"validation_fraction": 1.0}, "fraction must be between 0 and 1"),
        ({"epochs": 0}, "epochs: found 0"),
        ({"hidden": (0,)}, "hidden: found"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_fit(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(**params).fit(X, Y)


def test_score_refuses_labels_of_another_width() -> None:
    with pytest.raises(ValueError, match="y has 3 labels; fit had 4"):
        small(epochs=1).fit(X, Y).score(X, Y[:, :3])


def test_parameters_of_methods_and_decoders_have_nested_names() -> None:
    classifier = small(method=Implicit(primary=Margin()), decoder=Threshold(0.4))
    params = classifier.get_params()
    assert params["method__primary__samples"] == 1
    assert params["decoder__value"] == 0.4
    classifier.set_params(method__inner_steps=np.int64(2), decoder__value=0.3, epochs=4)
    assert classifier.method == Implicit(primary=Margin(), inner_steps=2)
    assert classifier.decoder == Threshold(0.3)
    assert classifier.epochs == 4
    assert "method__inner_steps" not in classifier.get_params(deep=False)


def test_a_nested_name_makes_the_object_of_a_method_given_by_name() -> None:
    classifier = small(method="implicit").set_params(method__outer_lr=0.1)
    assert classifier.method == Implicit(outer_lr=0.1)
    assert small().set_params(method="implicit", method__ce_weight=2.0).method == Implicit(
        ce_weight=2.0
    )


@pytest.mark.parametrize(
    "name", ["nothing", "method__nothing", "method__lr__nothing", "epochs__nothing"]
)
def test_a_parameter_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"nothing|epochs"):
        small(method=CrossEntropy()).set_params(**{name: 1})


def test_a_clone_has_the_parameters_and_no_fit() -> None:
    fitted = small(method=METHODS_TO_TRY["implicit"]).fit(X, Y)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(copy, "models_")


def test_the_estimator_works_in_a_pipeline_of_texts() -> None:
    texts = ["red green", "green blue", "blue red", "red", "blue"] * 10
    words = ("red", "green", "blue")
    labels = np.array([[word in text for word in words] for text in texts])
    pipeline = make_pipeline(
        TfidfVectorizer(),
        small(epochs=40, method=CrossEntropy(lr=0.05), patience=None, validation_fraction=0.2),
    )
    pipeline.set_params(multilabelclassifier__method__weight_decay=1e-4)
    assert pipeline.fit(texts, labels).score(texts, labels) > 0.95


def test_the_estimator_works_in_a_grid_search_over_nested_parameters() -> None:
    pipeline = make_pipeline(StandardScaler(), small())
    grid = {
        "multilabelclassifier__method": ["cross_entropy", CrossEntropy()],
        "multilabelclassifier__epochs": np.array([1, 3]),
        "multilabelclassifier__method__lr": [1e-5, 1e-1],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    assert search.best_params_["multilabelclassifier__method__lr"] == 1e-1
    assert search.predict(X).shape == Y.shape


def test_the_estimator_works_in_cross_validation_also_with_sparse_labels() -> None:
    classifier = small()
    probabilities: Any = cross_val_predict(classifier, X, Y, cv=3, method="predict_proba")
    assert probabilities.shape == Y.shape
    dense = cross_val_predict(classifier, X, Y, cv=3)
    found: Any = cross_val_predict(classifier, sparse.csr_array(X), sparse.csr_array(Y), cv=3)
    np.testing.assert_array_equal(found.toarray(), dense)
    assert cross_val_score(classifier, X, Y, cv=3).shape == (3,)


@pytest.mark.parametrize("decoder", ["expected_f1", "tuned", Threshold(0.3), TunedThreshold()])
@pytest.mark.parametrize("method", METHODS_TO_TRY.values(), ids=METHODS_TO_TRY)
def test_save_and_load_give_the_same_estimator(method: Any, decoder: Any, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    fitted = small(method=method, decoder=decoder).fit(X, Y)
    fitted.save(path)
    loaded: Any = MultiLabelClassifier.load(path)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert loaded.predict(X).dtype == fitted.predict(X).dtype
    assert loaded.decoder_ == fitted.decoder_
    assert (loaded.n_iter_, loaded.best_epoch_) == (fitted.n_iter_, fitted.best_epoch_)
    assert loaded.history_ == fitted.history_
    with pytest.raises(ValueError, match="features"):
        loaded.predict(X[:, :3])


def test_a_saved_file_is_safetensors_and_keeps_names_and_sparsity(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    params = {"random_state": np.random.RandomState(0), "hidden": [np.int64(8)], "epochs": 1}
    fitted = small(**params).fit(X, sparse.csr_array(Y))
    # What `fit` notes where the table has names.
    fitted.feature_names_in_ = np.array([f"feature {k}" for k in range(10)], dtype=object)
    fitted.save(path)
    assert load_file(path)
    loaded: Any = MultiLabelClassifier.load(path)
    assert loaded.random_state is None
    assert list(loaded.feature_names_in_) == list(fitted.feature_names_in_)
    del loaded.feature_names_in_
    assert sparse.issparse(loaded.predict(X))


def test_what_only_pickle_could_save_is_refused(tmp_path: Path) -> None:
    class Mine:
        def fit(self, probabilities: torch.Tensor, y: torch.Tensor) -> Threshold:
            return Threshold(0.3)

    fitted = small(epochs=1, decoder=Mine()).fit(X, Y)
    assert fitted.predict(X).shape == Y.shape
    with pytest.raises(TypeError, match=r"decoder: found .*Mine"):
        fitted.save(tmp_path / "classifier.safetensors")
    assert not os.listdir(tmp_path)


def test_load_refuses_a_cut_file_and_the_model_of_another(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    small(epochs=1).fit(X, Y).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cut short"):
        MultiLabelClassifier.load(path)
    config = ModelConfig(hidden=(4,))
    save_models(path, build_models(3, 2, config, seed=0), config, features=3, labels=2)
    with pytest.raises(CheckpointError, match="no MultiLabelClassifier saved"):
        MultiLabelClassifier.load(path)


def test_a_fitted_estimator_can_be_sent_to_another_process() -> None:
    fitted = small(method=METHODS_TO_TRY["implicit"]).fit(X, Y)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict(X), fitted.predict(X))


def test_history_and_models_can_be_studied_after_fit() -> None:
    fitted = small(method=METHODS_TO_TRY["implicit"], patience=None).fit(X, Y)
    assert fitted.n_iter_ == 3
    assert [record["phase"] for record in fitted.history_] == [
        "pretraining",
        "implicit",
        "implicit",
    ]
    assert 1 <= fitted.best_epoch_ <= 3
    energy: Any = fitted.models_.energy
    assert energy.label_hessian(torch.from_numpy(Y).float()).shape == (4, 4)


def test_methods_by_name_are_the_defaults() -> None:
    assert known()["cross_entropy"]() == CrossEntropy()
    assert known()["implicit"]() == Implicit()
    assert Implicit(primary=ContrastiveDivergence()) != Implicit()
    assert DECODERS["expected_f1"] == ExpectedF1()
