"""``m3rt rerank``: documents in the order of their scores for a query."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from m3rt import api, candidates, formats, records, render
from m3rt.candidates import Candidates
from m3rt.formats import Format, dumps
from m3rt.options import (
    DevicesOption,
    Engine,
    Fallback,
    InputFormat,
    Json,
    Model,
    OnLong,
    is_jsonl,
)
from m3rt.reranker import Relevance, best


def rerank(
    model: Model,
    file: Annotated[
        Path, typer.Argument(help="Queries with documents; with --query, documents. - is stdin.")
    ] = records.STDIN,
    query: Annotated[
        str | None, typer.Option(help="Rank all texts of FILE for it; one a line, or JSONL.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="- is stdout.")] = formats.STDOUT,
    input_format: Annotated[
        InputFormat,
        typer.Option(help="With --query; auto: jsonl if FILE ends in .jsonl, else text."),
    ] = InputFormat.AUTO,
    top: Annotated[int | None, typer.Option(min=1, help="Documents kept of a query.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scores from 0 to 1: the sigmoid.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Documents beside their scores.")] = False,
    engine: Engine = "auto",
    fallback: Fallback = None,
    devices: DevicesOption = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a pair; default: the model's.")
    ] = None,
    query_max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a query; default: 3/4 of a pair's.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one step; default: the engine's.")
    ] = None,
    on_long: Annotated[OnLong, typer.Option(help="For longer pairs.")] = OnLong.TRUNCATE,
    as_json: Json = False,
) -> None:
    """Rank documents for queries with a reranker: JSONL with "query" and "documents"."""
    began = time.monotonic()
    reranker = api.load_reranker(model, engine, fallback=fallback, devices=devices)
    run = partial(
        reranker.score,
        normalize=normalize,
        max_length=max_length,
        query_max_length=query_max_length,
        on_long="error" if on_long is OnLong.ERROR else "truncate",
        batch_tokens=batch_tokens,
    )
    run([])  # refuses bad options before anything is read or written
    if not as_json:
        render.say_engine(engine, reranker.engine.name, reranker.why)
    done = {"queries": 0, "pairs": 0, "tokens": 0, "truncated": 0}
    with (
        records.source(file) as stream,
        formats.sink(output, Format.JSONL) as target,
        render.progress(shown=not formats.to_terminal(output)) as bar,
    ):
        task = bar.add_task("rerank", total=None)
        jsonl = is_jsonl(file, input_format)
        for chunk in candidates.chunks(asked(stream, records.name_of(file), query, jsonl)):
            pairs = [(one.query, document.text) for one in chunk for document in one.documents]
            with records.placed([d for one in chunk for d in one.documents], "pairs", not as_json):
                found = run(pairs, progress=lambda n: bar.advance(task, n))
            start = 0
            for one in chunk:
                rows = slice(start, start + len(one.documents))
                start = rows.stop
                write(target, one, taken(found, rows), top, text)
            target.flush()
            done["queries"] += len(chunk)
            done["pairs"] += len(found)
            done["tokens"] += int(found.n_tokens.sum())
            done["truncated"] += int(found.truncated.sum())
    if as_json:
        render.say_json(done | render.ended(reranker, began))
        return
    render.say_recomputed(reranker.recomputed, done["pairs"], "pairs", fallback)
    if done["truncated"]:
        render.say(f"{done['truncated']} of {done['pairs']} pairs were too long and are truncated")


def asked(stream: BinaryIO, name: str, query: str | None, jsonl: bool) -> Iterator[Candidates]:
    """Read queries with their documents, or all documents of one query."""
    if query is None:
        yield from records.lines(stream, name, candidates.parse)
    else:
        yield Candidates(None, query, tuple(records.read(stream, name, jsonl)), 1)


def taken(found: Relevance, rows: slice) -> Relevance:
    """Return the scores of some pairs."""
    return Relevance(found.scores[rows], found.n_tokens[rows], found.truncated[rows])


def write(
    target: BinaryIO, asked: Candidates, found: Relevance, top: int | None, text: bool
) -> None:
    """Write a line for each document of a query, best first."""
    for rank, i in enumerate(best(found.scores, top).tolist(), 1):
        document = asked.documents[i]
        fields = {} if asked.id is None else {"query": dumps(asked.id)}
        fields |= {
            "rank": str(rank),
            "id": dumps(document.id),
            "score": str(found.scores[i]),  # the fewest digits that give the same float32 back
            "n_tokens": str(found.n_tokens[i]),
            "truncated": dumps(bool(found.truncated[i])),
        }
        if text:
            fields["text"] = dumps(document.text)
        target.write(formats.braced(fields).encode() + b"\n")
