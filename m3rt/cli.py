"""The command line: parses, calls, prints. See docs/cli.md."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3rt import api, artifact, formats, options, parity, records, render
from m3rt import build as prepare
from m3rt.errors import EngineError, M3Error, ParityError, UnavailableError
from m3rt.formats import Format
from m3rt.options import (
    Engine,
    Engines,
    HeadsOption,
    InputFormat,
    Json,
    Lengths,
    Mixes,
    Model,
    OnLong,
    Pooling,
)
from m3rt.types import Heads

BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended
TERMINATED = 143  # the same for SIGTERM
STOPPING = threading.Event()


class Commands(TyperGroup):
    """Turns errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; ``ctx.obj`` is true where it was given --json."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is still buffered would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except (M3Error, OSError) as error:
            if STOPPING.is_set():  # in the midst of a library that turned it into its own error
                raise typer.Exit(TERMINATED) from error
            if ctx.obj:
                kind = type(error).__name__
                render.say_json({"error": {"type": kind, "message": str(error)}})
            else:
                render.say(f"error: {error}")
            raise typer.Exit(error.exit_code if isinstance(error, M3Error) else 1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=options.show_version, is_eager=True, help="Show it."),
    ] = False,
) -> None:
    """BGE-M3: dense, sparse and ColBERT embeddings from one forward pass."""


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Directory, or hub id such as BAAI/bge-m3.")],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    heads: HeadsOption = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Overrides the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of a hub id.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model directory.")] = False,
    builds: Annotated[
        list[str] | None, typer.Option("--build", help="Build for an engine, too: cpu:int8.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a model directory, and check it against the checkpoint."""
    from m3rt.export import Recipe, run

    recipe = Recipe(heads, pooling.value if pooling else None, revision, max_length)
    with differing(out, as_json), render.progress() as bar:
        made = run(checkpoint, out, recipe, force, bar)
        for spec in builds or []:
            _, made = prepare.run(out, spec, progress=bar)
    if as_json:
        render.show_json(render.described(made))
    else:
        render.show(render.parity(made.manifest.parity))


@app.command()
def build(
    model: Model,
    engine: Engine = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or int8; default: the engine's best.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="For int8: texts like those to embed, one a line, or JSONL."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is built.")] = False,
    as_json: Json = False,
) -> None:
    """Prepare a model directory for an engine: quantised weights, files that open fast."""
    with differing(model, as_json), render.progress() as bar:
        ids = None if calibration is None else options.token_ids(model, calibration)
        spec = f"{engine}:{precision}" if precision else engine
        choice, made = prepare.run(model, spec, ids, force, bar)
    done = made.manifest.builds.get(str(choice))
    if as_json:
        render.show_json(
            {"path": str(model), "built": str(choice) if done else None}
            | ({} if done is None else asdict(done))
        )
    elif done is None:
        render.say(f"{choice} has nothing to prepare: it runs {model} as it is")
    else:
        render.show(render.parity(done.parity))


@app.command()
def verify(
    model: Model,
    against: Annotated[
        str | None, typer.Option(help="Checkpoint to run; default: what it gave at export.")
    ] = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Hash every file, run the model, and compare."""
    found = artifact.read(model)
    size = sum(file.bytes for file in found.manifest.files.values())
    with differing(model, as_json), render.progress() as bar:
        task = bar.add_task("hash", total=size)
        artifact.check(found, progress=lambda n: bar.advance(task, n))
        if against is None:
            figures = parity.verify(found, engine, bar)
        else:
            from m3rt.export import verify as verify_against

            figures = verify_against(found, against, engine, bar)
    show_parity(model, figures, as_json)


@contextlib.contextmanager
def differing(model: Path, as_json: bool) -> Iterator[None]:
    """Show the figures of a ParityError before it goes on."""
    try:
        yield
    except ParityError as error:
        if error.parity:
            show_parity(model, error.parity, as_json)
        raise


def show_parity(model: Path, figures: Any, as_json: bool) -> None:
    """Print the figures of a comparison."""
    if as_json:
        render.show_json({"path": str(model), "parity": figures})
    else:
        render.show(render.parity(figures))


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what a model directory holds, and which engine would run it."""
    from m3rt.doctor import automatic

    found = artifact.read(model)
    name, why = automatic()
    if name and name not in found.manifest.builds and not name.startswith("cpu"):
        why += "; not built, so it starts slowly: run m3rt build"
    if as_json:
        render.show_json(render.described(found) | {"engine": {"auto": name, "detail": why}})
    else:
        render.show(*render.inspected(found, f"auto is {name}: {why}" if name else why))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, and which engines can run on it."""
    from m3rt.doctor import examine

    report = examine()
    if as_json:
        render.show_json(asdict(report) | {"ready": report.ready})
    else:
        render.show(*render.examined(report))
    if not report.ready:
        raise typer.Exit(UnavailableError.exit_code)


@app.command()
def encode(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Texts; - is stdin.")] = records.STDIN,
    output: Annotated[Path, typer.Option("--output", "-o", help="- is stdout.")] = formats.STDOUT,
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: as --output ends, else jsonl.")
    ] = None,
    input_format: Annotated[
        InputFormat, typer.Option(help="auto: jsonl if FILE ends in .jsonl, else text.")
    ] = InputFormat.AUTO,
    heads: HeadsOption = None,
    engine: Engine = "auto",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a text; default: the model's.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one step; default: the engine's.")
    ] = None,
    on_long: Annotated[OnLong, typer.Option(help="For longer texts.")] = OnLong.TRUNCATE,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Vocabulary entries beside sparse ids; jsonl only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Embed the texts of a file: one a line, or JSONL records with "text"."""
    to_terminal = output == formats.STDOUT and sys.stdout.isatty()
    form = form or options.format_of(output)
    if tokens and form is not Format.JSONL:
        raise typer.BadParameter(f"--tokens is for jsonl, not for {form}")
    if to_terminal and form is not Format.JSONL:
        raise typer.BadParameter(f"{form} is binary, and stdout a terminal: pass --output FILE")
    auto = InputFormat.JSONL if file.suffix == ".jsonl" else InputFormat.TEXT
    jsonl = (auto if input_format is InputFormat.AUTO else input_format) is InputFormat.JSONL

    name = "stdin" if file == records.STDIN else str(file)
    began = time.monotonic()
    m3 = api.load(model, engine)
    run = partial(
        m3.encode,
        heads=heads or Heads.ALL,
        max_length=max_length,
        on_long="error" if on_long is OnLong.ERROR else "truncate",
        batch_tokens=batch_tokens,
    )
    nothing = run([])  # refuses bad options before anything is read or written
    piece = m3.tokenizer.piece if tokens else None
    width = m3.manifest.colbert_dim or m3.manifest.hidden
    done = {"texts": 0, "tokens": 0, "truncated": 0}
    with (
        records.source(file) as stream,
        formats.sink(output, form) as target,
        formats.writer(form, target, nothing, width, piece) as write,
        render.progress(shown=not to_terminal) as bar,
    ):
        task = bar.add_task("encode", total=None if bar.disable else records.count(file))
        for chunk in records.chunks(records.read(stream, name, jsonl)):
            with records.placed(chunk):
                found = run([r.text for r in chunk], progress=lambda n: bar.advance(task, n))
            write([record.id for record in chunk], found)
            done["texts"] += len(found)
            done["tokens"] += int(found.n_tokens.sum())
            done["truncated"] += int(found.truncated.sum())
    if as_json:
        render.say_json(done | {"seconds": round(time.monotonic() - began, 3)})
    elif done["truncated"]:
        render.say(f"{done['truncated']} of {done['texts']} texts were too long and are truncated")


@app.command()
def bench(
    model: Model,
    engine: Engines = None,
    mix: Mixes = None,
    heads: HeadsOption = None,
    lengths: Lengths = "16,128,512",
    rounds: Annotated[int, typer.Option(min=1, help="Times each mix is encoded.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for an engine: what is over is measured less often.")
    ] = 180,
    streams: Annotated[int, typer.Option(min=1, help="Batches that run at once.")] = 1,
    compare: Annotated[Path | None, typer.Option(help="An earlier --output.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="Report to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure engines on this machine: speed, latency, memory, accuracy. See docs/bench.md."""
    from m3rt import comparison, report, tables
    from m3rt.bench import run
    from m3rt.result import Settings, document

    found = artifact.read(model)
    names = (heads or found.manifest.head_flags).names
    settings = Settings(names, options.parse_lengths(lengths), rounds, seconds, streams)
    before = comparison.read(compare) if compare else None
    with contextlib.ExitStack() as stack:
        # opened first: what cannot be written is refused before the time is spent
        to_json, to_html = (
            stack.enter_context(formats.sink(path, Format.JSONL)) if path else None
            for path in (output, html)
        )
        say = stack.enter_context(render.steps())
        result = run(found, engine or ["auto"], mix or ["mixed"], settings, say)
        kept = document(result)
        compared = comparison.compare(str(compare), before, kept) if before else None
        kept["comparison"] = asdict(compared) if compared else None
        if to_json:
            to_json.write(json.dumps(kept, indent=2).encode())
        if to_html:
            to_html.write(report.page(result, compared).encode())
    if as_json:
        render.show_json(kept)
    else:
        shown = map(render.sheet, tables.sheets(result, compared))
        render.show(render.facts(tables.about(result)), *shown)
    if not any(one.mixes for one in result.engines):
        reasons = "; ".join(f"{one.engine}: {one.error}" for one in result.engines)
        raise EngineError(f"no engine was measured: {reasons}")


def main() -> None:
    """Run the command line."""
    # leave as on an error, so that what is unfinished is removed
    signal.signal(signal.SIGTERM, stop)
    app(prog_name="m3rt")


def stop(*_: object) -> None:
    """Leave, on SIGTERM."""
    STOPPING.set()
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
