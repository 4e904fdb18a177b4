"""`structured predict`: sets of labels for new rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structured.commands import options
from structured.commands.inputs import check_reading, file_format
from structured.commands.options import Reading
from structured.commands.output import check_output, say
from structured.errors import DataError

if TYPE_CHECKING:
    from structured.commands.trained import Trained


class DecoderName(StrEnum):
    """The four decoders."""

    threshold = "threshold"
    tuned = "tuned"
    expected_f1 = "expected_f1"
    joint = "joint"


def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            help="The rows: an .npz, ARFF or LIBSVM file with or without labels, which are not "
            "looked at.",
            show_default=False,
        ),
    ],
    decoder: Annotated[
        DecoderName,
        typer.Option(
            help="threshold (0.5), tuned (fitted on the validation part of the run), expected_f1, "
            "or joint (expected F1 under network and energy together)."
        ),
    ] = DecoderName.expected_f1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write.",
            show_default="standard output",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="A line of JSON per row: its labels, and every label's probability."
        ),
    ] = False,
    force: options.Force = False,
    features_from: options.FeaturesFrom = None,
) -> None:
    """Predict the labels of new rows: a line per row, its labels separated by tabs.

    Columns are found by their names, where the model and the file have names.
    """
    from structured._atomic import write_atomically
    from structured.commands.trained import SHORT_NAMES, load_trained

    if output is not None:
        check_output(output, force=force)
    trained = load_trained(run)
    if not file.is_file():
        raise DataError(_absent(file, run), file)
    check_reading(str(file), Reading(features_from=features_from))
    X = _read(file, trained, features_from)
    probabilities = trained.predict(X)
    if decoder is DecoderName.joint:
        decoded = trained.joint_sets(X)
    else:
        decoded = trained.decoders()[SHORT_NAMES[decoder]].decode(probabilities)
    sets = decoded.bool().tolist()
    lines = _lines(trained.label_names, sets, probabilities.tolist(), as_json=as_json)
    if output is None:
        sys.stdout.writelines(lines)
        return
    write_atomically(output, "".join(lines).encode())
    say(f"{len(sets)} rows: {output}")


def _read(file: Path, trained: Trained, features_from: int | None) -> Any:
    """The features of a file, as the model wants them."""
    from structured.data import read_arff, read_libsvm, read_npz

    match file_format(file):
        case "npz":
            data = read_npz(file, labelled=False)
            return trained.features(data.X, data.feature_names)
        case "arff":
            table = read_arff(file, without=trained.label_names)
            names = [attribute.name for attribute in table.attributes]
            return trained.features(table.values, names)
        case "libsvm":
            given = Reading(features_from=features_from)
            reading = trained.reading(str(file), given, labelled=False)
            data = read_libsvm(
                file,
                n_features=reading.n_features,
                features_from=reading.features_from,
                labelled=False,
            )
            return trained.features(data.X, ())
    raise DataError("the format is not known from the name; wanted .npz, .arff or .svm", file)


def _absent(file: Path, run: Path) -> str:
    from structured.data import known_names

    if str(file) not in known_names():
        return "there is no such file; check the path"
    return (
        "there is no such file, and predictions are made for the rows of a file; to score the "
        f"model on the data set of this name, `structured evaluate {run} --data {file}`"
    )


def _lines(
    names: tuple[str, ...],
    sets: list[list[bool]],
    probabilities: list[list[float]],
    *,
    as_json: bool,
) -> Iterator[str]:
    for row, (chosen, values) in enumerate(zip(sets, probabilities, strict=True)):
        labels = [name for name, has in zip(names, chosen, strict=True) if has]
        if as_json:
            by_name = dict(zip(names, (round(value, 6) for value in values), strict=True))
            found = {"row": row, "labels": labels, "probabilities": by_name}
            yield json.dumps(found, ensure_ascii=False) + "\n"
        else:
            yield "\t".join(labels) + "\n"
