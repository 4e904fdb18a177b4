"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from structured.commands import data
from structured.commands.compare import compare
from structured.commands.evaluate import evaluate
from structured.commands.failures import OneLineGroup
from structured.commands.methods import methods
from structured.commands.predict import predict
from structured.commands.train import train

app = typer.Typer(
    name="structured",
    cls=OneLineGroup,
    help="Train structured prediction energy networks on multi-label data and compare them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, evaluate, predict, compare, methods):
    app.command()(command)
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"structured {version('bilevel-structured')}")
        except PackageNotFoundError:
            print("structured, run from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Train structured prediction energy networks on multi-label data and compare them."""
