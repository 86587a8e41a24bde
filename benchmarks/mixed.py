"""The mixed set that engines and peers are measured on."""

from __future__ import annotations

import json
from pathlib import Path


def mixed_set(data: Path, questions: int = 48, abstracts: int = 16) -> list[str]:
    """Return XQuAD questions, in turn from each language, and SciFact abstracts."""
    by_language = []
    for file in sorted((data / "ir" / "xquad").glob("xquad.*.json")):
        articles = json.loads(file.read_text("utf-8"))["data"]
        by_language.append(
            [qa["question"] for a in articles for p in a["paragraphs"] for qa in p["qas"]]
        )
    in_turn = [question for row in zip(*by_language, strict=False) for question in row]
    corpus = (data / "ir" / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()[:abstracts]
    return in_turn[:questions] + [json.loads(line)["text"] for line in corpus]
