"""Whether a text holds an answer: how MKQA is judged.

REFERENCE: FlagEmbedding 1.4.2, evaluation/mkqa/utils/normalize_text.py and compute_metrics.py,
which follow ChemDataExtractor and Contriever.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from m3rt.errors import missing

# Control characters that are dropped; tabs and line ends are not among them.
CONTROLS = [*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C), 0xAD]
ALIKE = {
    " ": "\u000b\u000c\u0085",
    "-": "‐‑⁃‒–—―−－⁻",
    '"': "“”„‟",
    "'": "‘’‚‛՚Ꞌꞌ＇`´′‵",
    "''": "″‶",
    "'''": "‴‷",
    "''''": "⁗",
    "...": "…",
    "/": "⁄∕",
}
TABLE: dict[int, str | None] = dict.fromkeys(CONTROLS) | {
    ord(one): written for written, many in ALIKE.items() for one in many
}


def normalise(text: str) -> str:
    """Return a document of the collection as MKQA embeds and judges it."""
    return text.translate(TABLE).replace(" . . . ", " ... ").lower()


def holds(answers: Sequence[Sequence[str]], text: Sequence[str]) -> bool:
    """Whether the tokens of any answer follow each other in those of a text."""
    return any(
        list(text[i : i + len(answer)]) == list(answer)
        for answer in answers
        for i in range(len(text) - len(answer) + 1)
    )


def tokens(text: str) -> list[str]:
    """Split into words and signs, in lower case, decomposed (NFD).

    Raises:
        UnavailableError: regex is not installed.
    """
    return [match.group().lower() for match in words().finditer(unicodedata.normalize("NFD", text))]


@cache
def words() -> Any:
    """Compile what a token is."""
    try:
        import regex
    except ImportError as error:
        raise missing("regex", "eval", "judging by answers") from error
    return regex.compile(
        r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
    )


def right(answers: Iterable[str], texts: Sequence[str]) -> list[int]:
    """Return which of the texts hold one of the answers."""
    wanted = [tokens(answer) for answer in answers]
    return [i for i, text in enumerate(texts) if holds(wanted, tokens(text))]
