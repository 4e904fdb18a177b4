"""Default sizes and settings, and what is better for a data set: plain values, nothing to import.

`BASE` repeats the defaults of `ModelConfig` and `TrainConfig`, so that help can show them without
importing torch; a test keeps them equal. What a set has of its own was chosen on its validation
part, with the same trials for every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Settings: TypeAlias = Mapping[str, Mapping[str, Any]]

BASE: Settings = {
    "model": {
        "hidden": [1024],
        "dropout": 0.5,
        "input_dropout": 0.5,
        "activation": "relu",
        "energy_hidden": [150, 150],
        "energy_activation": "relu",
        "global_size": 16,
        "cardinality": 64,
        "standardize": False,
    },
    "training": {
        "epochs": 100,
        "batch_size": 32,
        "patience": 10,
        "monitor": "f1_expected",
        "last_phase_only": False,
        "average": 0.999,
        "refit": False,
        "device": "auto",
        "mixed_precision": False,
        "checkpoint_seconds": 30.0,
        "log_steps": False,
        "tensorboard": False,
    },
    "machine": {"threads": None},
    "comparison": {"methods": ["cross_entropy", "implicit"], "seeds": 3, "trials": 1},
}

PRESETS: Mapping[str, Settings] = {
    "digits": {
        "model": {"hidden": [512, 256], "dropout": 0.3, "input_dropout": 0.1},
        "training": {"epochs": 40, "batch_size": 64, "monitor": "f1_joint"},
        # Small matrices: a second thread gains nothing, and loses much where the cores are shared.
        "machine": {"threads": 1},
        # Few epochs: the learning rate that takes cross-entropy furthest in them, for all steps.
        "methods": {
            "cross_entropy": "lr=0.003",
            "implicit": "primary=ContrastiveDivergence, primary.samples=20, pretrain_lr=0.003, "
            "inner_lr=0.003, outer_lr=0.01",
            "spen": "pretrain_lr=0.003",
            "spen_e2e": "pretrain_lr=0.003",
            "dvn": "pretrain_lr=0.003",
            "nce": "pretrain_lr=0.003",
            "fenchel_young": "lr=0.003, energy_lr=0.003",
            "gspen": "pretrain_lr=0.003, lr=0.003, energy_lr=0.003",
            "infnet": "pretrain_lr=0.003, network_lr=0.003",
            "infnet_plus": "pretrain_lr=0.003, network_lr=0.003, energy_lr=0.003",
            "seal": "pretrain_lr=0.003, network_lr=0.003, energy_lr=0.003",
            "alen": "pretrain_lr=0.003, network_lr=0.003, energy_lr=0.003",
            "ialen": "pretrain_lr=0.003, network_lr=0.003, energy_lr=0.003",
        },
    },
    # The settings of docs/structured/results.md, found by benchmarks/structured_search.py.
    "bibtex": {
        "model": {"energy_hidden": [16]},
        "training": {
            "epochs": 26,
            "batch_size": 128,
            "patience": 5,
            "average": 0.998,
            "monitor": "f1_joint",
        },
        "methods": {
            "cross_entropy": "lr=0.003",
            "implicit": "primary=ContrastiveDivergence, primary.samples=20, pretrain_epochs=12, "
            "pretrain_lr=0.002, inner_lr=0.0002, outer_lr=0.01, outer_every=2",
        },
    },
}
"""Data set -> what differs from `BASE`."""

ALL_METHODS: Mapping[str, str] = {
    "cross-entropy": "cross_entropy",
    "implicit contrastive": "implicit: primary=ContrastiveDivergence, primary.samples=20",
    "implicit margin": "implicit: primary=Margin",
    "implicit value": "implicit: primary=Value",
    "SPEN": "spen",
    "SPEN end-to-end": "spen_e2e",
    "DVN": "dvn",
    "NCE": "nce",
    "InfNet": "infnet",
    "InfNet+ separate": "infnet_plus",
    "SEAL static": "seal: mode=static",
    "SEAL dynamic": "seal: mode=dynamic",
    "iALEN": "ialen",
    "ALEN": "alen",
    "GSPEN": "gspen",
    "Fenchel-Young": "fenchel_young",
}
"""The whole family, as ``structured compare --methods all`` has it: label -> method."""


def setting(part: str, name: str, data: str | None = None) -> Any:
    """Return a default.

    Args:
        part: "model", "training", "machine", "methods" or "comparison".
        name: of the setting.
        data: the name of the data set.

    Example:
        >>> setting("model", "hidden", "digits"), setting("model", "hidden", "a set of mine")
        ([512, 256], [1024])
    """
    own = PRESETS.get(data or "", {}).get(part, {})
    return own.get(name, BASE[part][name])


def shown(part: str, name: str) -> str:
    """Return a default as help shows it, with the data sets that have another one.

    Example:
        >>> shown("model", "hidden")
        '1024; digits: 512 256'
    """
    others = [
        f"{data}: {_text(own[part][name])}"
        for data, own in PRESETS.items()
        if name in own.get(part, {})
    ]
    return "; ".join([_text(BASE[part][name]), *others])


def _text(value: Any) -> str:
    if value is None:
        return "PyTorch's"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
