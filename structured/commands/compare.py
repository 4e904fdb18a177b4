"""`structured compare`: several methods, several seeds, one table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structured.commands import options, specs
from structured.commands.failures import INTERRUPTED, bad_usage
from structured.commands.output import print_json, print_table, say
from structured.presets import setting, shown

if TYPE_CHECKING:
    from structured.comparison import ComparedRun
    from structured.training import RunResult


def compare(
    context: typer.Context,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="A method to compare; repeat it for more. The first is the baseline. "
            f"{specs.HELP}",
            show_default=shown("comparison", "methods"),
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many seeds each method is trained with.",
            show_default=shown("comparison", "seeds"),
        ),
    ] = None,
    seed: options.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="The folder of the comparison: comparison.json, pictures, a folder per run.",
            show_default="runs/compare-DATA",
        ),
    ] = None,
    resume: options.Resume = False,
    plots: Annotated[bool, typer.Option(help="Write pictures (PNG) of the first seed.")] = True,
    as_json: options.Json = False,
    data: options.Data = "digits",
    split: options.SplitName = None,
    validation_fraction: options.ValidationFraction = 0.2,
    download: options.Download = True,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    patience: options.Patience = None,
    monitor: options.Monitor = None,
    last_phase_only: options.LastPhaseOnly = None,
    average: options.Average = None,
    refit: options.Refit = None,
    device: options.Device = None,
    threads: options.Threads = None,
    mixed_precision: options.MixedPrecision = None,
    checkpoint_seconds: options.CheckpointSeconds = None,
    log_steps: options.LogSteps = None,
    tensorboard: options.TensorBoard = None,
    hidden: options.Hidden = None,
    dropout: options.Dropout = None,
    input_dropout: options.InputDropout = None,
    activation: options.Activation = None,
    energy_hidden: options.EnergyHidden = None,
    energy_activation: options.EnergyActivation = None,
    global_size: options.GlobalSize = None,
    cardinality: options.Cardinality = None,
    standardize: options.Standardize = None,
    labels: options.LabelList = None,
    n_features: options.NFeatures = None,
    n_labels: options.NLabels = None,
    features_from: options.FeaturesFrom = None,
    labels_from: options.LabelsFrom = None,
) -> None:
    """Train several methods with several seeds and print one table of their test scores.

    All methods share the data, the network's sizes, its initial weights, the settings and the
    seeds. The table has example-F1 under the four decoders, mean and deviation over seeds; below
    it stands who is ahead of the baseline, and whether the seeds bear it out.
    """
    from structured.commands.pictures import draw
    from structured.commands.settings import claim, prepare
    from structured.experiment import COMPARISON, folder_name
    from structured.experiment import compare as run

    prepared = prepare(context.params)
    training, validation, test = prepared.parts
    methods = specs.parse_methods(method or setting("comparison", "methods", data), data)
    count = seeds or setting("comparison", "seeds", data)
    folder = output or Path("runs", folder_name(f"compare-{training.name}"))
    claim(folder, resume, COMPARISON)
    say(f"{', '.join(methods)} with {count} seeds each on {training}; the runs are in {folder}")
    pictures: list[Path] = []

    def note(done: ComparedRun, result: RunResult, run_dir: Path | None) -> None:
        assert run_dir is not None
        prepared.source.write(run_dir)
        scores = done.evaluation.scores["validation"]["expected F1"]
        say(
            f"{done.method}, seed {done.seed}: validation example-F1 "
            f"{100 * scores.example_f1:.2f} (expected F1), best epoch {done.best_epoch} of "
            f"{done.epochs}, {done.seconds:.0f} s"
        )
        if plots and done.seed == seed:
            title, before = done.evaluation.title, f"{folder_name(done.method)}-"
            pictures.extend(draw(result, training, folder, title=title, before=before))

    try:
        with bad_usage():
            found = run(
                methods,
                training,
                validation,
                test,
                seeds=range(seed, seed + count),
                config=prepared.config,
                model=prepared.model,
                folder=folder,
                resume=resume,
                command=_command(context),
                on_run=note,
            )
    except KeyboardInterrupt:
        say(f"structured: interrupted; the same command with --resume goes on with {folder}")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({**found.to_dict(), "pictures": [str(path) for path in pictures]})
        return
    print_table(found.table())
    for line in found.verdicts():
        print(line)
    say(f"Results: {folder / COMPARISON}")
    for path in pictures:
        say(f"Picture: {path}")


def _command(context: typer.Context) -> str:
    """The command as it was given, for a shell; --resume and --json change no result."""
    words = context.command_path.split()
    for option in context.command.params:
        source: Any = context.get_parameter_source(str(option.name))
        if source.name != "COMMANDLINE" or option.name in ("resume", "as_json"):
            continue
        value = context.params[str(option.name)]
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [option.opts[0], str(item)]
    return shlex.join(words)
