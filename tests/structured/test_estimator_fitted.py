"""What the estimator keeps of a fit, whatever is set afterwards."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification

from structured.decoding import Threshold
from structured.estimators import MultiLabelClassifier
from structured.joint import JointExpectedF1
from structured.methods import SPEN, CrossEntropy, Implicit
from structured.model_file import load_models, save_models
from structured.models import ModelConfig
from tests.structured.frames import Frame

DATA: Any = make_multilabel_classification(80, 10, n_classes=4, random_state=0)
X, Y = DATA
NAMES = ["red", "green", "blue", "grey"]
SIZES: dict[str, Any] = {"hidden": (8,), "energy_hidden": (4,), "global_size": 2}


def fitted(method: Any = "cross_entropy", y: Any = Y, X: Any = X, **params: Any) -> Any:
    defaults: dict[str, Any] = {**SIZES, "epochs": 2, "device": "cpu", "random_state": 0}
    return MultiLabelClassifier(method, **{**defaults, **params}).fit(X, y)


def reloaded(classifier: Any, folder: Path) -> Any:
    path = folder / "classifier.safetensors"
    classifier.save(path)
    return MultiLabelClassifier.load(path)


def test_save_after_set_params_writes_what_was_fitted(tmp_path: Path) -> None:
    classifier = fitted("implicit", hidden=[np.int64(8)])
    before = classifier.predict_proba(X)
    classifier.set_params(hidden=(64,), epochs=9, method="spen", decoder="threshold")
    loaded = reloaded(classifier, tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), before)
    assert loaded.fitted_params_ == classifier.fitted_params_ == loaded.get_params(deep=False)
    assert (loaded.hidden, loaded.epochs, loaded.method) == ((8,), 2, "implicit")
    assert classifier.hidden == (64,)


METHODS = {
    "implicit": (Implicit(pretrain_epochs=1), JointExpectedF1(samples=20)),
    "spen": (SPEN(pretrain_epochs=1, energy_epochs=1, steps=2), "tuned"),
    "cross_entropy": ("cross_entropy", "expected_f1"),
}


@pytest.mark.parametrize(("method", "decoder"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("other", ["cross_entropy", "spen", "no method"])
def test_another_method_set_after_fit_changes_nothing_until_the_next_fit(
    method: Any, decoder: Any, other: str, tmp_path: Path
) -> None:
    classifier = fitted(method, decoder=decoder, epochs=3)
    probabilities, sets, score = (
        classifier.predict_proba(X),
        classifier.predict(X),
        classifier.score(X, Y),
    )
    classifier.set_params(method=other, decoder="threshold")
    for found in (
        classifier,
        reloaded(classifier, tmp_path),
        pickle.loads(pickle.dumps(classifier)),
    ):
        np.testing.assert_array_equal(found.predict_proba(X), probabilities)
        np.testing.assert_array_equal(found.predict(X), sets)
        assert found.score(X, Y) == score
        assert found.method_ == classifier.method_


def test_the_next_fit_and_a_clone_take_the_new_parameters() -> None:
    classifier = fitted("implicit").set_params(method="cross_entropy", hidden=(6,))
    copy: Any = clone(classifier)
    assert (copy.method, copy.hidden) == ("cross_entropy", (6,))
    assert not hasattr(copy, "method_")
    classifier.fit(X, Y)
    assert classifier.method_ == CrossEntropy()
    assert classifier.fitted_params_["hidden"] == (6,)


def test_a_method_given_by_name_is_kept_as_the_method_it_was(tmp_path: Path) -> None:
    classifier = fitted("implicit")
    loaded = reloaded(classifier, tmp_path)
    assert loaded.method == "implicit"
    assert loaded.method_ == classifier.method_ == Implicit()


def test_the_best_phase_is_that_of_the_best_epoch_of_all_or_of_the_last_phase_alone(
    tmp_path: Path,
) -> None:
    # So large a step of the second phase that no epoch of it is better than the first one's.
    method = Implicit(pretrain_epochs=2, inner_lr=10.0)
    anywhere, late = (
        fitted(method, last_phase_only=only, epochs=4, average=0.0) for only in (False, True)
    )
    assert anywhere.history_ == late.history_
    assert (anywhere.best_phase_, late.best_phase_) == ("pretraining", "implicit")
    assert anywhere.best_epoch_ <= 2 < late.best_epoch_
    for classifier in (anywhere, late):
        loaded = reloaded(classifier, tmp_path)
        assert loaded.best_phase_ == classifier.best_phase_
        assert loaded.last_phase_only == classifier.last_phase_only


@pytest.mark.parametrize("columns", [NAMES, tuple(NAMES), np.array(NAMES, dtype=object)])
def test_names_of_a_data_frame_of_labels_are_kept_also_in_the_file(
    columns: Any, tmp_path: Path
) -> None:
    classifier = fitted(y=Frame(Y, columns))
    for found in (classifier, reloaded(classifier, tmp_path)):
        assert found.label_names_.dtype == object
        assert list(found.label_names_) == NAMES
    np.testing.assert_array_equal(classifier.predict(X), fitted().predict(X))


def test_labels_without_texts_for_names_have_none(tmp_path: Path) -> None:
    for y in (Y, Frame(Y, range(4)), Frame(Y, ["red", "green", "blue", 3])):
        classifier = fitted(y=y)
        assert classifier.label_names_ is None
        assert reloaded(classifier, tmp_path).label_names_ is None
    assert fitted(y=Frame(Y, NAMES)).fit(X, Y).label_names_ is None


def test_a_file_of_before_method_and_label_names_were_kept_is_read(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    classifier = fitted(Implicit(pretrain_epochs=1), decoder=Threshold(0.4))
    classifier.save(path)
    models, about = load_models(path)
    for key in ("method", "label_names"):
        del about["estimator"]["fitted"][key]
    del about["estimator"]["parameters"]["last_phase_only"]
    sizes = {"features": 10, "labels": 4}
    save_models(path, models, ModelConfig(**SIZES), **sizes, method=classifier.method, about=about)
    loaded = MultiLabelClassifier.load(path)
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    assert loaded.method_ == classifier.method_
    assert loaded.label_names_ is None
    assert loaded.last_phase_only is False


# Multiples of 2 ** -20, so that 1e8 can be added without rounding.
EVEN = np.round(np.random.default_rng(0).normal(size=(200, 4)) * 2**20) / 2**20
SIGNS = (EVEN[:, :3] > 0).astype(int)
FAR = np.array([1e8, 0.0, -1e8, 1e6])
STANDARD: dict[str, Any] = {"standardize": True, "input_dropout": 0.0, "epochs": 5}


def test_standardized_features_far_from_zero_are_learned_as_those_around_it(tmp_path: Path) -> None:
    """As a `StandardScaler`, which computes in double precision, makes the two the same."""
    pair: Any = (EVEN[150:], SIGNS[150:]), (EVEN[150:] + FAR, SIGNS[150:])
    near, far = (
        MultiLabelClassifier(**SIZES, **STANDARD, device="cpu", random_state=0).fit(
            EVEN[:150] + shift, SIGNS[:150], validation=validation
        )
        for shift, validation in zip((0.0, FAR), pair, strict=True)
    )
    expected = near.predict_proba(EVEN)
    assert near.center_ is None
    for found in (far, reloaded(far, tmp_path)):
        np.testing.assert_allclose(found.predict_proba(EVEN + FAR), expected, atol=1e-3)
        assert found.center_ == pytest.approx([1e8, 0.0, -1e8, 1e6], abs=1.0)
    np.testing.assert_array_equal(
        far.predict_proba(sparse.csr_array(EVEN + FAR)), far.predict_proba(EVEN + FAR)
    )


def test_features_that_are_not_standardized_or_are_sparse_or_constant_keep_their_means() -> None:
    far = EVEN + FAR
    constant = np.column_stack([np.full(len(EVEN), 0.1), EVEN])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            fitted(method="cross_entropy", y=SIGNS, X=far, standardize=False),
            fitted(method="cross_entropy", y=SIGNS, X=sparse.csr_array(far), standardize=True),
            fitted(method="cross_entropy", y=SIGNS, X=constant, standardize=True),
        ]
    assert [classifier.center_ for classifier in found] == [None] * 3


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("standardize", [False, True])
def test_features_beyond_single_precision_are_refused_and_not_predicted_from(
    standardize: bool,
) -> None:
    params: dict[str, Any] = {"standardize": standardize}
    huge = np.where(np.arange(len(X))[:, None] == 3, 1e300, X)
    with pytest.raises(ValueError, match="too large for dtype"):
        fitted(X=huge, **params)
    with pytest.raises(ValueError, match="too large for dtype"):
        fitted(**params).predict(huge)
