"""What ``m3rt bench --server`` found: values, which its JSON holds under the same names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np

from m3rt.doctor import Report
from m3rt.result import MixFacts

SCHEMA = 1
STAGES = ("tokenise", "queue", "engine", "total")  # of a server's own account of a request
ENOUGH = 1000  # samples for the 99.9th percentile


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What was asked for."""

    heads: tuple[str, ...] = ("dense", "sparse", "colbert")
    form: str = "json"  # of answers; see payloads.FORMS
    texts: int = 1  # of a request
    distinct: int = 1024  # texts that differ, about: a server may compute equal ones once
    rates: tuple[float, ...] = ()  # requests a second
    loads: tuple[float, ...] = ()  # rates as shares of the capacity, which is then measured
    seconds: float = 10.0  # measured, at each rate
    warm_up: float = 2.0  # seconds at each rate before that
    slo_ms: float = 1000.0  # the objective: an answer that took longer is no good
    deadline_ms: float | None = None  # said to the server
    bulk: float = 0.0  # share of requests that say they are bulk
    bulk_texts: int = 32  # of each of them
    keys: int = 0  # API keys that took turns
    connections: int = 1024  # at most
    concurrency: int = 256  # requests at once, at most, while the capacity is measured
    timeout: float = 60.0  # seconds, after which an answer is not waited for
    check: bool = False  # compare every answer
    check_cosine: float = 1 - 1e-5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request."""

    lane: str
    question: int
    texts: int
    due: float  # when it arrived, and its latency begins; seconds on the event loop's clock
    begun: float  # when the client came to it
    ended: float
    outcome: str  # the status, or the kind of an ExchangeError
    tokens: int = 0  # of the texts, as the answer says; 0: it does not
    received: int = 0  # bytes
    sent: int = 0
    split: Mapping[str, float] = field(default_factory=dict)  # seconds, by STAGES
    fault: str | None = None  # how the answer differs from what was expected

    @property
    def latency(self) -> float:
        """Seconds from its arrival to the last byte of its answer."""
        return self.ended - self.due

    @property
    def ok(self) -> bool:
        """Whether it was answered with its result."""
        return self.outcome == "200" and self.fault is None


@dataclass(frozen=True, slots=True)
class Latencies:
    """In milliseconds; percentiles are the nearest rank, so always one of those measured."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float | None
    max: float
    p999_why: str | None = None  # it is None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies | None:
        """Summarise; None of nothing."""
        if not seconds:
            return None
        values = np.sort(np.asarray(seconds, float)) * 1e3
        n = len(values)
        few = f"{n} samples, needs {ENOUGH}" if n < ENOUGH else None
        p50, p90, p99, p999 = (float(values[ceil(n * q / 1000) - 1]) for q in (500, 900, 990, 999))
        return cls(
            *(n, float(values.mean()), p50, p90, p99),
            *(None if few else p999, float(values[-1]), few),
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Where the time of answers went, in milliseconds.

    A stage is by the server's own account; ``wait`` is the client's, from the arrival until the
    request was begun; ``rest`` is what is left: network, and the server outside its account.
    """

    p50: Mapping[str, float]
    p99: Mapping[str, float]
    n: int  # answers with such an account


@dataclass(frozen=True, slots=True)
class LaneRun:
    """Requests of one lane at one rate."""

    lane: str
    requests: int
    texts: int  # of each request
    latency: Latencies | None  # of those that were answered with their result
    goodput: float
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """One rate.

    Requests that arrived after the warm-up are counted, each until its end. Rates are of answers
    that came after the warm-up and before the end, whenever they were asked for.
    """

    load: float | None  # share of the capacity, where that was asked for
    rate: float  # arrivals a second that were asked for
    arrivals: float  # and that came
    seconds: float
    requests: int
    throughput: float  # answers a second that were 200
    texts_per_second: float
    tokens_per_second: float | None  # None: the server does not tell
    goodput: float  # answers a second that were 200, in time, and not wrong
    good_share: float  # of requests: 200, in time, and not wrong
    shed_share: float  # of requests: 429
    latency: Latencies | None  # of those that were answered with their result
    refusals: Latencies | None  # of 429, 503 and 504: how soon a client is told
    outcomes: Mapping[str, int]  # requests by status, or by what went wrong
    wrong: int | None  # answers that differ; None: not checked
    wrong_examples: tuple[str, ...]
    unchecked: int | None  # answers to texts that got none when they were sent alone
    split: Split | None
    lanes: tuple[LaneRun, ...]  # where there is more than one
    received_bytes: int
    sent_bytes: int
    late: Latencies | None  # by how much the client came late to an arrival
    waited: int  # requests that found all connections taken
    opened: int  # connections
    again: int  # requests sent a second time
    client_cpu: float  # processors that the client kept busy


@dataclass(frozen=True, slots=True)
class Stage:
    """Requests that follow each other, so many at once."""

    concurrency: int
    throughput: float  # answers a second that were 200
    latency: Latencies | None
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most answers a second of a closed loop, of which 99% are within the objective."""

    rate: float
    concurrency: int  # at which it was reached
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A whole benchmark of a server."""

    created: str  # ISO 8601, UTC
    server: str  # its URL
    about: Mapping[str, Any] | None  # what it says of itself
    settings: LoadSettings
    machine: Report  # the client's
    mixes: tuple[MixFacts, ...]
    estimated: bool  # the lengths are no tokenizer's
    alone: Latencies | None  # requests one after another, before the load
    capacity: Capacity | None
    runs: tuple[Run, ...]
    schema: int = field(default=SCHEMA)


def document(result: LoadResult) -> dict[str, Any]:
    """Return a result as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(result)))
    return found
