"""The measurements of one engine, in their order, within its share of the time."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from m3rt import peak, worker
from m3rt.errors import EngineError
from m3rt.mixes import Mix
from m3rt.result import (
    SERIAL,
    STAGES,
    BatchLatency,
    EngineRun,
    Latency,
    LengthRate,
    MixRun,
    Model,
    Rate,
    Settings,
    Spread,
)
from m3rt.types import Ints
from m3rt.worker import Worker

Turns = Generator[str, None, EngineRun]  # gives what it will do at its next turn

LENGTHS = (16, 64, 128, 256, 512, 1024, 2048, 8192)  # tokens, of rates over length
BATCHES = (1, 2, 4, 8, 16, 32)  # texts, of latency over batch, each of so many tokens:
BATCH_LENGTH = 32
SAMPLES, REPEATS = 200, 5  # most measurements of a latency, and of a rate
ACCURACY_LENGTH = 1024  # tokens; the reference's longest text may take longer than all others
SHARES = {"mixes": 0.5, "latency": 0.2, "lengths": 0.2, "batches": 0.1}  # of Settings.seconds
# engines whose peak is not the processor's
GPUS = ("cuda", "tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, and its tokens: those it was made for, or one less."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What every engine gets to do."""

    settings: Settings
    mixes: tuple[Mix, ...]
    lengths: Mapping[str, Ints]  # of the texts of each mix, in tokens
    samples: Mapping[int, Sample]  # by length
    model: Model
    colbert_dim: int  # 0 if that head is not asked for
    peak: tuple[Rate, ...]


@dataclass(slots=True)
class Findings:
    """What is known so far: a process may end at any time."""

    engine: str
    error: str | None = None
    ready: Mapping[str, Any] = field(default_factory=dict)
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by mix, one a round
    accuracy: Mapping[str, Any] | None = None
    latency: list[Latency] = field(default_factory=list)
    lengths: list[LengthRate] = field(default_factory=list)
    batches: list[BatchLatency] = field(default_factory=list)


def measure(model: Path, engine: str, job: Job) -> Turns:
    """Measure one engine, a step a turn. What goes wrong ends it, and stands in the result."""
    found = Findings(engine)
    try:
        yield f"{engine}: load"
        settings, name = job.settings, engine.partition(":")[0]
        devices = settings.devices if name in (*GPUS, "auto") else None
        with Worker(worker.command(model, engine, settings.streams, devices)) as process:
            found.ready = process.answer()
            found.engine = found.ready["engine"]
            yield from encode_mixes(process, found, job)
            yield f"{found.engine}: accuracy"
            found.accuracy = process.ask("accuracy", longest=ACCURACY_LENGTH)["figures"]
            yield from repeat_samples(process, found, job)
    except EngineError as error:
        found.error = str(error)
    return row(found, job)


def encode_mixes(process: Worker, found: Findings, job: Job) -> Generator[str]:
    """Encode each mix once, and again while there are rounds and time."""
    left = job.settings.seconds * SHARES["mixes"]
    last: dict[str, float] = {}
    for i in range(job.settings.rounds):
        for mix in job.mixes:
            if last.get(mix.name, 0.0) > max(left, 0.0):
                continue
            yield f"{found.engine}: {mix.name}, round {i + 1} of {job.settings.rounds}"
            began = time.monotonic()
            split = process.ask("split", texts=mix.texts, heads=job.settings.heads)
            found.splits.setdefault(mix.name, []).append(split)
            last[mix.name] = time.monotonic() - began
            left -= last[mix.name]


def repeat_samples(process: Worker, found: Findings, job: Job) -> Generator[str]:
    """Measure latency over length and batch, and rates over length.

    Lengths that were asked for are measured at least once, others while there is time.
    """
    settings, step = job.settings, found.ready["step"]
    alone = [(length, 1) for length in settings.lengths]
    fill = [(length, max(1, step // length)) for length in LENGTHS]
    grow = [(BATCH_LENGTH, n) for n in BATCHES]
    for part, points, most in (
        ("latency", alone, SAMPLES),
        ("lengths", fill, REPEATS),
        ("batches", grow, REPEATS),
    ):
        points = [p for p in points if p[0] in job.samples and p[0] <= found.ready["max_length"]]
        left = settings.seconds * SHARES[part]
        second = 0.0  # of a token, in the step before
        for i, (length, n) in enumerate(points):
            sample = job.samples[length]
            # the first call of a shape does not count, so there are at least two
            if part != "latency" and 2 * second * n * sample.tokens > left:
                break
            yield f"{found.engine}: {part}, {n} x {length} tokens"
            began = time.monotonic()
            spent: list[float] = process.ask(
                "repeat",
                texts=[sample.text] * n,
                heads=settings.heads,
                seconds=left / (len(points) - i),
                most=most,
            )["seconds"]
            left -= time.monotonic() - began
            second = median(spent) / (n * sample.tokens)
            if part == "latency":
                found.latency.append(Latency.of(length, spent))
            elif part == "lengths":
                rates = [n * sample.tokens / one for one in spent]
                found.lengths.append(LengthRate(length, n, Spread.of(rates)))
            else:
                milliseconds = Spread.of([1e3 * one for one in spent])
                found.batches.append(BatchLatency(n, length, milliseconds))


def row(found: Findings, job: Job) -> EngineRun:
    """Return an engine's row of the result."""
    return EngineRun(
        engine=found.engine,
        error=found.error,
        load_seconds=found.ready.get("load"),
        first_seconds=found.ready.get("first"),
        load_memory=found.ready.get("memory"),
        mixes=tuple(mix_run(name, found, job) for name in found.splits),
        latency=tuple(found.latency),
        lengths=tuple(found.lengths),
        batches=tuple(found.batches),
        accuracy=found.accuracy,
    )


def mix_run(name: str, found: Findings, job: Job) -> MixRun:
    """Return the figures of one mix from its rounds."""
    splits = found.splits[name]
    tokens, texts = splits[0]["tokens"], len(job.lengths[name])
    totals = [sum(split["seconds"].values()) for split in splits]
    seconds = {stage: median(split["seconds"][stage] for split in splits) for stage in STAGES}
    writing = {form: median(split["us_per_token"][form] for split in splits) for form in SERIAL}
    lengths = np.minimum(job.lengths[name], found.ready["max_length"])
    work = flop(lengths, job.model, job.colbert_dim)
    flops = None if work is None else work / median(totals)
    name_of_engine, _, precision = found.engine.partition(":")
    best = None if name_of_engine in GPUS else peak.best(job.peak, precision)
    memory = [split["memory"] for split in splits if split["memory"] is not None]
    return MixRun(
        mix=name,
        texts=texts,
        tokens=tokens,
        truncated=splits[0]["truncated"],
        tokens_per_second=Spread.of([tokens / one for one in totals]),
        texts_per_second=Spread.of([texts / one for one in totals]),
        padding_share=1 - tokens / splits[0]["computed"],
        seconds=seconds,
        us_per_token={stage: 1e6 * seconds[stage] / tokens for stage in STAGES} | writing,
        host_us_per_token=1e6 * median(split["host"] for split in splits) / tokens,
        flops=flops,
        peak_share=flops / best.flops if flops is not None and best else None,
        peak_memory=max(memory, default=None),
    )


def flop(lengths: Ints | Sequence[int], model: Model, colbert_dim: int) -> float | None:
    """Return the floating-point operations for texts of so many tokens; None: ffn is unknown.

    A multiplication and an addition are two. Per token and layer, 4 h² weights in attention and
    2 h ffn after it; per layer and pair of tokens of one text, h each for the score and for the
    mean; h d for a ColBERT vector. What is small beside these, such as norms, is left out.
    """
    if model.ffn is None:
        return None
    n = np.asarray(lengths, np.float64)
    h = model.hidden
    linear = model.layers * (4 * h * h + 2 * h * model.ffn) + h * colbert_dim
    return float(2 * linear * n.sum() + 4 * model.layers * h * (n * n).sum())
