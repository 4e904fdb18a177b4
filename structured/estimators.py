"""The trained methods as a scikit-learn estimator."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
)

from structured._estimator_decoding import AnyDecoder, check_decoder, decode_rows, fit_decoder
from structured._estimator_rows import (
    Center,
    column_names,
    prediction_rows,
    training_rows,
    validation_rows,
    values_of_labels,
)
from structured._estimator_settings import model_config, parameters_of, train_config
from structured._estimator_state import describe, restore
from structured._indicators import check_indicators
from structured._parameters import nested_fields, plain, with_fields
from structured.costs import soft_f1
from structured.data import carve
from structured.errors import CheckpointError
from structured.evaluation import predict_probabilities
from structured.joint import JointExpectedF1
from structured.methods import Method
from structured.model_file import load_models, save_models
from structured.named import as_decoder, as_method
from structured.training import train

ArrayLike: TypeAlias = Any


class MultiLabelClassifier(ClassifierMixin, BaseEstimator):
    """A network that predicts sets of labels, trained with cross-entropy or by a learned energy.

    A part of the training rows is set aside for validation, unless `fit` is given rows for that:
    it decides when to stop, and the decoder is fitted on it. Prediction is the method's own, for
    most methods one forward pass of the network; the joint decoder asks the energy, too. Rows are
    weighted alike: `fit` takes no `sample_weight`.

    Besides the parameters below, those of a `method` or `decoder` object have nested names:
    ``method__outer_lr``, ``method__primary__samples``, ``decoder__value``. Setting one of a method
    or decoder given by name makes the object first.

    Args:
        method: a name of `structured.methods.known`, such as "implicit", or such an object.
        hidden: sizes of the hidden layers of the network; a number is one layer.
        dropout: the probability of dropping a hidden unit in training.
        input_dropout: the probability of dropping an input in training.
        activation: of the network; a name in `structured.models.ACTIVATIONS`.
        energy_hidden: sizes of the hidden layers of the energy's f(x); None for the network's.
        energy_activation: of f; None for that of the network.
        global_size: rows of the energy's global term.
        cardinality: the largest number of labels with a value of its own in the energy's term on
            how many there are; 0 leaves the term out.
        standardize: scale the features inside the model, as a `StandardScaler` before it would;
            see `center_`.
        epochs: the most epochs.
        batch_size: rows of a minibatch.
        patience: epochs without improvement on validation after which training stops; None never
            stops early.
        monitor: what is watched on validation; a name in `structured.train_config.MONITORS`.
        last_phase_only: keep the best weights of the method's last phase. By default they are of
            the best epoch of all, and a model may be its own pretraining: see `best_phase_`.
        average: decay of the running average of the weights, which is validated and kept; 0 keeps
            the weights as they are.
        refit: after the best epoch is known, train anew for so long on all rows, those of
            validation included.
        validation_fraction: the share of the training rows set aside, between 0 and 1; without
            effect where `fit` is given validation rows.
        decoder: "threshold" (at 0.5), "tuned" (one threshold, the best for example-F1 on
            validation), "expected_f1", "joint" (expected F1 under network and energy together, for
            methods that have `reweights`; others are refused by `fit`), a
            `structured.decoding.Decoder`, or a `structured.joint.JointExpectedF1`.
        device: "auto" takes an accelerator if there is one; or "cpu", "cuda", ...
        random_state: decides the validation rows, the initial network and all noise.
        verbose: whether `fit` shows a progress bar.

    What was fitted stays as it is until the next `fit`: `set_params` alone changes neither
    predictions nor what `save` writes.

    Attributes:
        classes_: the values of each label, a row ``[0, 1]`` for each, ``[L, 2]``. So scorers of
            scikit-learn see a target of many labels for any L, as with `MultiOutputClassifier`;
            numbers of labels would look like two classes where L is 2.
        label_names_: their names ``[L]``, where y was a data frame; else None.
        models_: `structured.models.Models`, trained; the energy can be studied here.
        method_: the method that trained them, and predicts.
        decoder_: the fitted decoder.
        center_: what is subtracted from the features in double precision, before they are rounded
            for `models_`, ``[D]``: the mean of each dense feature whose mean is over 1000
            deviations from 0, and 0 for the others. None without any, or without `standardize`.
        fitted_params_: the parameters by name as they were in `fit`.
        history_: a record per epoch, see `structured.training.RunResult`.
        n_iter_: epochs trained.
        best_epoch_: the epoch, counted from 1, whose weights were kept.
        best_phase_: what the method did in that epoch. "pretraining" says that no later epoch was
            better, so that the model is its own pretraining.
        n_features_in_: features seen in `fit`, D.
        feature_names_in_: their names ``[D]``, where X had names.

    Example:
        >>> from sklearn.datasets import make_multilabel_classification
        >>> X, y = make_multilabel_classification(200, 20, n_classes=5, random_state=0)
        >>> classifier = MultiLabelClassifier(hidden=(64,), epochs=20, device="cpu", random_state=0)
        >>> classifier.fit(X, y).predict(X[:3]).shape
        (3, 5)
    """

    # Set by scikit-learn's `validate_data`.
    n_features_in_: int
    feature_names_in_: NDArray[Any]

    def __init__(
        self,
        method: str | Method = "cross_entropy",
        *,
        hidden: tuple[int, ...] = (1024,),
        dropout: float = 0.5,
        input_dropout: float = 0.5,
        activation: str = "relu",
        energy_hidden: tuple[int, ...] | None = (150, 150),
        energy_activation: str | None = "relu",
        global_size: int = 16,
        cardinality: int = 64,
        standardize: bool = False,
        epochs: int = 100,
        batch_size: int = 32,
        patience: int | None = 10,
        monitor: str = "f1_expected",
        last_phase_only: bool = False,
        average: float = 0.999,
        refit: bool = False,
        validation_fraction: float = 0.1,
        decoder: str | AnyDecoder = "expected_f1",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.activation = activation
        self.energy_hidden = energy_hidden
        self.energy_activation = energy_activation
        self.global_size = global_size
        self.cardinality = cardinality
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.monitor = monitor
        self.last_phase_only = last_phase_only
        self.average = average
        self.refit = refit
        self.validation_fraction = validation_fraction
        self.decoder = decoder
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.single_output = False
        tags.target_tags.multi_output = True
        assert tags.classifier_tags is not None
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Args:
            deep: also the fields of a `method` or `decoder` object, by their nested names.
        """
        params = super().get_params(deep=deep)
        if deep:
            for name in ("method", "decoder"):
                params |= nested_fields(name, getattr(self, name))
        return params

    def set_params(self, **params: Any) -> MultiLabelClassifier:
        """Set parameters by name, those of a `method` or `decoder` object by their nested names.

        Raises:
            ValueError: There is no such parameter.
        """
        nested = {key: value for key, value in params.items() if "__" in key}
        super().set_params(**{key: value for key, value in params.items() if key not in nested})
        within: dict[str, dict[str, Any]] = {}
        for key, value in nested.items():
            name, _, path = key.partition("__")
            if name not in ("method", "decoder"):
                raise ValueError(f"{key}: only method and decoder have parameters of their own")
            within.setdefault(name, {})[path] = plain(value)
        for name, new in within.items():
            owner = as_method(self.method) if name == "method" else as_decoder(self.decoder)
            setattr(self, name, with_fields(owner, new, name=name))
        return self

    def fit(
        self, X: ArrayLike, y: ArrayLike, *, validation: Any = None, **unknown: Any
    ) -> MultiLabelClassifier:
        """Train on rows of features and their sets of labels.

        Args:
            X: features, sparse or dense, ``[n, D]``.
            y: which labels each row has, 0 or 1, sparse or dense, ``[n, L]``.
            validation: rows to validate on, in place of a share of X and y: a pair of features
                ``[m, D]`` and labels ``[m, L]`` with the same columns. Never the test rows.
            **unknown: refused; named so that the error can say why.

        Raises:
            TypeError: Another argument, such as `sample_weight`.
            ValueError: Data or a parameter that does not fit.
        """
        if unknown:
            name = next(iter(unknown))
            reason = "; training weights all rows alike" if name == "sample_weight" else ""
            raise TypeError(f"fit takes X, y and validation; found {name}{reason}")
        method, decoder = as_method(self.method), as_decoder(self.decoder)
        check_decoder(decoder, method)
        params, names = parameters_of(self), column_names(y)
        training, indicators, center = training_rows(self, X, y, bool(params["standardize"]))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if validation is None:
            training, held_out = carve(training, float(params["validation_fraction"]), seed)
        else:
            held_out = validation_rows(self, validation, training.n_labels, names, center)
        result = train(
            method,
            training,
            held_out,
            train_config(params, seed),
            model=model_config(params),
            progress=bool(self.verbose),
        )
        self.classes_ = values_of_labels(training.n_labels)
        self.label_names_ = names
        self.models_ = result.models
        self.method_ = method
        self.decoder_ = fit_decoder(decoder, result, held_out)
        self.center_: Center = center
        self.fitted_params_ = params
        self.history_ = list(result.history)
        self.n_iter_ = len(result.history)
        self.best_epoch_ = result.best_epoch
        self.best_phase_ = result.best_phase
        self._indicators = indicators
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of every label, ``[n, L]``, whatever the decoder.

        Args:
            X: features, sparse or dense, ``[n, D]``.
        """
        rows = self._rows(X)
        return predict_probabilities(self.method_, self.models_, rows).double().numpy()

    def predict(self, X: ArrayLike) -> Any:
        """Return the predicted sets of labels, 0 or 1, ``[n, L]``; sparse if `fit` had a sparse y.

        Args:
            X: features, sparse or dense, ``[n, D]``.
        """
        sets = self._sets(X)
        as_sparse, dtype = self._indicators
        sets = sets.astype(np.dtype(dtype))
        return sparse.csr_array(sets) if as_sparse else sets

    def decoder_sets(self, probabilities: NDArray[np.floating]) -> NDArray[np.int8]:
        """Return the sets that the fitted decoder makes of probabilities, both ``[n, L]``.

        Raises:
            ValueError: The decoder is the joint one, which needs the rows themselves.
        """
        if isinstance(self.decoder_, JointExpectedF1):
            raise ValueError(
                "decoder_sets: found the joint decoder, which asks the energy about the rows "
                "themselves; use predict(X)"
            )
        decoded = self.decoder_.decode(torch.from_numpy(np.asarray(probabilities)))
        return decoded.numpy().astype(np.int8)

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike = None) -> float:
        """Return the example-F1 of the predictions, from 0 to 1; two empty sets score 1.

        Args:
            X: features, sparse or dense, ``[n, D]``.
            y: the right sets of labels, 0 or 1, sparse or dense, ``[n, L]``.
            sample_weight: of the rows in the mean, ``[n]``; by default all alike.
        """
        sets = self._sets(X)
        y = check_array(y, accept_sparse=True, ensure_2d=False)
        check_consistent_length(sets, y)
        check_indicators(y)
        gold = y.toarray() if sparse.issparse(y) else y
        if gold.shape != sets.shape:
            raise ValueError(f"y has {gold.shape[1]} labels; fit had {sets.shape[1]}")
        found, right = (torch.from_numpy(a.astype(np.float64)) for a in (sets, gold))
        values = 1.0 - soft_f1(found, right).numpy()
        return float(np.average(values, weights=_check_sample_weight(sample_weight, X)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one file, without pickle, with `fitted_params_`.

        A `random_state` that is no number is not kept: None takes its place.

        Args:
            path: the file; one that is there is replaced in one instant.

        Raises:
            CheckpointError: The file cannot be written; an earlier one is then unchanged.
            TypeError: A parameter is an object of your own, which only pickle could save.
        """
        check_is_fitted(self)
        save_models(
            path,
            self.models_,
            model_config(self.fitted_params_),
            features=self.n_features_in_,
            labels=len(self.classes_),
            method=self.method_,
            about={"estimator": describe(self)},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MultiLabelClassifier:
        """Return the fitted estimator that `save` wrote, on the CPU.

        Raises:
            CheckpointError: The file is missing, cut short, of another version, or holds something
                else.

        Example:
            >>> import pathlib, tempfile
            >>> classifier = MultiLabelClassifier(hidden=(4,), epochs=1, device="cpu")
            >>> classifier = classifier.fit(np.eye(20), np.eye(20, 3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "classifier.safetensors")
            ...     classifier.save(path)
            ...     copy = MultiLabelClassifier.load(path)
            >>> bool((copy.predict(np.eye(20)) == classifier.predict(np.eye(20))).all())
            True
        """
        models, about = load_models(path)
        if "estimator" not in about:
            raise CheckpointError(
                f"{os.fspath(path)}: holds a model that no {cls.__name__} saved; "
                "`structured predict` and `structured.model_file.load_models` read it"
            )
        return restore(cls, about["estimator"], models)

    def _rows(self, X: ArrayLike) -> Any:
        check_is_fitted(self)
        return prediction_rows(self, X, self.center_)

    def _sets(self, X: ArrayLike) -> NDArray[np.int8]:
        rows = self._rows(X)
        found = decode_rows(self.decoder_, self.method_, self.models_, rows)
        return found.numpy().astype(np.int8)
