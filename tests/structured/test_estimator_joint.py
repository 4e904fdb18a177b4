"""The estimator with the joint decoder, which asks the energy about the rows themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.model_selection import GridSearchCV

from structured._estimator_decoding import fit_decoder
from structured.estimators import MultiLabelClassifier
from structured.joint import SCALES, JointExpectedF1
from structured.methods import NCE, SPEN, Implicit, known
from tests.structured.runs import FAST_IMPLICIT, REFIT, VALIDATION, run

DATA: Any = make_multilabel_classification(80, 10, n_classes=4, random_state=0)
X, Y = DATA
METHODS = {
    "implicit": Implicit(pretrain_epochs=1),
    "spen": SPEN(pretrain_epochs=1, energy_epochs=1, steps=2),
    "nce": NCE(pretrain_epochs=1, samples=4, candidates=8),
}


def joint(**params: Any) -> Any:
    defaults: dict[str, Any] = {
        "method": METHODS["implicit"],
        "decoder": JointExpectedF1(samples=40),
        "hidden": (8,),
        "energy_hidden": (4,),
        "global_size": 2,
        "epochs": 3,
        "device": "cpu",
        "random_state": 0,
    }
    return MultiLabelClassifier(**{**defaults, **params})


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_predictions_are_the_sets_of_network_and_energy_together(method: Any) -> None:
    fitted = joint(method=method).fit(X, Y)
    assert fitted.decoder_ == JointExpectedF1(fitted.decoder_.scale, samples=40)
    assert fitted.decoder_.scale in SCALES
    wanted = fitted.decoder_.decode(fitted.models_, np.float32(X)).numpy()
    np.testing.assert_array_equal(fitted.predict(X), wanted)
    found = fitted.predict(sparse.csr_array(X))
    np.testing.assert_array_equal(found, wanted)
    overlap = 2.0 * (wanted * Y).sum(axis=1)
    sizes = (wanted + Y).sum(axis=1)
    f1 = np.where(sizes == 0, 1.0, overlap / np.maximum(sizes, 1))
    assert fitted.score(X, Y) == pytest.approx(f1.mean())


def test_joint_predictions_follow_the_energy() -> None:
    fitted = joint(epochs=1).fit(X, Y)
    fitted.decoder_ = replace(fitted.decoder_, scale=1.0)
    before = fitted.predict(X)

    class OnlyFirst(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return 1e3 * (y - torch.eye(4)[0]).abs().sum(dim=-1)

    fitted.models_ = replace(fitted.models_, energy=OnlyFirst())
    after = fitted.predict(X)
    assert after.sum() < before.sum()
    assert after[:, 0].mean() > 0.9


def test_probabilities_are_those_of_the_method_and_cannot_be_decoded_alone() -> None:
    fitted, plain = joint().fit(X, Y), joint(decoder="expected_f1").fit(X, Y)
    probabilities = fitted.predict_proba(X)
    np.testing.assert_array_equal(probabilities, plain.predict_proba(X))
    with pytest.raises(ValueError, match=r"asks the energy about the rows .* use predict"):
        fitted.decoder_sets(probabilities)


def test_after_a_refit_the_scale_is_that_of_the_models_that_never_saw_the_rows() -> None:
    result, decoder = run(FAST_IMPLICIT, REFIT), JointExpectedF1(samples=20)
    assert result.selection is not None
    gold = torch.from_numpy(VALIDATION.Y.toarray()).float()
    found = fit_decoder(decoder, result, VALIDATION)
    assert found == decoder.fit(result.selection, VALIDATION.X, gold)


@pytest.mark.parametrize("key", [key for key, cls in known().items() if not cls().reweights])
def test_a_method_of_independent_labels_is_refused_before_it_is_trained(key: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"decoder: found the joint one with the method .*, whose energy does not reweight "
        r".*; take decoder=\"expected_f1\"",
    ):
        joint(method=key, decoder="joint", epochs=10**9).fit(X, Y)


def test_an_estimator_that_decodes_jointly_is_saved_and_loaded_and_cloned(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    for decoder in ("joint", JointExpectedF1(samples=30, seed=1)):
        fitted = joint(decoder=decoder).fit(X, Y)
        fitted.save(path)
        loaded: Any = MultiLabelClassifier.load(path)
        copy: Any = clone(fitted)
        assert loaded.get_params() == fitted.get_params() == copy.get_params()
        assert loaded.decoder_ == fitted.decoder_
        np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))


def test_options_of_the_joint_decoder_have_nested_names_and_can_be_searched() -> None:
    classifier = joint(decoder="joint").set_params(decoder__samples=np.int64(20))
    assert classifier.decoder == JointExpectedF1(samples=20)
    search = GridSearchCV(classifier, {"decoder": ["expected_f1", "joint"]}, cv=2).fit(X, Y)
    assert set(search.cv_results_["param_decoder"]) == {"expected_f1", "joint"}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
