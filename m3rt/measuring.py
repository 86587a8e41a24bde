"""The commands that measure: bench and eval."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from m3rt import api, artifact, formats, load_command, load_options, options, render
from m3rt.errors import EngineError
from m3rt.formats import Format
from m3rt.loads import LoadSettings
from m3rt.options import DevicesOption, Engines, HeadsOption, Json, Mixes, Model
from m3rt.runtime import M3
from m3rt.types import Heads

LENGTHS = "16,128,512"


def bench(
    ctx: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="Directory that m3rt export wrote; see --server.")
    ] = None,
    engine: Engines = None,
    mix: Mixes = None,
    heads: HeadsOption = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Tokens of the texts whose latency is measured, joined by commas; for --server, "
            "of the texts that are sent, in place of a mix.",
            show_default=LENGTHS,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times each mix is encoded.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for an engine: what is over is measured less often.")
    ] = 180,
    streams: Annotated[int, typer.Option(min=1, help="Batches that run at once.")] = 1,
    devices: DevicesOption = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --output.")] = None,
    server: load_options.Server = None,
    rate: load_options.Rates = None,
    load: load_options.Shares = None,
    duration: load_options.Duration = load_options.DEFAULT.seconds,
    warm_up: load_options.WarmUp = load_options.DEFAULT.warm_up,
    texts: load_options.Texts = load_options.DEFAULT.texts,
    distinct: load_options.Distinct = load_options.DEFAULT.distinct,
    form: load_options.Form = load_options.DEFAULT.form,
    slo_ms: load_options.Slo = load_options.DEFAULT.slo_ms,
    deadline_ms: load_options.Deadline = None,
    bulk: load_options.Bulk = load_options.DEFAULT.bulk,
    bulk_texts: load_options.BulkTexts = load_options.DEFAULT.bulk_texts,
    api_key: load_options.Keys = None,
    connections: load_options.Connections = load_options.DEFAULT.connections,
    concurrency: load_options.Concurrency = load_options.DEFAULT.concurrency,
    timeout: load_options.Timeout = load_options.DEFAULT.timeout,
    check: load_options.Check = False,
    check_cosine: load_options.CheckCosine = load_options.DEFAULT.check_cosine,
    seed: load_options.Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="Report to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure engines on this machine, or a server under load. See docs/bench.md."""
    load_options.refuse(ctx, server)
    if server is not None:
        keys = tuple(api_key or ())
        given = load_options.rates(rate, load)
        asked = LoadSettings(
            heads=(heads or Heads.ALL).names,
            form=form,
            texts=texts,
            distinct=distinct,
            rates=given[0],
            loads=given[1],
            seconds=duration,
            warm_up=warm_up,
            slo_ms=slo_ms,
            deadline_ms=deadline_ms,
            bulk=bulk,
            bulk_texts=bulk_texts,
            keys=len(keys),
            connections=connections,
            concurrency=concurrency,
            timeout=timeout,
            check=check,
            check_cosine=check_cosine,
            seed=seed,
        )
        wanted = options.parse_lengths(lengths) if lengths else None
        with written(output, html) as files:
            load_command.run(server, model, mix, wanted, asked, keys, files, as_json)
        return
    if model is None:
        raise typer.BadParameter("MODEL is missing; or pass --server URL")
    sizes = options.parse_lengths(lengths or LENGTHS)
    engines(
        model,
        engine,
        mix,
        heads,
        sizes,
        rounds,
        seconds,
        streams,
        devices,
        compare,
        output,
        html,
        as_json,
    )


def engines(
    model: Path,
    engine: list[str] | None,
    mix: list[str] | None,
    heads: Heads | None,
    lengths: tuple[int, ...],
    rounds: int,
    seconds: float,
    streams: int,
    devices: str | None,
    compare: Path | None,
    output: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure engines on this machine."""
    from m3rt import comparison, report, tables
    from m3rt.bench import run
    from m3rt.result import Settings, document

    specs = engine or ["auto"]
    options.devices_of("auto", devices, specs)  # refuses them for processors alone
    found = artifact.read(model)
    names = (heads or found.manifest.head_flags).names
    settings = Settings(names, lengths, rounds, seconds, streams, devices)
    before = comparison.read(compare) if compare else None
    with written(output, html) as (to_json, to_html), render.steps() as say:
        result = run(found, specs, mix or ["mixed"], settings, say)
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


@contextlib.contextmanager
def written(*paths: Path | None) -> Iterator[list[BinaryIO | None]]:
    """Open files before the time is spent: what cannot be written is refused first."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(formats.sink(path, Format.JSONL)) if path else None
            for path in paths
        ]


def evaluate(
    model: Model,
    datasets: Annotated[
        list[Path], typer.Argument(help="Directories or files in BEIR's layout or another.")
    ],
    engine: Engines = None,
    devices: DevicesOption = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="dense, sparse, colbert, dense+sparse or all; give it again for another.",
            show_default="all that the model has heads for",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="paper, mldr, or three numbers joined by commas.",
            show_default="mldr for MLDR, else paper",
        ),
    ] = None,
    depth: Annotated[
        int, typer.Option(min=1, help="Documents that colbert and all re-rank.")
    ] = 200,
    hits: Annotated[int, typer.Option(min=1, help="Documents kept by the other modes.")] = 1000,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a document.", show_default="the data set's")
    ] = None,
    query_max_length: Annotated[
        int | None, typer.Option(help="Tokens of a query.", show_default="the data set's")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Of a data set in several; all, or give it again for another."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which judgments.", show_default="dev for MIRACL, else test")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="As ir-measures names it (P@5); give it again for another.",
            show_default="nDCG@10, Recall@100, MRR",
        ),
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Use the first so many.")] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Search so many: those judged, and the first others.")
    ] = None,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Judged documents may lack; they are not found.")
    ] = False,
    bench: Annotated[
        Path | None, typer.Option(help="A result of m3rt bench, for quality against speed.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="Report to write.")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Directory for the rankings, as trec_eval reads them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure retrieval with every head, on data sets that lie here. See docs/eval.md."""
    from m3rt import datasets as sets
    from m3rt import (
        evaluation,
        layouts,
        measures,
        protocol,
        quality,
        scoreboard,
        significance,
        trec,
    )

    specs = engine or ["auto"]
    options.devices_of("auto", devices, specs)  # refuses them for processors alone
    found = artifact.read(model)
    found.expect(reranker=False)
    measures.imported()  # what is lacking is said before anything is read
    if engine and len(engine) > 1:
        significance.imported()
    asked: dict[str, Any] = {
        "modes": tuple(mode) if mode else None,
        "mixture": options.parse_weights(weights) if weights else None,
        "max_length": max_length,
        "query_max_length": query_max_length,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    protocol.Protocol(**given)  # refuses what there is not, before anything is read
    speeds = quality.speeds(bench, found.manifest.source.checkpoint) if bench else ()
    read = [
        sets.read(path, language=one, split=split, missing="keep" if keep_missing else "error")
        for path in datasets
        for one in options.chosen_languages(layouts.languages(path, split), language)
    ]
    read = [dataset.first(queries, documents) for dataset in read]
    names = [dataset.name for dataset in read]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise typer.BadParameter(f"two data sets are called {twice}: rename one's directory")
    if runs:
        runs.mkdir(parents=True, exist_ok=True)
    with written(output, html) as (to_json, to_html), render.progress() as bar:

        def work(m3: M3, dataset: sets.Dataset) -> evaluation.Evaluation:
            task = bar.add_task(
                f"{dataset.name}, {m3.engine.name}",
                total=len(dataset.documents) + len(dataset.queries),
            )
            how = replace(protocol.of(dataset.layout), depth=depth, hits=hits, **given)
            for length in filter(None, (max_length, query_max_length)):
                m3.tokenize([], max_length=length)  # refuses what the model does not take
            done = evaluation.evaluate(
                m3, dataset, how, wanted=measure, progress=lambda n: bar.advance(task, n)
            )
            if runs:
                trec.write(runs, dataset, m3.engine.name, done.rankings)
            return replace(done, rankings={})

        result, failed = quality.run(
            model,
            specs,
            read,
            lambda spec: api.load(model, spec, devices=options.devices_of(spec, devices, specs)),
            work,
            speeds,
        )
        if not result.evaluations:
            raise next(iter(failed.values()))
        kept = quality.document(result)
        if to_json:
            to_json.write(json.dumps(kept, indent=2).encode())
        if to_html:
            to_html.write(scoreboard.page(result).encode())
    if as_json:
        render.show_json(kept)
    else:
        render.show(render.facts(scoreboard.about(result)))
        render.show(*map(render.sheet, scoreboard.sheets(result)))
    for error in failed.values():
        raise error
