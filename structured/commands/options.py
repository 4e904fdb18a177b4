"""The options that several commands share, each written down once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from structured.presets import shown

_DATA, _OWN, _MODEL, _TRAINING = "Data", "Files of your own", "Model", "Training"

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on the standard output.")
]

# Data

Data: TypeAlias = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        "--dataset",
        metavar="DATA",
        help="A data set that `structured data` lists, or an .npz, ARFF or LIBSVM file.",
        rich_help_panel=_DATA,
    ),
]
SplitName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="The split of the data set to train and test with.",
        show_default="its first with a train and a test part, else stratified3: 60, 20, 20 percent",
        rich_help_panel=_DATA,
    ),
]
ValidationFraction: TypeAlias = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="The share of the train part set aside, if the split has no validation part.",
        rich_help_panel=_DATA,
    ),
]
Download: TypeAlias = Annotated[
    bool,
    typer.Option(
        help="Download a known data set that is not on this machine yet.", rich_help_panel=_DATA
    ),
]
LabelList: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="Mulan's XML list of labels, for ARFF files.",
        show_default="beside the ARFF file, named alike",
        rich_help_panel=_OWN,
    ),
]
NFeatures: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How many features LIBSVM files have.",
        show_default="the largest index",
        rich_help_panel=_OWN,
    ),
]
NLabels: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How many labels LIBSVM files have.",
        show_default="the largest label",
        rich_help_panel=_OWN,
    ),
]
FeaturesFrom: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        max=1,
        help="The index of the first feature of LIBSVM files.",
        show_default="0 if index 0 occurs, else 1",
        rich_help_panel=_OWN,
    ),
]
LabelsFrom: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        max=1,
        help="The number of the first label of LIBSVM files.",
        show_default="0 if label 0 occurs, else 1",
        rich_help_panel=_OWN,
    ),
]

# Model

Hidden: TypeAlias = Annotated[
    list[int] | None,
    typer.Option(
        "--hidden",
        metavar="N",
        min=1,
        help="Units of a hidden layer of the network; repeat it for more layers.",
        show_default=shown("model", "hidden"),
        rich_help_panel=_MODEL,
    ),
]
Dropout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Probability of dropping a hidden unit in training.",
        show_default=shown("model", "dropout"),
        rich_help_panel=_MODEL,
    ),
]
InputDropout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Probability of dropping an input in training.",
        show_default=shown("model", "input_dropout"),
        rich_help_panel=_MODEL,
    ),
]
Activation: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of the network: relu, gelu, silu, softplus or tanh.",
        show_default=shown("model", "activation"),
        rich_help_panel=_MODEL,
    ),
]
EnergyHidden: TypeAlias = Annotated[
    list[int] | None,
    typer.Option(
        "--energy-hidden",
        metavar="N",
        min=1,
        help="Units of a hidden layer of the energy's f(x); repeat it for more layers.",
        show_default=shown("model", "energy_hidden"),
        rich_help_panel=_MODEL,
    ),
]
EnergyActivation: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of f(x).",
        show_default=shown("model", "energy_activation"),
        rich_help_panel=_MODEL,
    ),
]
GlobalSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Rows of the energy's global term.",
        show_default=shown("model", "global_size"),
        rich_help_panel=_MODEL,
    ),
]

Cardinality: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="The largest number of labels with a value of its own in the energy's term on how "
        "many there are; 0 leaves the term out.",
        show_default=shown("model", "cardinality"),
        rich_help_panel=_MODEL,
    ),
]

Standardize: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--standardize/--no-standardize",
        help="Scale every feature to mean 0 and deviation 1 over the training rows, inside the "
        "model; for dense features of different units.",
        show_default=shown("model", "standardize"),
        rich_help_panel=_MODEL,
    ),
]

# Training

Epochs: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        "-e",
        metavar="N",
        min=1,
        help="The most epochs.",
        show_default=shown("training", "epochs"),
        rich_help_panel=_TRAINING,
    ),
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Rows of a minibatch.",
        show_default=shown("training", "batch_size"),
        rich_help_panel=_TRAINING,
    ),
]
Patience: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Epochs without improvement on validation after which training stops.",
        show_default=shown("training", "patience"),
        rich_help_panel=_TRAINING,
    ),
]
Monitor: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is watched on validation: f1_expected, f1_joint, f1_tuned, f1_half or "
        "cross_entropy.",
        show_default=shown("training", "monitor"),
        rich_help_panel=_TRAINING,
    ),
]
LastPhaseOnly: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--last-phase-only",
        help="Keep the best weights of the method's last phase, not of all phases.",
        show_default=shown("training", "last_phase_only"),
        rich_help_panel=_TRAINING,
    ),
]
Average: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="Decay of the running average of the weights, which is validated and kept; 0 keeps "
        "the weights as they are.",
        show_default=shown("training", "average"),
        rich_help_panel=_TRAINING,
    ),
]
Refit: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--refit/--no-refit",
        help="After the best epoch is known, train anew for so long on training and validation "
        "rows together.",
        show_default=shown("training", "refit"),
        rich_help_panel=_TRAINING,
    ),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="auto takes an accelerator if there is one; or cpu, cuda, cuda:1, ...",
        show_default=shown("training", "device"),
        rich_help_panel=_TRAINING,
    ),
]
MixedPrecision: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--mixed-precision",
        help="bfloat16 where it is safe; needs an accelerator.",
        show_default=shown("training", "mixed_precision"),
        rich_help_panel=_TRAINING,
    ),
]
CheckpointSeconds: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="The most seconds of training between two checkpoints.",
        show_default=shown("training", "checkpoint_seconds"),
        rich_help_panel=_TRAINING,
    ),
]
LogSteps: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--log-steps",
        help="Also write steps.csv, a row per minibatch.",
        show_default=shown("training", "log_steps"),
        rich_help_panel=_TRAINING,
    ),
]
TensorBoard: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--tensorboard",
        help="Also write TensorBoard events.",
        show_default=shown("training", "tensorboard"),
        rich_help_panel=_TRAINING,
    ),
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads.",
        show_default=shown("machine", "threads"),
        rich_help_panel=_TRAINING,
    ),
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        "--seed",
        "-s",
        metavar="N",
        min=0,
        help="Decides the initial network, the order of the rows and all noise.",
        rich_help_panel=_TRAINING,
    ),
]
Resume: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where an earlier command of the same settings stopped; what is finished is not "
        "repeated.",
        rich_help_panel=_TRAINING,
    ),
]
