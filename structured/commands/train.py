"""`structured train`: one method, one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from structured.commands import options, specs
from structured.commands.failures import INTERRUPTED, bad_usage
from structured.commands.groups import spread
from structured.commands.output import print_json, print_table, say


@spread
def train(
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="METHOD", help=f"How to train. {specs.HELP}")
    ] = "implicit",
    seed: options.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="The folder of the run: checkpoints, logs, the model, the scores.",
            show_default="runs/DATA-METHOD-seedN",
        ),
    ] = None,
    resume: options.Resume = False,
    plots: Annotated[
        bool, typer.Option("--plots", help="Write pictures (PNG) into the folder of the run.")
    ] = False,
    as_json: options.Json = False,
    *,
    inputs: options.Inputs,
    settings: options.Settings,
    sizes: options.Sizes,
    reading: options.Reading,
) -> None:
    """Train one method with one seed, and score it on the test part under the four decoders.

    Decoders are fitted on the validation part, which also decides when to stop. A run that is
    killed or interrupted goes on with --resume and ends with the same numbers.
    """
    from structured._atomic import write_json
    from structured.commands.pictures import draw
    from structured.commands.settings import claim, prepare
    from structured.experiment import EVALUATION, folder_name, score_run
    from structured.run_folder import DESCRIPTION
    from structured.training import train as run

    parsed = specs.parse_method(method, inputs.data)
    prepared = prepare(seed, inputs, settings, sizes, reading)
    training, validation, test = prepared.parts
    folder = output or Path("runs", folder_name(f"{training.name}-{parsed.name}-seed{seed}"))
    claim(folder, resume, DESCRIPTION)
    say(f"{parsed.name} on {training}; the run is in {folder}")
    try:
        with bad_usage():
            result = run(
                parsed,
                training,
                validation,
                prepared.config,
                model=prepared.model,
                run_dir=folder,
                resume=resume,
            )
    except KeyboardInterrupt:
        say(f"structured: interrupted; the same command with --resume goes on with {folder}")
        raise typer.Exit(INTERRUPTED) from None
    evaluation = score_run(result, validation, test)
    write_json(folder / EVALUATION, evaluation.to_dict())
    prepared.source.write(folder)
    pictures = draw(result, training, folder, title=evaluation.title) if plots else []
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "epochs": len(result.history),
                "best_epoch": result.best_epoch,
                "best_phase": result.best_phase,
                "stopped": result.stopped,
                "seconds": result.total_seconds,
                "evaluation": evaluation.to_dict(),
                "pictures": [str(path) for path in pictures],
            }
        )
        return
    print_table(evaluation.table())
    say(
        f"Best epoch {result.best_epoch} ({result.best_phase}) of {len(result.history)}: "
        f"{result.stopped}, {result.total_seconds:.0f} s."
    )
    for path in pictures:
        say(f"Picture: {path}")
