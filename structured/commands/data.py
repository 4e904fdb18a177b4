"""`structured data`: which sets there are, what is in one, and files in the compact form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structured.commands import options
from structured.commands.failures import OneLineGroup, UsageError
from structured.commands.groups import spread
from structured.commands.inputs import open_data, open_files
from structured.commands.output import check_output, print_json, print_table, say

if TYPE_CHECKING:
    from structured.data import MultiLabelData

app = typer.Typer(
    cls=OneLineGroup,
    help="List the known data sets, describe one, or convert files to the compact .npz form.",
    no_args_is_help=False,
    invoke_without_command=True,
)


@app.callback()
def default(context: typer.Context, as_json: options.Json = False) -> None:
    """List the known data sets if nothing else is asked for."""
    if context.invoked_subcommand is None:
        list_sets(as_json=as_json)
    elif as_json:
        command = context.invoked_subcommand
        raise UsageError(f"--json stands after the command: `structured data {command} ... --json`")


@app.command("list")
def list_sets(as_json: options.Json = False) -> None:
    """List the data sets that are known by name."""
    from structured.data.registry import EMBEDDED, LOCAL_ONLY, known_names
    from structured.data.sources import public_sources

    sizes: dict[str, int] = {}
    for source in public_sources():
        sizes[source.dataset] = sizes.get(source.dataset, 0) + source.bytes
    rows = [{"name": name, "download_bytes": sizes.get(name)} for name in known_names()]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(title="Data sets known by name", title_justify="left")
    table.add_column("name")
    table.add_column("where it comes from")
    for row in rows:
        name, size = str(row["name"]), row["download_bytes"]
        if name == EMBEDDED:
            origin = "made on the fly, nothing to download"
        elif name in LOCAL_ONLY or not size:
            origin = "only from the folder that STRUCTURED_DATA names"
        else:
            origin = f"downloaded once ({int(size) / 1e6:.1f} MB), SHA-256 checked"
        table.add_row(name, origin)
    print_table(table)
    say("`structured data show NAME` describes one of them, or a file of yours.")


@app.command()
@spread
def show(
    source: Annotated[
        str, typer.Argument(help="A known data set, or an .npz, ARFF or LIBSVM file.")
    ],
    *,
    reading: options.Reading,
    download: options.Download = True,
    as_json: options.Json = False,
) -> None:
    """Show the statistics, the splits and the most frequent labels of a data set."""
    found = describe(open_data(source, reading, download=download))
    if as_json:
        print_json(found)
        return
    for table in _tables(found):
        print_table(table)


@app.command()
@spread
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="One ARFF or LIBSVM file; or the train and the test file; or train, validation "
            "and test."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The .npz file to write.", show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="The name of the data set.", show_default="that of the file"),
    ] = None,
    force: options.Force = False,
    *,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Convert ARFF (with Mulan's XML list of labels) or LIBSVM files to one .npz file."""
    from structured.data import write_npz

    if output.suffix != ".npz":
        raise UsageError(f"--output is {output}; its name must end in .npz")
    check_output(output, force=force)
    data = open_files(files, reading, name=name)
    write_npz(data, output)
    if as_json:
        print_json({"output": str(output), **describe(data)})
    else:
        say(f"{output}: {data}")


def describe(data: MultiLabelData, most: int = 10) -> dict[str, Any]:
    """Return what `structured data show` prints, as plain values.

    Args:
        data: The data set.
        most: How many of the most frequent labels are listed.

    Returns:
        name; `statistics`; for each split the rows of its parts; `frequent_labels` with their rows.
    """
    import numpy as np

    counts = np.asarray(data.Y.sum(axis=0, dtype=np.int64)).ravel()
    order = np.argsort(-counts, kind="stable")[:most]
    return {
        "name": data.name,
        "statistics": data.statistics(),
        "splits": {name: split.sizes() for name, split in data.splits.items()},
        "frequent_labels": {data.label_names[label]: int(counts[label]) for label in order},
    }


def _tables(found: dict[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text  # for names from files, in which brackets are no markup

    title = Text(found["name"], style="table.title")
    statistics = Table(title=title, title_justify="left", show_header=False)
    for key, value in found["statistics"].items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        statistics.add_row(key.replace("_", " "), shown)
    splits = Table("split", "parts", title="Splits", title_justify="left")
    for name, sizes in found["splits"].items():
        parts = ", ".join(f"{part} {rows}" for part, rows in sizes.items())
        splits.add_row(Text(name), Text(parts))
    labels = Table("label", "rows", title="Most frequent labels", title_justify="left")
    for name, rows in found["frequent_labels"].items():
        labels.add_row(Text(name), str(rows))
    return [statistics, splits, labels] if found["splits"] else [statistics, labels]
