"""Requests of a load: bytes that are made before the first one is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from m3rt.connection import Target
from m3rt.mixes import Counter, cut
from m3rt.types import Ints

ROUTE = "/v1/m3/embed"
CHARACTERS = 1 << 22  # of distinct texts, about
MEDIA = "application/x-safetensors"
FORMS: Mapping[str, Mapping[str, str]] = {  # what a body says of each
    "json": {},
    "base64": {"format": "base64", "dtype": "float16"},
    "binary": {"dtype": "float16"},
}


@dataclass(frozen=True, slots=True)
class Payload:
    """One request."""

    lane: str  # interactive, bulk; empty: the server decides
    data: bytes  # head and body
    texts: int
    question: int  # requests with the same body have the same


@dataclass(frozen=True, slots=True)
class Group:
    """Requests of one kind.

    Args:
        lane: what they say in ``x-priority``; empty says nothing.
        share: of all requests.
        texts: in each of them.
    """

    lane: str
    share: float
    texts: int


def body(texts: Sequence[str], heads: Sequence[str], form: str) -> bytes:
    """Return the body of a request."""
    content = {"inputs": list(texts), "outputs": list(heads), **FORMS[form]}
    return json.dumps(content, ensure_ascii=False).encode()


def make(
    target: Target,
    texts: Sequence[str],
    group: Group,
    heads: Sequence[str],
    form: str,
    keys: Sequence[str] = (),
    deadline_ms: float | None = None,
) -> list[Payload]:
    """Return the requests of a group, which hold each text once, for each key.

    Args:
        target: the server.
        texts: what is sent, all equally often; the last request begins again with the first ones.
        group: their kind.
        heads: asked for.
        form: one of FORMS.
        keys: API keys, all equally often; none sends none.
        deadline_ms: what a request says that it may take; None says nothing.
    """
    headers = {"x-priority": group.lane} if group.lane else {}
    if deadline_ms is not None:
        headers["x-request-timeout-ms"] = f"{deadline_ms:g}"
    if form == "binary":
        headers["accept"] = MEDIA
    found: list[Payload] = []
    for first in range(0, len(texts), group.texts):
        content = body([texts[(first + i) % len(texts)] for i in range(group.texts)], heads, form)
        question = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
        for key in keys or [""]:
            said = headers | ({"authorization": f"Bearer {key}"} if key else {})
            data = target.request(ROUTE, content, said)
            found.append(Payload(group.lane, data, group.texts, question))
    return found


def distinct(
    texts: Sequence[str], count: int, counter: Counter | None = None, mark: str = ""
) -> list[str]:
    """Return as many texts that all differ, made of some: with a number before them.

    Args:
        texts: some; they come first, if there is no mark.
        count: how many to return; fewer, if they are long, and all of texts in any case.
        counter: cuts a text to the tokens that it had; None leaves it longer by its number.
        mark: goes before each number, so that texts of another mark differ, too.
    """
    sizes = counter.lengths(texts).tolist() if counter else [0] * len(texts)
    most = CHARACTERS * len(texts) // max(1, sum(map(len, texts)))
    found = [] if mark else list(texts)
    number = 0
    while len(found) < max(min(count, most), len(texts)):
        number += 1
        for text, size in zip(texts, sizes, strict=True):
            longer = f"{mark}{number} {text}"
            found.append(cut(counter, longer, size) if counter else longer)
    return found[: max(count, len(texts))]


class Estimate:
    """Counts tokens about, without a tokenizer: by what a server counted in some sentences.

    Args:
        lines: sentences.
        tokens: of each of them, special ones included.
        min_length: tokens of an empty text.
    """

    def __init__(self, lines: Sequence[str], tokens: Ints, min_length: int) -> None:
        self.min_length = min_length
        self._known = dict(zip(lines, tokens.tolist(), strict=True))
        rates = [
            (n - min_length) / max(1, len(line)) for line, n in zip(lines, tokens, strict=True)
        ]
        found: dict[str, list[float]] = {}
        for line, rate in zip(lines, rates, strict=True):
            for character in set(line):
                found.setdefault(character, []).append(rate)
        self._of = {character: float(np.mean(values)) for character, values in found.items()}
        self._else = float(np.mean(rates)) if rates else 1.0

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return about how many tokens each text has; exactly for the sentences."""
        return np.array([self._length(text) for text in texts], np.int32)

    def _length(self, text: str) -> int:
        known: int | None = self._known.get(text)
        if known is not None:
            return known
        return self.min_length + round(sum(self._of.get(c, self._else) for c in text))
