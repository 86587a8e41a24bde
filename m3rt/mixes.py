"""Texts to measure with: built-in mixes of lengths, or the user's own file.

Built-in texts are made of the sentences of the parity gate, in some forty languages, cut so that
they have the declared number of the model's own tokens. Nothing is downloaded, and the same
tokenizer gives the same texts.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count, islice
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

from m3rt import records
from m3rt.errors import ArtifactError, InputError
from m3rt.types import Ints

# Of a file, at most so much is measured: a round must end.
TEXTS = 256
CHARACTERS = 1 << 16
STRIDE = 7  # texts that follow each other begin with sentences so far apart


class Counter(Protocol):
    """Counts tokens: a Tokenizer, or what estimates them."""

    @property
    def min_length(self) -> int:
        """Tokens of an empty text."""

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return the tokens of each text, special ones included."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Texts that are measured together."""

    name: str  # built-in, or the file as the user wrote it
    texts: tuple[str, ...]


def queries(n: int) -> list[int]:
    """Return the lengths of short questions: half have more than 12 tokens, one in 40 over 24."""
    normal = NormalDist(math.log(12), 0.35)
    return [max(5, round(math.exp(normal.inv_cdf((i + 0.5) / n)))) for i in range(n)]


def passages(n: int) -> list[int]:
    """Return the lengths of passages: from 100 to 500 tokens, each as likely."""
    return [100 + round(400 * (i + 0.5) / n) for i in range(n)]


# Name to lengths in tokens, special tokens included.
LENGTHS: Mapping[str, tuple[int, ...]] = {
    "queries": tuple(queries(64)),
    "passages": tuple(passages(24)),
    "mixed": (*queries(48), *passages(16)),
    "long": (1024, 2048, 4096, 8192),
}


def read(name: str, tokenizer: Counter | None, max_length: int) -> Mix:
    """Return a built-in mix, or the texts of a file: one a line, or JSONL if it ends in .jsonl.

    Args:
        name: of a mix, or of a file.
        tokenizer: the model's; a file needs none.
        max_length: a built-in text that would be longer gets this length.

    Raises:
        InputError: there is no such mix or file, or the file cannot be read or holds no text.
    """
    if name in LENGTHS and tokenizer is not None:
        wanted = [min(length, max_length) for length in LENGTHS[name]]
        random.Random(0).shuffle(wanted)  # as texts come: short ones among long ones
        return Mix(name, tuple(of_lengths(tokenizer, wanted)))
    path = Path(name)
    if path != records.STDIN and not path.is_file():
        raise InputError(f"no mix {name!r}, and no such file; there are {', '.join(LENGTHS)}")
    with records.source(path) as stream:
        found = records.read(stream, name, path.suffix == ".jsonl")
        chunk = next(records.chunks(found, TEXTS, CHARACTERS), [])
    if not chunk:
        raise InputError(f"{name} holds no text; expected one a line, or JSONL")
    return Mix(name, tuple(record.text for record in chunk))


def of_lengths(tokenizer: Counter, lengths: Sequence[int]) -> Iterator[str]:
    """Give one text for each length, in tokens; a token less where no cut gives just as many.

    Raises:
        ArtifactError: the tokenizer gives no tokens for any sentence.
    """
    lines = files("m3rt").joinpath("export/sentences.txt").read_text("utf-8").splitlines()
    sizes = tokenizer.lengths(lines) - tokenizer.min_length
    if not sizes.any():
        raise ArtifactError("the tokenizer gives no tokens for text: run m3rt verify MODEL")
    for i, length in enumerate(lengths):
        taken, tokens = [], 0
        for place in islice(count(i * STRIDE), 10**6):
            taken.append(lines[place % len(lines)])
            tokens += int(sizes[place % len(lines)])
            if tokens > length:
                break
        yield cut(tokenizer, " ".join(taken), length)


def cut(tokenizer: Counter, text: str, length: int) -> str:
    """Return the longest beginning of at most so many tokens.

    By bisection, as if one more character never took tokens away; where it does, the beginning
    may be a token shorter than it could be.
    """

    def tokens(end: int) -> int:
        return int(tokenizer.lengths([text[:end]])[0])

    return text[: bisect_right(range(len(text) + 1), length, key=tokens) - 1]
