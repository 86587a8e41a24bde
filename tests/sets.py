"""Data sets as they are published, in small: written into a folder, for tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m3rt import sample

DOCUMENTS = {
    "d1": ("Paris", "The capital of France, on the Seine."),
    "d2": ("Berlin", "Die Hauptstadt von Deutschland liegt an der Spree."),
    "d3": ("", "巴黎是法国的首都。"),
    "d4": ("Water", "Water boils at one hundred degrees."),
}
QUERIES = {"q1": "capital of France", "q2": "Hauptstadt von Deutschland"}
QRELS = {"q1": {"d1": 2, "d3": 1, "d4": 0}, "q2": {"d2": 1}}


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON lines, gzipped if the name says so."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write(path, text)


def write(path: Path, text: str) -> Path:
    """Write a text, gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def beir(folder: Path, end: str = "", qrels: str = "qrels/test.tsv") -> Path:
    """Write BEIR's layout; there are queries of other splits, too."""
    jsonl(
        folder / f"corpus.jsonl{end}",
        ({"_id": i, "title": t, "text": x, "metadata": {}} for i, (t, x) in DOCUMENTS.items()),
    )
    every = QUERIES | {"train-1": "of another split"}
    jsonl(folder / f"queries.jsonl{end}", ({"_id": i, "text": t} for i, t in every.items()))
    lines = [f"{q}\t{d}\t{g}" for q, grades in QRELS.items() for d, g in grades.items()]
    write(folder / qrels, "query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


def known_items(folder: Path) -> Path:
    """Write the gate's passages in BEIR's layout; the query of each is how it begins."""
    _, texts = sample.texts()
    jsonl(folder / "corpus.jsonl", ({"_id": f"d{i}", "text": t} for i, t in enumerate(texts)))
    jsonl(folder / "queries.jsonl", ({"_id": f"q{i}", "text": t[:20]} for i, t in enumerate(texts)))
    lines = [f"q{i}\td{i}\t1" for i in range(len(texts))]
    write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


def miracl(folder: Path, language: str = "de", beside: str = "") -> Path:
    """Write MIRACL's layout, as the repositories miracl and miracl-corpus have it."""
    name = f"miracl-v1.0-{language}"
    one = folder / name
    write(one / f"topics/topics.{name}-dev.tsv", "".join(f"{i}\t{t}\n" for i, t in QUERIES.items()))
    write(one / f"topics/topics.{name}-test-b.tsv", "9\tnot judged\n")
    lines = [f"{q}\tQ0\t{d}\t{g}\n" for q, grades in QRELS.items() for d, g in grades.items()]
    write(one / f"qrels/qrels.{name}-dev.tsv", "".join(lines))
    rows = [{"docid": i, "title": t, "text": x} for i, (t, x) in DOCUMENTS.items()]
    corpus = folder / beside / f"miracl-corpus-v1.0-{language}"
    jsonl(corpus / "docs-0.jsonl.gz", rows[:1])
    jsonl(corpus / "docs-2.jsonl.gz", rows[1:3])
    jsonl(corpus / "docs-10.jsonl.gz", rows[3:])
    return folder


def mldr(folder: Path, language: str = "de", qrels: bool = True) -> Path:
    """Write MLDR's layout, as Shitao/MLDR has it."""
    name = f"mldr-v1.0-{language}"
    rows = [{"docid": i, "text": f"{t} {x}".strip()} for i, (t, x) in DOCUMENTS.items()]
    jsonl(folder / name / "corpus.jsonl.gz", rows)
    text = {row["docid"]: row["text"] for row in rows}
    questions = [
        {
            "query_id": query,
            "query": QUERIES[query],
            "positive_passages": [passage(text, d) for d, g in QRELS[query].items() if g],
            "negative_passages": [passage(text, d) for d, g in QRELS[query].items() if not g],
        }
        for query in QUERIES
    ]
    jsonl(folder / name / "test.jsonl.gz", questions)
    jsonl(folder / name / "dev.jsonl.gz", questions[:1])
    if qrels:
        lines = [f"{q}\t0\t{d}\t{g}\n" for q, grades in QRELS.items() for d, g in grades.items()]
        write(folder / f"qrels/qrels.{name}-test.tsv", "".join(lines))
    return folder


def passage(text: Mapping[str, str], document: str) -> dict[str, str]:
    """Return a passage of MLDR."""
    return {"docid": document, "text": text[document]}


def flag(folder: Path, language: str = "de", titles: bool = True, split: str = "dev") -> Path:
    """Write what FlagEmbedding's evaluation stores for MIRACL, or without titles for MLDR."""
    one = folder / language
    title = {"title": ""} if titles else {}
    jsonl(
        one / "corpus.jsonl",
        ({"id": i} | (title and {"title": t}) | {"text": x} for i, (t, x) in DOCUMENTS.items()),
    )
    jsonl(one / f"{split}_queries.jsonl", ({"id": i, "text": t} for i, t in QUERIES.items()))
    jsonl(
        one / f"{split}_qrels.jsonl",
        (
            {"qid": q, "docid": d, "relevance": g}
            for q, grades in QRELS.items()
            for d, g in grades.items()
        ),
    )
    return folder


def mkqa(folder: Path, languages: Iterable[str] = ("de", "ja")) -> Path:
    """Write MKQA's layout: FlagEmbedding's questions beside BEIR's NQ."""
    jsonl(
        folder / "corpus.jsonl.gz",
        ({"_id": i, "title": t, "text": x} for i, (t, x) in DOCUMENTS.items()),
    )
    for language in languages:
        jsonl(
            folder / "qa_data" / f"{language}.jsonl",
            [
                {
                    "id": 7,
                    "question": "Welcher Fluss fließt durch Paris?",
                    "answers": ["the Seine"],
                },
                {"id": 8, "question": "Wann siedet Wasser?", "answers": ["100 °C", "ONE hundred"]},
                {"id": 9, "question": "Wer?", "answers": ["nobody knows"]},
            ],
        )
    return folder


def squad(path: Path) -> Path:
    """Write XQuAD's layout: a paragraph that stands there twice is one document."""
    paragraphs: list[dict[str, Any]] = [
        {
            "context": text,
            "qas": [
                {"id": f"{i}-{k}", "question": f"Question {k} of {title}?", "answers": []}
                for k in range(2)
            ],
        }
        for i, (title, text) in enumerate([*DOCUMENTS.values(), DOCUMENTS["d1"]])
    ]
    paragraphs[1]["qas"].append(
        {"id": "no", "question": "Impossible?", "is_impossible": True, "answers": []}
    )
    found = {"data": [{"title": "A", "paragraphs": paragraphs}], "version": "1.1"}
    return write(path, json.dumps(found))
