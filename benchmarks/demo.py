"""make demo: export a checkpoint, encode real sentences, look at the three outputs, search.

Without an argument the checkpoint is the small trained one of benchmarks/small, because the real
one cannot be had everywhere: it finds what shares words, or common words of one meaning. With the
real weights, ``make demo CHECKPOINT=BAAI/bge-m3`` searches by meaning, across languages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import m3rt
from benchmarks.small import CHECKPOINT
from m3rt import artifact, export, render, score

PASSAGES = (
    "The capital of France is Paris, and the Seine flows through it.",
    "Der Zug nach Berlin fährt um sieben Uhr morgens ab.",
    "To change your password, open the settings and choose a new one.",
    "El agua hierve a cien grados al nivel del mar.",
    "法国的首都是巴黎，塞纳河穿城而过。",
    "Столица Франции — Париж, через него течёт Сена.",
    "सीन नदी पेरिस से होकर बहती है।",
    "عاصمة فرنسا هي باريس.",
    "京都には古いお寺がたくさんあります。",
)
QUERIES = (
    "Which river flows through Paris?",
    "Wann fährt der Zug nach Berlin ab?",
    "Какая река протекает через Париж?",
    "哪条河流经巴黎？",
)
ANSWERS = (PASSAGES[0], PASSAGES[1], PASSAGES[5], PASSAGES[4])
WEIGHTS = score.Weights(dense=1.0, sparse=0.3, colbert=1.0)  # the paper's, for all three


def three_outputs(model: m3rt.M3, texts: tuple[str, ...], found: m3rt.Embeddings) -> Table:
    """Show dense, sparse and ColBERT of each text."""
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    table = Table(title="One forward pass, three outputs", show_lines=True)
    for column in ("text", "tokens", "dense", "sparse: top tokens by weight", "ColBERT"):
        table.add_column(column)
    for i, text in enumerate(texts):
        top = sorted(found.sparse[i].items(), key=lambda item: -item[1])[:5]
        table.add_row(
            text,
            str(found.n_tokens[i]),
            " ".join(f"{value:+.3f}" for value in found.dense[i, :4]) + " …",
            "  ".join(f"{model.tokenizer.piece(key)} {weight:.2f}" for key, weight in top),
            " x ".join(map(str, found.colbert[i].shape)),
        )
    return table


def alignment(model: m3rt.M3, query: str, passage: str) -> Table:
    """Show which token of the passage answers each token of the query best: MaxSim."""
    ids = model.tokenize([query, passage]).ids
    left, right = model.encode([query, passage], m3rt.Heads.COLBERT).colbert or []
    similarity = left @ right.T
    table = Table(title=f"MaxSim: {query}  →  {passage}")
    for column in ("query token", "best passage token", "similarity"):
        table.add_column(column)
    for i, j in enumerate(similarity.argmax(axis=1)):
        pieces = (model.tokenizer.piece(int(text[k + 1])) for text, k in ((ids[0], i), (ids[1], j)))
        table.add_row(*pieces, f"{similarity[i, j]:.3f}")
    table.add_row("mean", "", f"{similarity.max(axis=1).mean():.3f}", style="bold")
    return table


def search(query: str, row: int, scores: score.Scores) -> Table:
    """Show the best three passages for a query, with the score of every head."""
    assert scores.dense is not None
    assert scores.sparse is not None
    assert scores.colbert is not None
    table = Table(title=f"Search: {query}")
    for column in ("", "passage", "hybrid", "dense", "sparse", "ColBERT"):
        table.add_column(column)
    for rank, i in enumerate(np.argsort(-scores.combined[row])[:3], 1):
        parts = (scores.combined, scores.dense, scores.sparse, scores.colbert)
        table.add_row(str(rank), PASSAGES[i], *(f"{part[row, i]:.3f}" for part in parts))
    return table


def main(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory or hub id; none: the small trained one.")
    ] = "",
    folder: Annotated[Path, typer.Option(help="Where to keep the model.")] = Path(".demo"),
) -> None:
    """Export, encode, search."""
    console = Console()
    name = checkpoint.replace("/", "--") or "small"
    out = folder / name
    if not out.exists():
        source = checkpoint or str(CHECKPOINT)
        console.print(f"m3rt export {source} {out}")
        with Progress(console=console) as bars:
            export.run(source, out, progress=bars)
    console.print(render.parity(artifact.read(out).manifest.parity))
    model = m3rt.load(out)
    passages, queries = model.encode(PASSAGES), model.encode(QUERIES)
    console.print(three_outputs(model, PASSAGES, passages))
    console.print(alignment(model, QUERIES[0], PASSAGES[0]))
    scores = score.matrix(queries, passages, WEIGHTS)
    for row, query in enumerate(QUERIES):
        console.print(search(query, row, scores))
    if not checkpoint:
        console.print(
            "The model is benchmarks/small: four layers, 7 MB, trained for this project. "
            "With the real one: make demo CHECKPOINT=BAAI/bge-m3"
        )


if __name__ == "__main__":
    typer.run(main)
