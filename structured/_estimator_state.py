"""A fitted estimator as plain values, but for its models, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from structured._estimator_rows import values_of_labels
from structured._estimator_settings import parameters_of
from structured.methods import from_dict, to_dict
from structured.models import Models
from structured.named import as_method, decoder_from_dict, decoder_to_dict

if TYPE_CHECKING:
    from structured.estimators import MultiLabelClassifier

C = TypeVar("C", bound="MultiLabelClassifier")


def describe(classifier: MultiLabelClassifier) -> dict[str, Any]:
    """Return what was fitted and with which parameters, whatever the parameters are by now.

    A `random_state` that is no number becomes None.

    Raises:
        TypeError: A parameter is an object of the user's own.
    """
    params, names = dict(classifier.fitted_params_), classifier.label_names_
    center = classifier.center_
    if isinstance(params["random_state"], np.random.RandomState):
        params["random_state"] = None
    if not isinstance(params["method"], str):
        params["method"] = to_dict(params["method"])
    if not isinstance(params["decoder"], str):
        params["decoder"] = decoder_to_dict(params["decoder"])
    fitted = {
        "method": to_dict(classifier.method_),
        "decoder": decoder_to_dict(classifier.decoder_),
        "history": classifier.history_,
        "best_epoch": classifier.best_epoch_,
        "indicators": classifier._indicators,
        "features": classifier.n_features_in_,
        "feature_names": list(getattr(classifier, "feature_names_in_", ())),
        "labels": len(classifier.classes_),
        "label_names": None if names is None else list(names),
        "center": None if center is None else center.tolist(),
    }
    return {"parameters": params, "fitted": fitted}


def restore(cls: type[C], described: dict[str, Any], models: Models) -> C:
    """Return the estimator that `describe` was called on.

    Args:
        cls: its class.
        described: what `describe` returned.
        models: trained.
    """
    params, fitted = dict(described["parameters"]), described["fitted"]
    if not isinstance(params["method"], str):
        params["method"] = from_dict(params["method"])
    if not isinstance(params["decoder"], str):
        params["decoder"] = decoder_from_dict(params["decoder"])
    found = cls(**params)
    found.fitted_params_ = parameters_of(found)
    found.models_ = models
    # Files of before these were kept: a method's name stood for it, labels had no names, and
    # features were rounded as they came.
    kept, names = fitted.get("method"), fitted.get("label_names")
    center = fitted.get("center")
    found.method_ = as_method(params["method"]) if kept is None else from_dict(kept)
    found.label_names_ = None if names is None else np.array(names, dtype=object)
    found.center_ = None if center is None else np.array(center)
    found.decoder_ = decoder_from_dict(fitted["decoder"])
    found.classes_ = values_of_labels(fitted["labels"])
    found.n_features_in_ = fitted["features"]
    if fitted["feature_names"]:
        found.feature_names_in_ = np.array(fitted["feature_names"], dtype=object)
    found.history_ = fitted["history"]
    found.n_iter_ = len(found.history_)
    found.best_epoch_ = fitted["best_epoch"]
    found.best_phase_ = found.history_[found.best_epoch_ - 1]["phase"]
    found._indicators = fitted["indicators"]
    return found
