"""`structured compare`: several methods, several seeds, one table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structured.commands import options, specs
from structured.commands.failures import FAILURE, INTERRUPTED, bad_usage
from structured.commands.groups import spread
from structured.commands.output import WIDTH, print_json, print_table, say
from structured.presets import setting, shown

if TYPE_CHECKING:
    from structured.comparison import ComparedRun
    from structured.search import Trial


@spread
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
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="NAMES",
            help="all: the whole family and a control, each method with what it shares with the "
            "others; or names with commas between them, after those of --method.",
            show_default="none",
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
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Candidates of a search over each method's options, on validation data with the "
            "first seed; 1 takes the methods as they are.",
            show_default=shown("comparison", "trials"),
        ),
    ] = None,
    control: Annotated[
        bool | None,
        typer.Option(
            "--control/--no-control",
            help="Also train the first method on shuffled labels.",
            show_default="with --methods all",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Trainings at once, each in a process of its own, with one CPU thread unless "
            "--threads says otherwise.",
            show_default="the CPU cores there are; 1 on an accelerator",
        ),
    ] = None,
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
    plots: Annotated[
        bool, typer.Option(help="Write pictures (PNG) of the comparison and of the first seed.")
    ] = True,
    as_json: options.Json = False,
    *,
    inputs: options.Inputs,
    settings: options.Settings,
    sizes: options.Sizes,
    reading: options.Reading,
) -> None:
    """Train several methods with several seeds and print one table of their test scores.

    All methods share the data, the network's sizes, its initial weights, the settings and the
    seeds. The table has example-F1 under the four decoders, mean and deviation over seeds; below
    it stands what a search chose, who is ahead of the first method, and whether the seeds bear it
    out.
    """
    from structured.commands.pictures import COMPARISON as PICTURE
    from structured.commands.pictures import FEW, draw_run, pictured
    from structured.commands.settings import claim, prepare
    from structured.earlier import with_known_labels
    from structured.evaluation import JOINT
    from structured.experiment import COMPARISON, folder_name
    from structured.experiment import compare as run
    from structured.progress import say_above
    from structured.workers import default_jobs

    prepared = prepare(seed, inputs, settings, sizes, reading)
    training, validation, test = prepared.parts
    chosen = specs.chosen_methods(method or [], methods, inputs.data)
    count = seeds or setting("comparison", "seeds", inputs.data)
    candidates = trials or setting("comparison", "trials", inputs.data)
    folder = output or Path("runs", folder_name(f"compare-{training.name}"))
    claim(folder, resume, COMPARISON)
    if resume:
        chosen = with_known_labels(chosen, folder)
    searched = f", after a search of {candidates} trials each" if candidates > 1 else ""
    say(
        f"{', '.join(chosen)} with {count} seeds each on {training}{searched}; the runs are in "
        f"{folder}"
    )
    drawn = pictured(chosen) if plots else set[str]()
    pictures: list[Path] = []

    def note_trial(trial: Trial) -> None:
        found = "diverged" if trial.value is None else f"{trial.value:.4f}"
        say_above(
            f"{trial.label}, trial {trial.number}: validation {prepared.config.monitor} {found}, "
            f"{trial.seconds:.0f} s"
        )

    def note(done: ComparedRun, run_dir: Path) -> None:
        prepared.source.write(run_dir)
        scores = done.evaluation.scores["validation"]["expected F1"]
        say_above(
            f"{done.method}, seed {done.seed}: validation example-F1 "
            f"{100 * scores.example_f1:.2f} (expected F1), best epoch {done.best_epoch} of "
            f"{done.epochs}{f' ({done.earlier_phase})' if done.earlier_phase else ''}, "
            f"{done.seconds:.0f} s"
        )
        if done.method in drawn and done.seed == seed:
            title, before = done.evaluation.title, f"{folder_name(done.method)}-"
            pictures.extend(draw_run(run_dir, training, folder, title=title, before=before))

    try:
        with bad_usage():
            found = run(
                chosen,
                training,
                validation,
                test,
                seeds=range(seed, seed + count),
                trials=candidates,
                control=methods == specs.ALL if control is None else control,
                config=prepared.config,
                model=prepared.model,
                folder=folder,
                resume=resume,
                jobs=jobs or default_jobs(prepared.config.torch_device()),
                threads=settings.threads or 1,
                command=_command(context),
                on_run=note,
                on_trial=note_trial,
            )
    except KeyboardInterrupt:
        say(f"structured: interrupted; the same command with --resume goes on with {folder}")
        raise typer.Exit(INTERRUPTED) from None
    if plots and found.runs:
        from structured.comparison_plot import plot_comparison

        pictures.append(plot_comparison(found, folder / PICTURE))
    if as_json:
        print_json({**found.to_dict(), "pictures": [str(path) for path in pictures]})
    else:
        print_table(found.table(), least=WIDTH)
        # Of many methods one decoder's, which is that of independent labels where they are.
        verdicts = found.verdicts() if len(chosen) <= FEW else found.verdicts([JOINT])
        for line in (*found.choices(), *found.notes(), *verdicts):
            print(line)
        say(f"Results: {folder / COMPARISON}")
        for path in pictures:
            say(f"Picture: {path}")
    if found.failed:
        for line in found.failed:
            say(f"structured: {line}")
        raise typer.Exit(FAILURE)


_CHANGE_NOTHING = ("resume", "as_json", "jobs")


def _command(context: typer.Context) -> str:
    """The command as it was given, for a shell; what changes no result is left out."""
    words = context.command_path.split()
    for option in context.command.params:
        source: Any = context.get_parameter_source(str(option.name))
        if source.name != "COMMANDLINE" or option.name in _CHANGE_NOTHING:
            continue
        value = context.params[str(option.name)]
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            for item in value if isinstance(value, list | tuple) else [value]:
                words += [option.opts[0], str(item)]
    return shlex.join(words)
