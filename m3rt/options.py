"""The options and arguments of the command line that have a type of their own."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from m3rt import __version__, artifact, engines, records
from m3rt.errors import InputError
from m3rt.formats import STDOUT, Format
from m3rt.tokenizer import Tokenizer
from m3rt.types import Heads, Ragged

LEAST_LENGTH = 3  # tokens of a text that is not empty


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


def parse_lengths(numbers: str) -> tuple[int, ...]:
    """Read --lengths."""
    try:
        lengths = tuple(map(int, numbers.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{numbers!r} is not numbers joined by commas") from None
    if min(lengths) < LEAST_LENGTH:
        raise typer.BadParameter(f"{min(lengths)} is too short: at least {LEAST_LENGTH} tokens")
    return lengths


def engine_names() -> list[str]:
    """Complete --engine."""
    specs = [
        f"{name}:{precision}"
        for name, backend in engines.BACKENDS.items()
        for precision in backend.precisions
    ]
    return ["auto", *engines.BACKENDS, *specs]


def token_ids(model: Path, file: Path) -> Ragged[np.int32]:
    """Read texts for calibration, as token ids of a model."""
    found = artifact.read(model)
    tokenizer = Tokenizer.from_file(found.path / "tokenizer.json")
    with records.source(file) as stream:
        read = records.read(stream, str(file), jsonl=file.suffix == ".jsonl")
        texts = [record.text for record in read]
    if not texts:
        raise InputError(f"{file} holds no texts")
    return tokenizer(texts, found.manifest.max_length).ids


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
    str,
    typer.Option(
        autocompletion=engine_names,
        help="A name from m3rt doctor, with a precision if you like (cpu:int8), or auto.",
    ),
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
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        autocompletion=engine_names,
        help="As elsewhere; give it again for another.",
        show_default="auto",
    ),
]
Mixes = Annotated[
    list[str] | None,
    typer.Option(
        "--mix",
        help="queries, passages, mixed, long, or a file of texts; give it again for another.",
        show_default="mixed",
    ),
]
Lengths = Annotated[
    str,
    typer.Option(help="Tokens of the texts whose latency is measured, joined by commas."),
]
