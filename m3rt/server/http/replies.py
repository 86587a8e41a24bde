"""Answers, as bytes. Vectors go from numpy to JSON in one step, without objects in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from m3rt.server.work import Timings

JSON = "application/json"
OPTIONS = orjson.OPT_SERIALIZE_NUMPY
PIECE = 1 << 16  # numbers written at once: some 2 milliseconds


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back."""

    body: bytes = b""
    status: int = 200
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Write JSON; numpy arrays in it become lists. float32 is written with the digits it needs."""
    return Reply(dumps(content), status, JSON, headers or {})


def dumps(content: Any) -> bytes:
    """Write JSON; numpy arrays in it become lists.

    No other thread runs Python while orjson writes: what is large is written in pieces of some
    milliseconds, between which the event loop has its turn.
    """
    pieces: list[bytes] = []
    write(content, pieces)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write(content: Any, pieces: list[bytes]) -> None:
    """Append JSON, each piece of PIECE numbers or strings at most."""
    if isinstance(content, str) or weight(content) <= PIECE:
        pieces.append(orjson.dumps(content, default=plain, option=OPTIONS))
    elif isinstance(content, dict):
        mark = b"{"
        for name, value in content.items():
            pieces.append(mark + orjson.dumps(name) + b":")
            write(value, pieces)
            mark = b","
        pieces.append(b"}")
    elif isinstance(content, np.ndarray):
        step = max(1, PIECE * len(content) // content.size)
        mark = b"["
        for first in range(0, len(content), step):
            block = np.ascontiguousarray(content[first : first + step])
            pieces.append(mark + orjson.dumps(block, default=plain, option=OPTIONS)[1:-1])
            mark = b","
        pieces.append(b"]")
    else:
        mark = b"["
        for some in runs(content):
            pieces.append(mark)
            if len(some) > 1:
                pieces.append(orjson.dumps(some, default=plain, option=OPTIONS)[1:-1])
            else:
                write(some[0], pieces)
            mark = b","
        pieces.append(b"]")


def weight(content: Any) -> int:
    """Return how many numbers and strings there are to write."""
    if isinstance(content, np.ndarray):
        return content.size
    if isinstance(content, dict):
        return sum(map(weight, content.values()))
    if isinstance(content, list | tuple):
        return sum(map(weight, content))
    return len(content) >> 4 if isinstance(content, str) else 1


def runs(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut a list into runs of PIECE numbers at most, or of one item."""
    first = held = 0
    for place, item in enumerate(items):
        one = weight(item)
        if place > first and held + one > PIECE:
            yield items[first:place]
            first, held = place, 0
        held += one
    yield items[first:]


def plain(value: Any) -> Any:
    """Return what orjson can write for an array that it cannot: strided, or of another type."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value) if not value.flags.c_contiguous else value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def server_timing(timings: Timings, total: float) -> str:
    """Write the header ``server-timing``: where the time went, in milliseconds.

    Args:
        timings: of the core.
        total: seconds since the request was there, with reading it and writing its answer.
    """
    parts = {
        "tokenize": timings.tokenise,
        "queue": timings.queue,
        "inference": timings.engine,
        "total": total,
    }
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items())
