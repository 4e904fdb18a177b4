"""Default sizes and settings, and what is better for a data set: plain values, nothing to import.

`BASE` repeats the defaults of `ModelConfig` and `TrainConfig`, so that help can show them without
importing torch; a test keeps them equal. What a set has of its own was chosen on its validation
part: sizes, epochs and batches by the score of cross-entropy, the options of methods not with the
same effort for all. On bibtex the implicit method had a search of 66 runs, and the methods that
move network and energy in turn start from the rate that it found (docs/structured/comparison.md).
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

_PRETRAINED = ("spen", "spen_e2e", "dvn", "nce", "gspen")
_IN_TURN = ("infnet", "infnet_plus", "seal", "alen", "ialen")


def _family(pretraining: str, in_turn: str, **own: str) -> dict[str, str]:
    """Options of the methods of a data set: one pretraining for all that have one.

    Args:
        pretraining: its options.
        in_turn: further ones of the methods that move network and energy in turn.
        own: further ones by method, after the pretraining; alone for a method without any.
    """
    pretrained = {key: pretraining for key in ("implicit", *_PRETRAINED)}
    alternating = {key: f"{pretraining}, {in_turn}" for key in _IN_TURN}
    found = {**pretrained, **alternating}
    return {
        **found,
        **{key: f"{found[key]}, {text}" if key in found else text for key, text in own.items()},
    }


# Dense features of different units, hundreds of rows: few steps an epoch.
_SMALL: Settings = {
    "model": {
        "hidden": [256],
        "input_dropout": 0.2,
        "energy_hidden": [16],
        "standardize": True,
    },
    "training": {"epochs": 60, "patience": 12, "average": 0.99, "monitor": "f1_joint"},
    "machine": {"threads": 1},
    "methods": _family(
        "pretrain_epochs=20, pretrain_lr=0.001",
        "network_lr=0.0003",
        implicit="primary=ContrastiveDivergence, primary.samples=20, inner_lr=0.0003, "
        "outer_lr=0.01, outer_every=2",
    ),
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
            "fenchel_young": "lr=0.003, energy_lr=0.003",
            "gspen": "pretrain_epochs=20, pretrain_lr=0.003, lr=0.003, energy_lr=0.003",
            # Their later phases leave the network's own probabilities behind.
            **dict.fromkeys(
                ("spen", "spen_e2e", "dvn", "nce"), "pretrain_epochs=25, pretrain_lr=0.003"
            ),
            **dict.fromkeys(
                ("infnet_plus", "seal", "alen", "ialen"),
                "pretrain_lr=0.003, network_lr=0.003, energy_lr=0.003",
            ),
            "infnet": "pretrain_lr=0.003, network_lr=0.003",
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
        "methods": _family(
            "pretrain_epochs=12, pretrain_lr=0.002",
            "network_lr=0.0003",
            cross_entropy="lr=0.003",
            implicit="primary=ContrastiveDivergence, primary.samples=20, inner_lr=0.0002, "
            "outer_lr=0.01, outer_every=2",
            infnet="joint_epochs=8",  # and the rest of the epochs for retuning
        ),
    },
    "delicious": {
        "model": {"hidden": [512], "energy_hidden": [16]},
        "training": {"epochs": 32, "batch_size": 128, "patience": 5, "average": 0.998},
        "methods": _family(
            "pretrain_epochs=18, pretrain_lr=0.002",
            "network_lr=0.0003",
            cross_entropy="lr=0.002",
            implicit="primary=ContrastiveDivergence, primary.samples=20, inner_lr=0.0002, "
            "outer_lr=0.01, outer_every=2",
            infnet="joint_epochs=8",  # and the rest of the epochs for retuning
        ),
    },
    **dict.fromkeys(("birds", "cal500", "emotions", "scene", "yeast"), _SMALL),
}
"""Data set -> what differs from `BASE`."""

ALL_METHODS: Mapping[str, str] = {
    "cross-entropy": "cross_entropy",
    "implicit contrastive": "implicit: primary=ContrastiveDivergence, primary.samples=20",
    "implicit margin": "implicit: primary=Margin, primary.samples=20, sampler=StraightThrough",
    "implicit value": "implicit: primary=Value, primary.samples=20, sampler=StraightThrough",
    "SPEN": "spen",
    "SPEN end-to-end": "spen_e2e",
    "DVN": "dvn",
    "NCE": "nce",
    "InfNet": "infnet",
    "InfNet+ separate": "infnet_plus",
    "InfNet+ shared": "infnet_plus: parameterization=shared",
    "InfNet+ stacked": "infnet_plus: parameterization=stacked",
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
        >>> shown("model", "input_dropout")
        '0.5; digits: 0.1; birds, cal500, emotions, scene, yeast: 0.2'
    """
    others: dict[str, list[str]] = {}
    for data, own in PRESETS.items():
        if name in own.get(part, {}):
            others.setdefault(_text(own[part][name]), []).append(data)
    named = [f"{', '.join(sets)}: {text}" for text, sets in others.items()]
    return "; ".join([_text(BASE[part][name]), *named])


def _text(value: Any) -> str:
    if value is None:
        return "PyTorch's"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
