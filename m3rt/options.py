"""The options and arguments of the command line that have a type of their own."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from m3rt import __version__, engines
from m3rt.formats import STDOUT, Format
from m3rt.types import Heads


class Pooling(enum.StrEnum):
    """What the dense vector is made of."""

    CLS = "cls"
    MEAN = "mean"


class InputFormat(enum.StrEnum):
    """How texts are read."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


class OnLong(enum.StrEnum):
    """What to do with a text that is too long."""

    TRUNCATE = "truncate"
    ERROR = "error"


def show_version(wanted: bool) -> None:
    """Answer --version."""
    if wanted:
        typer.echo(f"m3rt {__version__}")
        raise typer.Exit


def note_json(ctx: typer.Context, wanted: bool) -> bool:
    """Remember --json, for Commands."""
    ctx.find_root().obj = wanted
    return wanted


def parse_heads(names: str) -> Heads:
    """Read --heads."""
    try:
        return Heads.parse(names.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def engine_names() -> list[str]:
    """Complete --engine."""
    return ["auto", *engines.BACKENDS]


def format_of(output: Path) -> Format:
    """Tell the format from how the output is named."""
    if output == STDOUT:
        return Format.JSONL
    try:
        return Format(output.suffix.removeprefix("."))
    except ValueError:
        raise typer.BadParameter(
            f"{output} ends in none of {', '.join(Format)}: pass --format"
        ) from None


Model = Annotated[Path, typer.Argument(help="Directory that m3rt export wrote.")]
Json = Annotated[
    bool, typer.Option("--json", callback=note_json, is_eager=True, help="Results as JSON.")
]
Engine = Annotated[
    str, typer.Option(autocompletion=engine_names, help="A name from m3rt doctor, or auto.")
]
HeadsOption = Annotated[
    Heads | None,
    typer.Option(
        parser=parse_heads,
        metavar="HEADS",
        help="dense, sparse, colbert, joined by commas; or all.",
        show_default="all",
    ),
]
