"""The options that several commands share, each written down once.

An alias is one option. A class is a group of them, an option for each field: a command that takes
groups is decorated with `structured.commands.groups.spread`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from structured.presets import shown

_data = partial(typer.Option, rich_help_panel="Data")
_own = partial(typer.Option, rich_help_panel="Files of your own")
_model = partial(typer.Option, rich_help_panel="Model")
_training = partial(typer.Option, rich_help_panel="Training")


def _size(name: str, *flags: str, **about: Any) -> Any:
    """An option for a field of `ModelConfig`; None stands for the default of the data set."""
    return _model(*flags, show_default=shown("model", name), **about)


def _setting(name: str, *flags: str, part: str = "training", **about: Any) -> Any:
    """An option for a field of `TrainConfig`; None stands for the default of the data set."""
    return _training(*flags, show_default=shown(part, name), **about)


Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on the standard output.")
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Replace the file of --output if it is there.")
]
Seed: TypeAlias = Annotated[
    int,
    _training(
        "--seed",
        "-s",
        metavar="N",
        min=0,
        help="Decides the initial network, the order of the rows and all noise.",
    ),
]
Resume: TypeAlias = Annotated[
    bool,
    _training(
        "--resume",
        help="Go on where an earlier command of the same settings stopped; what is finished is not "
        "repeated.",
    ),
]
Download: TypeAlias = Annotated[
    bool, _data(help="Download a known data set that is not on this machine yet.")
]
FeaturesFrom: TypeAlias = Annotated[
    int | None,
    _own(
        metavar="N",
        min=0,
        max=1,
        help="The index of the first feature of LIBSVM files.",
        show_default="as in training, where a model is used; else 0 if index 0 occurs, else 1",
    ),
]


@dataclass(frozen=True)
class Inputs:
    """The data to train and test with."""

    data: Annotated[
        str,
        _data(
            "--data",
            "-d",
            "--dataset",
            metavar="DATA",
            help="A data set that `structured data` lists, or an .npz, ARFF or LIBSVM file.",
        ),
    ] = "digits"
    split: Annotated[
        str | None,
        _data(
            metavar="NAME",
            help="The split of the data set to train and test with.",
            show_default="its first with a train and a test part, else stratified3: 60, 20, 20 "
            "percent",
        ),
    ] = None
    validation_fraction: Annotated[
        float,
        _data(
            metavar="X",
            help="The share of the train part set aside, if the split has no validation part.",
        ),
    ] = 0.2
    download: Download = True


@dataclass(frozen=True)
class Reading:
    """What files do not say themselves."""

    labels: Annotated[
        Path | None,
        _own(
            metavar="FILE",
            help="Mulan's XML list of labels, for ARFF files.",
            show_default="beside the ARFF file, named alike",
        ),
    ] = None
    n_features: Annotated[
        int | None,
        _own(
            metavar="N",
            min=1,
            help="How many features LIBSVM files have.",
            show_default="those of the model, or the largest index",
        ),
    ] = None
    n_labels: Annotated[
        int | None,
        _own(
            metavar="N",
            min=1,
            help="How many labels LIBSVM files have.",
            show_default="those of the model, or the largest label",
        ),
    ] = None
    features_from: FeaturesFrom = None
    labels_from: Annotated[
        int | None,
        _own(
            metavar="N",
            min=0,
            max=1,
            help="The number of the first label of LIBSVM files.",
            show_default="as in training, where a model is used; else 0 if label 0 occurs, else 1",
        ),
    ] = None


@dataclass(frozen=True)
class Settings:
    """How to train: what `TrainConfig` says, but for the seed, and the threads."""

    epochs: Annotated[
        int | None,
        _setting("epochs", "--epochs", "-e", metavar="N", min=1, help="The most epochs."),
    ] = None
    batch_size: Annotated[
        int | None, _setting("batch_size", metavar="N", min=1, help="Rows of a minibatch.")
    ] = None
    patience: Annotated[
        int | None,
        _setting(
            "patience",
            metavar="N",
            min=1,
            help="Epochs without improvement on validation after which training stops.",
        ),
    ] = None
    monitor: Annotated[
        str | None,
        _setting(
            "monitor",
            metavar="NAME",
            help="What is watched on validation: f1_expected, f1_joint, f1_tuned, f1_half or "
            "cross_entropy.",
        ),
    ] = None
    last_phase_only: Annotated[
        bool | None,
        _setting(
            "last_phase_only",
            "--last-phase-only",
            help="Keep the best weights of the method's last phase, not of all phases.",
        ),
    ] = None
    average: Annotated[
        float | None,
        _setting(
            "average",
            metavar="X",
            min=0,
            help="Decay of the running average of the weights, which is validated and kept; 0 "
            "keeps the weights as they are.",
        ),
    ] = None
    refit: Annotated[
        bool | None,
        _setting(
            "refit",
            help="After the best epoch is known, train anew for so long on training and validation "
            "rows together.",
        ),
    ] = None
    device: Annotated[
        str | None,
        _setting(
            "device",
            metavar="NAME",
            help="auto takes an accelerator if there is one; or cpu, cuda, cuda:1, ...",
        ),
    ] = None
    threads: Annotated[
        int | None, _setting("threads", part="machine", metavar="N", min=1, help="CPU threads.")
    ] = None
    mixed_precision: Annotated[
        bool | None,
        _setting(
            "mixed_precision",
            "--mixed-precision",
            help="bfloat16 where it is safe; needs an accelerator.",
        ),
    ] = None
    checkpoint_seconds: Annotated[
        float | None,
        _setting(
            "checkpoint_seconds",
            metavar="X",
            min=0,
            help="The most seconds of training between two checkpoints.",
        ),
    ] = None
    log_steps: Annotated[
        bool | None,
        _setting("log_steps", "--log-steps", help="Also write steps.csv, a row per minibatch."),
    ] = None
    tensorboard: Annotated[
        bool | None, _setting("tensorboard", "--tensorboard", help="Also write TensorBoard events.")
    ] = None


@dataclass(frozen=True)
class Sizes:
    """Network and energy: what `ModelConfig` says."""

    hidden: Annotated[
        list[int] | None,
        _size(
            "hidden",
            metavar="N",
            min=0,
            help="Units of a hidden layer of the network; repeat it for more layers. 0 for none: a "
            "linear network.",
        ),
    ] = None
    dropout: Annotated[
        float | None,
        _size("dropout", metavar="X", help="Probability of dropping a hidden unit in training."),
    ] = None
    input_dropout: Annotated[
        float | None,
        _size("input_dropout", metavar="X", help="Probability of dropping an input in training."),
    ] = None
    activation: Annotated[
        str | None,
        _size(
            "activation", metavar="NAME", help="Of the network: relu, gelu, silu, softplus or tanh."
        ),
    ] = None
    energy_hidden: Annotated[
        list[int] | None,
        _size(
            "energy_hidden",
            metavar="N",
            min=0,
            help="Units of a hidden layer of the energy's f(x); repeat it for more layers. 0 for "
            "none: the inputs as they are.",
        ),
    ] = None
    energy_activation: Annotated[
        str | None, _size("energy_activation", metavar="NAME", help="Of f(x).")
    ] = None
    global_size: Annotated[
        int | None,
        _size("global_size", metavar="N", min=1, help="Rows of the energy's global term."),
    ] = None
    cardinality: Annotated[
        int | None,
        _size(
            "cardinality",
            metavar="N",
            min=0,
            help="The largest number of labels with a value of its own in the energy's term on how "
            "many there are; 0 leaves the term out.",
        ),
    ] = None
    standardize: Annotated[
        bool | None,
        _size(
            "standardize",
            help="Scale every feature to mean 0 and deviation 1 over the training rows, inside the "
            "model; for dense features of different units.",
        ),
    ] = None
