"""How long the texts are that an engine is built for: a histogram of lengths in tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt import mixes, records
from m3rt.errors import InputError

# What is built for where nothing is declared: as many queries as passages, for each passage that
# is indexed may be searched for, and one long text for ten of them, which is about as many tokens.
# None of the three is so rare that the others set every edge.
DEFAULT = "queries=10,passages=10,long=1"

LONGEST = 1 << 31  # tokens; more is a mistake
LARGEST = 1e300  # number that is read at all
MOST = 1e15  # texts of a length; sums of more than this lose single ones
LINE = re.compile(r"(\S+?)(?:\s*,\s*|\s+)(\S+)|([^\s,]+)")
EXPECTED = "expected a length in tokens, or a length and a number of texts: 128, or 128,40"


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """How many texts there are of each length, special tokens included."""

    lengths: NDArray[np.int64]  # (k,) ascending, from 1
    counts: NDArray[np.float64]  # (k,) more than zero; only their proportions matter

    def upto(self, longest: int) -> Traffic:
        """Return what is left of it where longer texts are cut to a length."""
        return of(
            zip(np.minimum(self.lengths, longest).tolist(), self.counts.tolist(), strict=True)
        )

    def over(self, longest: int) -> float:
        """Return the share of the texts that are longer."""
        return float(self.counts[self.lengths > longest].sum() / self.counts.sum())

    def between(self, least: int, most: int) -> Traffic | None:
        """Return the texts of a range of lengths, ends included; None where there are none."""
        there = (self.lengths >= least) & (self.lengths <= most)
        return Traffic(self.lengths[there], self.counts[there]) if there.any() else None

    def median_of_tokens(self) -> int:
        """Return the length up to which texts hold half of all tokens."""
        tokens = np.cumsum(self.lengths * self.counts)
        return int(self.lengths[np.searchsorted(tokens, tokens[-1] / 2)])


def of(pairs: Iterable[tuple[int, float]]) -> Traffic:
    """Make a histogram of lengths and numbers of texts; a length may come again.

    Raises:
        InputError: a length is not within 1 and 2**31, a number of texts is negative, not finite or
            more than 1e15, or there is no text at all.
    """
    found: dict[int, float] = {}
    for length, count in pairs:
        check(length, count)
        if count:
            found[length] = found.get(length, 0.0) + count
    if not found:
        raise InputError("there is no text in it, expected at least one length")
    lengths = sorted(found)
    return Traffic(np.array(lengths, np.int64), np.array([found[n] for n in lengths], np.float64))


def check(length: int, count: float) -> None:
    """Refuse a length or a number of texts that cannot be."""
    if not 1 <= length <= LONGEST:
        raise InputError(f"the length is {length}, expected 1 to {LONGEST} tokens")
    if not 0 <= count <= MOST:  # nor NaN
        raise InputError(f"the number of texts is {count:g}, expected 0 to {MOST:g}")


def declared(mix: str = DEFAULT) -> Traffic:
    """Make the histogram of a built-in mix of m3rt.mixes, or of several.

    Args:
        mix: a name; or names with their shares of the texts, as in ``queries=3,passages=1``. A
            share that is left out is 1.

    Raises:
        InputError: there is no such mix, or a share is not a number above zero.
    """
    pairs: list[tuple[int, float]] = []
    for part in mix.split(","):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if name not in mixes.LENGTHS:
            raise InputError(f"no mix {name!r}; there are {', '.join(mixes.LENGTHS)}")
        share = number(text) if equals else 1.0
        if share is None or not 0 < share <= MOST:
            raise InputError(f"the share of {name} is {text!r}, expected a number, as in {name}=3")
        lengths = mixes.LENGTHS[name]
        pairs += ((length, share / len(lengths)) for length in lengths)
    return of(pairs)


def read(path: Path) -> Traffic:
    """Read lengths from a file; ``-`` is stdin.

    A line is a length in tokens, or a length and a number of texts with a comma or a space between
    them. A file that begins with ``[`` or ``{`` is JSON: lengths, or an object of the number of
    texts by length.

    Raises:
        InputError: it cannot be read or is none of these; names the line.
    """
    name = records.name_of(path)
    with records.source(path) as stream:
        lines = list(records.lines(stream, name, lambda line, _: line))
    text = "\n".join(lines)
    try:
        if text.lstrip().startswith(("[", "{")):
            return of(of_json(text))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(pair(line.strip()))
            check(*pairs[-1])
        except InputError as error:
            raise InputError(f"{name}, line {number}: {error}") from error
    try:
        return of(pairs)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def pair(line: str) -> tuple[int, float]:
    """Read a line: a length, perhaps with a number of texts.

    Raises:
        InputError: it is none.
    """
    found = LINE.fullmatch(line)
    length = whole(found[1] or found[3]) if found else None
    count = number(found[2] or "1") if found else None
    if length is None or count is None:
        raise InputError(f"found {line[:40]!r}, {EXPECTED}")
    return length, count


def of_json(text: str) -> Iterator[tuple[int, float]]:
    """Read JSON: a list of lengths, or an object of the number of texts by length.

    Raises:
        InputError: it is neither.
    """
    try:
        # as pairs, so that a length that stands there twice counts twice
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it begins as JSON and is not ({error}); {EXPECTED}") from error
    if isinstance(found, list):
        for i, length in enumerate(found):
            if not is_number(length) or length != length // 1:
                raise InputError(f"entry {i} is {shown(length)}, expected a length in tokens")
            yield int(length), 1.0
        return
    for key, count in found:
        length = whole(key)
        if length is None:
            raise InputError(f'the key {shown(key)} is no length, as in {{"128": 40}}')
        if not is_number(count):
            raise InputError(f"{key} has {shown(count)}, expected a number of texts")
        yield length, float(count)


def is_number(value: Any) -> bool:
    """Whether JSON gave a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST  # NaN is not


def shown(value: Any) -> str:
    """Show a value of JSON, or its beginning."""
    return repr(value)[:40]


def whole(text: str) -> int | None:
    """Read a whole number; None where there is none, or one too long to be a length."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def number(text: str) -> float | None:
    """Read a number; None where there is none."""
    try:
        return float(text)
    except ValueError:
        return None
