"""The options and arguments of the command line that have a type of their own."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from m3rt import __version__, artifact, candidates, datasets, engines, records, sample, tolerances
from m3rt.artifact import Artifact
from m3rt.candidates import Candidates
from m3rt.engines.devices import Devices
from m3rt.errors import InputError
from m3rt.formats import STDOUT, Format
from m3rt.gate import Terms
from m3rt.pair_tokenizer import PairTokenizer
from m3rt.protocol import MIXTURES, Mixture
from m3rt.sample import AnySample
from m3rt.score import Weights
from m3rt.tokenizer import Tokenizer
from m3rt.types import Heads, Ragged

LEAST_LENGTH = 3  # tokens of a text that is not empty


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


def parse_weights(text: str) -> Mixture:
    """Read --weights: a name, or three numbers for dense, sparse and ColBERT."""
    if text in MIXTURES:
        return MIXTURES[text]
    try:
        dense, sparse, colbert = map(float, text.split(","))
    except ValueError:
        names = ", ".join(MIXTURES)
        raise typer.BadParameter(
            f"{text!r} is none of {names}, nor three numbers joined by commas"
        ) from None
    return Mixture(Weights(dense, sparse, 0), Weights(dense, sparse, colbert))


def chosen_languages(there: Sequence[str], asked: Sequence[str] | None) -> Sequence[str | None]:
    """Return the languages to read of a data set; None takes the only one, if it names any."""
    if not asked or not there:
        return [None]
    return there if "all" in asked else asked


def check_devices(asked: str | None) -> str | None:
    """Refuse --devices that cannot be, before anything is read."""
    try:
        Devices.read(asked)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    return asked


def devices_of(spec: str, devices: str | None, specs: Sequence[str]) -> str | None:
    """Return --devices for one of several engines: those for processors have none."""

    def on_gpu(name: str) -> bool:
        backend = engines.BACKENDS.get(name.partition(":")[0])
        return backend is None or backend.gpu

    if devices and not any(map(on_gpu, specs)):
        raise typer.BadParameter(f"--devices is for engines on GPUs, not for {', '.join(specs)}")
    return devices if on_gpu(spec) else None


def engine_names() -> list[str]:
    """Complete --engine."""
    specs = [
        f"{name}:{precision}"
        for name, backend in engines.BACKENDS.items()
        for precision in backend.precisions
    ]
    return ["auto", *engines.BACKENDS, *specs]


def token_ids(model: Path, file: Path) -> Ragged[np.int32]:
    """Read texts for calibration, as token ids of a model; for a reranker, pairs."""
    found = artifact.read(model)
    if found.manifest.is_reranker:
        return pair_ids(found, file)[0]
    tokenizer = Tokenizer.of(found)
    with records.source(file) as stream:
        read = records.read(stream, str(file), jsonl=file.suffix == ".jsonl")
        texts = [record.text for record in read]
    if not texts:
        raise InputError(f"{file} holds no texts")
    return tokenizer(texts, found.manifest.max_length).ids


def terms(
    model: Path,
    tolerance: list[str] | None,
    gate_texts: Path | None,
    dataset: Path | None,
    dataset_loss: str | None = None,
    recover: bool = True,
) -> Terms:
    """Read what an engine is held to."""
    changed = tolerances.parse(tolerance or [])
    if dataset_loss is not None:
        if dataset is None:
            raise typer.BadParameter("--dataset-loss is for --dataset")
        changed |= tolerances.parse([f"ndcg_loss={dataset_loss}"])
    return Terms(
        changed,
        None if gate_texts is None else gate_sample(model, gate_texts),
        None if dataset is None else datasets.read(dataset),
        recover,
    )


def pair_ids(model: Artifact, file: Path) -> tuple[Ragged[np.int32], Sequence[Candidates]]:
    """Read queries with documents, as m3rt rerank does; return each pair's token ids, too."""
    with records.source(file) as stream:
        asked = list(records.lines(stream, str(file), candidates.parse))
    pairs = [(one.query, document.text) for one in asked for document in one.documents]
    if not pairs:
        raise InputError(f"{file} holds no pairs")
    length = model.manifest.max_length
    return PairTokenizer(Tokenizer.of(model))(pairs, length, length * 3 // 4).ids, asked


def gate_sample(model: Path, file: Path) -> AnySample:
    """Read the user's own texts for the gate, or queries with documents for a reranker."""
    found = artifact.read(model)
    if not found.manifest.is_reranker:
        return sample.own(file.name, token_ids(model, file))
    ids, asked = pair_ids(found, file)
    return sample.own_pairs(file.name, ids, [len(one.documents) for one in asked])


def is_jsonl(file: Path, given: InputFormat) -> bool:
    """Whether a file holds JSON records, as given or as its name says."""
    auto = InputFormat.JSONL if file.suffix == ".jsonl" else InputFormat.TEXT
    return (auto if given is InputFormat.AUTO else given) is InputFormat.JSONL


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
Fallback = Annotated[
    str | None,
    typer.Option(
        autocompletion=engine_names,
        help="Engine for what gives NaN or Inf.",
        show_default="an error",
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices",
        callback=check_devices,
        metavar="NUMBERS",
        help="GPUs to run on, as 0,1; or all.",
        show_default="the first",
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
Calibration = Annotated[
    Path | None,
    typer.Option(help="For int8: texts like those to embed, or a reranker's input."),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance",
        metavar="NAME=VALUE",
        help="Of the gate, or a JSON file of several; give it again for another.",
        show_default="the precision's",
    ),
]
GateTexts = Annotated[
    Path | None,
    typer.Option(help="The gate's texts, or a reranker's input.", show_default="those built in"),
]
DatasetOption = Annotated[
    Path | None,
    typer.Option("--dataset", help="Measure nDCG@10 on this retrieval set, too."),
]
DatasetLoss = Annotated[
    str | None, typer.Option(help="Part of it that may be lost.", show_default="1.0%")
]
Recover = Annotated[
    bool,
    typer.Option("--recover/--no-recover", help="Raise layers of int8 that misses the gate."),
]
