"""`structured evaluate`: the scores of a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from structured.commands import options
from structured.commands.failures import UsageError
from structured.commands.groups import spread
from structured.commands.inputs import given_options, open_data
from structured.commands.output import print_json, print_table


@spread
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="Score all rows of this data set or file, with the decoders as they were fitted "
            "on the validation part of the run.",
            show_default="the validation and the test part of the run",
        ),
    ] = None,
    as_json: options.Json = False,
    download: options.Download = True,
    *,
    reading: options.Reading,
) -> None:
    """Score a trained model under the four decoders.

    The figures are example-F1, micro-F1, macro-F1, Hamming accuracy and subset accuracy.
    """
    import torch

    from structured.commands.trained import columns, load_trained
    from structured.evaluation import JOINT, score, score_sets, with_joint
    from structured.evaluation import evaluate as evaluate_parts

    ignored = list(given_options(reading).values())
    if data is None and ignored:
        raise UsageError(
            f"{ignored[0]} goes with --data FILE; the data of a run are read as they were for its "
            "training, so leave it out"
        )
    trained = load_trained(run)
    if data is None:
        _, validation, test = trained.source.parts(download=download)
        parts = {"validation": validation, "test": test}
        inputs = {
            name: trained.features(part.X, part.feature_names) for name, part in parts.items()
        }
        labels_of = {name: part.Y for name, part in parts.items()}
        found = evaluate_parts(
            {
                "validation": trained.predict_held_out(inputs["validation"]),
                "test": trained.predict(inputs["test"]),
            },
            labels_of,
            data=trained.evaluation.data,
            split=trained.evaluation.split,
            method=trained.evaluation.method,
            seed=trained.evaluation.seed,
        )
        found = with_joint(
            found,
            trained.method,
            trained.models,
            inputs,
            labels_of,
            held_out=trained.held_out,
        )
    else:
        rows = open_data(data, trained.reading(data, reading), download=download)
        X = trained.features(rows.X, rows.feature_names)
        probabilities = trained.predict(X)
        chosen = columns(rows.label_names, trained.label_names, "label")
        gold = torch.from_numpy(rows.Y[:, chosen].toarray()).float()
        scores = {
            name: score(decoder, probabilities, gold)
            for name, decoder in trained.decoders().items()
        }
        scores[JOINT] = score_sets(trained.joint_sets(X), gold)
        found = replace(
            trained.evaluation,
            data=rows.name,
            split="",
            rows={"all": rows.n_rows},
            scores={"all": scores},
        )
    if as_json:
        print_json(found.to_dict())
    else:
        print_table(found.table())
