"""The texts that are encoded: real where there is data, else of the parity gate's sentences."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from benchmarks.mixed import mixed_set
from m3rt.mixes import of_lengths, queries
from m3rt.tokenizer import Tokenizer

MEDIAN, SPREAD = 300, 0.8  # tokens of documents, log-normal: one in 40 has over 1400
PARITY = (5, 12, 30, 75, 150, 260, 511, 512, 700, 1024, 2049, 4100, 8192)  # tokens


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: of the full size, or to see that it runs."""

    lengths: tuple[int, ...] = (16, 64, 128, 512, 2048, 8192)  # of texts of equal length
    paths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)  # where attention has a choice
    latency: tuple[int, ...] = (16, 128, 512)
    tokens: int = 65536  # of each set of one length
    queries: int = 2048  # texts
    documents: int = 384  # texts
    longest: int = 8192
    budgets: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768, 65536)  # tokens of a step
    samples: int = 50  # of latency in a round
    rounds: int = 4  # of latency; of the others half as many, or one more than that
    seconds: float = 0.5  # of one turn


TINY = Scale(
    lengths=(16, 64),
    paths=(64, 128),
    latency=(16,),
    tokens=256,
    queries=8,
    documents=4,
    longest=200,
    budgets=(64, 256),
    samples=3,
    rounds=2,
    seconds=0.01,
)


def documents(n: int, longest: int) -> list[int]:
    """Return the lengths of documents."""
    normal = NormalDist(math.log(MEDIAN), SPREAD)
    lengths = (round(math.exp(normal.inv_cdf((i + 0.5) / n))) for i in range(n))
    return [min(length, longest) for length in lengths]


def lengths_of(scale: Scale) -> dict[str, list[int]]:
    """Return the lengths in tokens of the texts of each set, in the order in which they come."""
    asked, read = queries(scale.queries), documents(scale.documents, scale.longest)
    sets = {
        "mixed": asked[::2] + read[::2],
        "documents": read,
        "queries": asked,
        "parity": [length for length in PARITY if length <= scale.longest],
    }
    for lengths in sets.values():
        random.Random(0).shuffle(lengths)  # short ones among long ones
    for length in sorted({*scale.lengths, *scale.paths, *scale.latency}):
        sets[f"length {length}"] = [length] * max(1, scale.tokens // length)
    return sets


def write(scale: Scale, tokenizer: Tokenizer, data: Path | None, work: Path) -> dict[str, Any]:
    """Write every set as a JSON list, and return how many texts and tokens each has."""
    folder = work / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    about = {}
    for name, lengths in lengths_of(scale).items():
        if name == "mixed" and data is not None and (data / "ir" / "scifact").is_dir():
            texts = mixed_set(data, scale.queries // 2, scale.documents // 2)
            random.Random(0).shuffle(texts)
        else:
            texts = made(tokenizer, lengths)
        file(work, name).write_text(json.dumps(texts), "utf-8")
        counted = tokenizer.lengths(texts)
        about[name] = {
            "texts": len(texts),
            "tokens": int(counted.sum()),
            "pairs": int((counted.astype(object) ** 2).sum()),  # of tokens of one text
            "longest": int(counted.max()),
        }
    return about


def made(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[str]:
    """Return texts of these lengths; those of equal length are a few that come again."""
    few = {length: lengths.count(length) for length in dict.fromkeys(lengths)}
    texts = {
        # stripped: runtimes do not agree on whether a blank at the end is a token
        length: [text.strip() for text in of_lengths(tokenizer, [length] * min(count, 4))]
        for length, count in few.items()
    }
    return [texts[length][i % len(texts[length])] for i, length in enumerate(lengths)]


def file(work: Path, name: str) -> Path:
    """Return the file of a set."""
    return work / "texts" / f"{name.replace(' ', '-')}.json"


def alone(work: Path, length: int) -> str:
    """Return a text of so many tokens."""
    texts: list[str] = json.loads(file(work, f"length {length}").read_text("utf-8"))
    return texts[0]


def described(about: Mapping[str, Any], name: str) -> str:
    """Return a set in words."""
    return f"{about[name]['texts']} texts, {about[name]['tokens']} tokens"
