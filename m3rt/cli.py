"""The command line: parses, calls, prints. See docs/cli.md."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3rt import (
    api,
    artifact,
    formats,
    gate,
    measuring,
    options,
    records,
    render,
    rerank_command,
    serve_command,
    shaping_options,
    verdicts,
)
from m3rt import build as prepare
from m3rt.errors import M3Error, UnavailableError
from m3rt.formats import Format
from m3rt.options import (
    Calibration,
    DatasetLoss,
    DatasetOption,
    DevicesOption,
    Engine,
    Fallback,
    GateTexts,
    HeadsOption,
    InputFormat,
    Json,
    Model,
    OnLong,
    Recover,
    Tolerance,
)
from m3rt.shaping_options import (
    DeclaredMix,
    LengthsFile,
    MaxLength,
    MaxTokens,
    ProfileCount,
    Profiles,
    Target,
)
from m3rt.types import Heads, Pooling

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
    with verdicts.differing(out, as_json), render.progress() as bar:
        made = run(checkpoint, out, recipe, force, bar)
        for spec in builds or []:
            _, made = prepare.run(out, spec, progress=bar)
    if as_json:
        render.show_json(render.described(made))
    else:
        of_builds = map(verdicts.built, made.manifest.builds.values())
        render.show(render.parity(made.manifest.parity), *itertools.chain(*of_builds))


@app.command()
def build(
    model: Model,
    engine: Engine = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or fp8; default: the engine's best.")
    ] = None,
    calibration: Calibration = None,
    tolerance: Tolerance = None,
    gate_texts: GateTexts = None,
    dataset: DatasetOption = None,
    dataset_loss: DatasetLoss = None,
    recover: Recover = True,
    max_length: MaxLength = None,
    max_tokens: MaxTokens = None,
    profiles: Profiles = None,
    profile_count: ProfileCount = None,
    lengths: LengthsFile = None,
    mix: DeclaredMix = None,
    target: Target = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is built.")] = False,
    as_json: Json = False,
) -> None:
    """Prepare a model directory for an engine: quantised weights, files that open fast."""
    spec = f"{engine}:{precision}" if precision else engine
    shaping = shaping_options.read(
        model,
        spec,
        max_length=max_length,
        max_tokens=max_tokens,
        profiles=profiles,
        profile_count=profile_count,
        lengths=lengths,
        mix=mix,
        target=target,
    )
    with verdicts.differing(model, as_json), render.progress() as bar:
        ids = None if calibration is None else options.token_ids(model, calibration)
        terms = options.terms(model, tolerance, gate_texts, dataset, dataset_loss, recover)
        choice, made = prepare.run(model, spec, ids, force, bar, terms, shaping)
    done = made.manifest.builds.get(str(choice))
    if as_json:
        render.show_json(
            {"path": str(model), "built": str(choice) if done else None}
            | ({} if done is None else asdict(done))
        )
    elif done is None:
        render.say(f"{choice} has nothing to prepare: it runs {model} as it is")
    else:
        render.show(*verdicts.built(done))
        if note := verdicts.note(done):
            render.say(note)


@app.command()
def verify(
    model: Model,
    against: Annotated[
        str | None, typer.Option(help="Checkpoint to run; default: what it gave at export.")
    ] = None,
    engine: Engine = "auto",
    tolerance: Tolerance = None,
    gate_texts: GateTexts = None,
    dataset: DatasetOption = None,
    as_json: Json = False,
) -> None:
    """Hash every file, run the model, and compare."""
    found = artifact.read(model)
    size = sum(file.bytes for file in found.manifest.files.values())
    with verdicts.differing(model, as_json), render.progress() as bar:
        task = bar.add_task("hash", total=size)
        artifact.check(found, progress=lambda n: bar.advance(task, n))
        certificate = None
        if against is None:
            terms = options.terms(model, tolerance, gate_texts, dataset)
            figures, certificate = gate.verify(found, engine, terms, bar)
        else:
            from m3rt.export import verify as verify_against

            figures = verify_against(found, against, engine, bar)
    verdicts.show(model, figures, certificate, as_json)


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what a model directory holds, and which engine would run it."""
    from m3rt.doctor import automatic

    found = artifact.read(model)
    name, why = automatic(found)
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
    fallback: Fallback = None,
    devices: DevicesOption = None,
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
    to_terminal = formats.to_terminal(output)
    form = form or options.format_of(output)
    if tokens and form is not Format.JSONL:
        raise typer.BadParameter(f"--tokens is for jsonl, not for {form}")
    if to_terminal and form is not Format.JSONL:
        raise typer.BadParameter(f"{form} is binary, and stdout a terminal: pass --output FILE")
    jsonl = options.is_jsonl(file, input_format)

    began = time.monotonic()
    m3 = api.load(model, engine, fallback=fallback, devices=devices)
    run = partial(
        m3.encode,
        heads=heads or Heads.ALL,
        max_length=max_length,
        on_long="error" if on_long is OnLong.ERROR else "truncate",
        batch_tokens=batch_tokens,
    )
    nothing = run([])  # refuses bad options before anything is read or written
    if not as_json:
        render.say_engine(engine, m3.engine.name, m3.why)
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
        for chunk in records.chunks(records.read(stream, records.name_of(file), jsonl)):
            with records.placed(chunk, warn=not as_json):
                found = run([r.text for r in chunk], progress=lambda n: bar.advance(task, n))
            write([record.id for record in chunk], found)
            done["texts"] += len(found)
            done["tokens"] += int(found.n_tokens.sum())
            done["truncated"] += int(found.truncated.sum())
    if as_json:
        render.say_json(done | render.ended(m3, began))
        return
    render.say_recomputed(m3.recomputed, done["texts"], "texts", fallback)
    if done["truncated"]:
        render.say(f"{done['truncated']} of {done['texts']} texts were too long and are truncated")


app.command()(measuring.bench)
app.command("eval")(measuring.evaluate)
app.command()(rerank_command.rerank)
app.command("serve")(serve_command.command())


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
