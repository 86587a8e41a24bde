"""What ``m3rt bench`` found: values, which its JSON holds under the same names.

An engine is named with its precision, as in ``cpu:int8``. Tokens are those that were encoded,
special tokens included, padding not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from statistics import median
from typing import Any

from m3rt.doctor import Report

SCHEMA = 1
# The parts of encoding, in their order; together they are the time that rates are of.
STAGES = ("tokenise", "plan", "run", "post")
SERIAL = ("jsonl", "npz")  # and what writing the result takes, in either format


@dataclass(frozen=True, slots=True)
class Spread:
    """Of n measurements."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one measurement."""
        return cls(median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest rank: the least measurement that so many percent do not exceed."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    heads: tuple[str, ...] = ("dense", "sparse", "colbert")
    lengths: tuple[int, ...] = (16, 128, 512)  # tokens of the texts whose latency is measured
    rounds: int = 3
    seconds: float = 180.0  # for each engine; what comes first is measured once in any case
    streams: int = 1  # batches that run at once
    devices: str | None = None  # GPUs, as --devices; None: the first


@dataclass(frozen=True, slots=True)
class Model:
    """Which model was measured."""

    path: str
    checkpoint: str
    revision: str | None
    hidden: int
    layers: int
    ffn: int | None  # width of the middle of a layer; None: config.json does not say


@dataclass(frozen=True, slots=True)
class Rate:
    """The best rate of a product (m, k) x (k, n) on this machine, in a library."""

    precision: str
    by: str
    shape: tuple[int, int, int]  # m, k, n
    flops: float  # FLOP/s; a multiplication and an addition are two


@dataclass(frozen=True, slots=True)
class MixFacts:
    """The texts of a mix, in the model's tokens."""

    name: str
    texts: int
    tokens: int
    quantiles: Mapping[str, int]  # min, p10, p50, p90, max of the lengths
    histogram: Mapping[str, int]  # texts of at most so many tokens, and of more than half as many


@dataclass(frozen=True, slots=True)
class MixRun:
    """An engine on a mix."""

    mix: str
    texts: int
    tokens: int
    truncated: int  # texts longer than the engine takes
    tokens_per_second: Spread  # over the rounds
    texts_per_second: Spread
    padding_share: float  # of the tokens computed, those that are padding
    seconds: Mapping[str, float]  # medians for the mix, by STAGES
    us_per_token: Mapping[str, float]  # by STAGES and SERIAL
    host_us_per_token: float  # processor time of tokenise, plan and post
    flops: float | None  # useful FLOP/s: padding does not count
    peak_share: float | None  # of the machine's measured rate in the engine's precision
    peak_memory: int | None  # bytes resident at most while the mix ran


@dataclass(frozen=True, slots=True)
class Latency:
    """One text at a time, in milliseconds, from text to embeddings."""

    length: int  # tokens
    n: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, length: int, seconds: Sequence[float]) -> Latency:
        """Summarise at least one measurement."""
        points = (1e3 * percentile(seconds, percent) for percent in (50, 90, 99))
        return cls(length, len(seconds), *points)


@dataclass(frozen=True, slots=True)
class LengthRate:
    """Texts of one length, as many as fill a step of the engine."""

    length: int  # tokens
    texts: int
    tokens_per_second: Spread


@dataclass(frozen=True, slots=True)
class BatchLatency:
    """Texts of one length in one call, in milliseconds."""

    texts: int
    length: int  # tokens
    milliseconds: Spread


@dataclass(frozen=True, slots=True)
class EngineRun:
    """An engine, in a process of its own. What was not measured is None or not there."""

    engine: str
    error: str | None = None  # why it ended before its time
    load_seconds: float | None = None  # from the call to a model that is ready
    first_seconds: float | None = None  # of the first text after that
    load_memory: int | None = None  # bytes resident at most until then
    mixes: tuple[MixRun, ...] = ()
    latency: tuple[Latency, ...] = ()
    lengths: tuple[LengthRate, ...] = ()
    batches: tuple[BatchLatency, ...] = ()
    accuracy: Mapping[str, Any] | None = None  # of m3rt.parity; None: there is no reference


@dataclass(frozen=True, slots=True)
class Result:
    """A whole benchmark."""

    created: str  # ISO 8601, UTC
    model: Model
    settings: Settings
    interleaved: bool  # the engines took turns; else one came after the other
    machine: Report
    load_average: float | None  # processes that wanted to run in the minute before
    peak: tuple[Rate, ...]  # the best of each precision, library and shape
    mixes: tuple[MixFacts, ...]
    engines: tuple[EngineRun, ...]
    schema: int = field(default=SCHEMA)


def document(result: Result) -> dict[str, Any]:
    """Return a result as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(result)))
    return found
