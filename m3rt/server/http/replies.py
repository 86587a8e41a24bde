"""Answers, as bytes. Vectors go from numpy to JSON in one step, without objects in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from m3rt.server.work import Timings

JSON = "application/json"


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
    """Write JSON; numpy arrays in it become lists."""
    return orjson.dumps(content, default=plain, option=orjson.OPT_SERIALIZE_NUMPY)


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
