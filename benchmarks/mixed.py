"""The mixed set that engines and peers are measured on."""

from __future__ import annotations

import json
from pathlib import Path


def mixed_set(data: Path) -> list[str]:
    """Return 48 XQuAD questions, in turn from each language, and 16 SciFact abstracts."""
    by_language = []
    for file in sorted((data / "ir" / "xquad").glob("xquad.*.json")):
        articles = json.loads(file.read_text("utf-8"))["data"]
        by_language.append(
            [qa["question"] for a in articles for p in a["paragraphs"] for qa in p["qas"]]
        )
    in_turn = [question for row in zip(*by_language, strict=False) for question in row]
    corpus = (data / "ir" / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()[:16]
    return in_turn[:48] + [json.loads(line)["text"] for line in corpus]
