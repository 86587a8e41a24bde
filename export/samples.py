"""Texts for the parity gate: many languages, edge cases, and lengths up to the model's longest.

Pairs of them are for rerankers.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from m3rt.heads import join
from m3rt.pair_tokenizer import PairTokenizer
from m3rt.tokenizer import Tokenizer
from m3rt.types import Ragged

EDGES = (
    "",
    " ",
    "\n\t\u00a0\u3000",
    "a",
    "the the the The THE the",
    "<s> </s> <pad> <unk> <mask> [CLS] [SEP]",
    "a literal <pad> moves <pad> no position </s> here",
    "trailing blanks   ",
    "e\u0301 \u00e9 \ufb01 \u2460 \uff21",  # combining, ligature, circled, full width
    "👩‍👩‍👧 🇫🇷 🤷🏽‍♀️ \U000e0041",
    "\u202eright to left\u202c \u200b zero \u200d width",
    "x" * 300,
    "https://example.org/a/b?c=d&e=%20#f 3.14159 2026-11-23 [1] {2} def f(x): return x**2",
    "\x00\x01\x1f\x7f\ufffd\ufeff",
)
LENGTHS = (64, 300, 1024, 8192)  # tokens; those beyond the model's own are left out


def sentences() -> list[str]:
    """Return one sentence per line of sentences.txt, in some forty languages."""
    return files("m3rt.export").joinpath("sentences.txt").read_text("utf-8").splitlines()


def pairs(tokenizer: Tokenizer, max_length: int) -> Ragged[np.int32]:
    """Return the token ids of the gate's pairs, for a reranker.

    Each sentence with itself, with the next, which may be its translation, and with the middle
    one, which has little to do with it; each edge case on either side; and long documents.
    """
    lines, middle = sentences(), sentences()[len(sentences()) // 2]
    texts = [*lines, *EDGES]
    after = [*texts[1:], texts[0]]
    joined = PairTokenizer(tokenizer)
    short = [*zip(texts, texts, strict=True), *zip(texts, after, strict=True)]
    short += [(line, middle) for line in lines]
    text = " ".join(lines)
    copies = max_length // len(tokenizer.bare([text], max_length)[0][0]) + 1
    long = (lines[0], " ".join([text] * copies))
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    return join(
        [joined(short, max_length, max_length).ids]
        + [joined([long], length, length).ids for length in lengths]
    )


def tokens(tokenizer: Tokenizer, max_length: int) -> Ragged[np.int32]:
    """Return the token ids of the gate's texts."""
    lines = sentences()
    text = " ".join(lines)
    copies = max_length // len(tokenizer([text], max_length).ids.values) + 1
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    return join(
        [tokenizer([*lines, *EDGES], max_length).ids]
        + [tokenizer([" ".join([text] * copies)], length).ids for length in lengths]
    )
