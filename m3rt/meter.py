"""The measuring end of a benchmark: one engine in a process of its own.

    python -m m3rt.meter MODEL ENGINE STREAMS [DEVICES]

Reads requests from stdin and answers on stdout, a line of JSON each, until its input ends. First
it says how loading went. A request is the name of a function of REQUESTS under "do", and its
arguments; an answer that could not be given is ``{"error": ...}``. Between requests it sleeps.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from m3rt import api, artifact, parity, tolerances
from m3rt.artifact import Artifact
from m3rt.errors import M3Error
from m3rt.formats import Format, writer
from m3rt.heads import finish, merge
from m3rt.plan import batches
from m3rt.result import SERIAL
from m3rt.runtime import M3
from m3rt.types import Embeddings, Heads

SERIAL_TOKENS = 512  # that are written to measure writing; JSONL may take longer than the model

# TensorRT-RTX: wait for the kernels of a shape, or the first runs would measure others
EAGER = "M3RT_TENSORRT_EAGER"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is ready, and where it came from."""

    artifact: Artifact
    model: M3


def split(subject: Subject, texts: Sequence[str], heads: Sequence[str]) -> dict[str, Any]:
    """Encode once, as M3.encode does, and measure each part.

    Returns:
        seconds by STAGES; host, the processor seconds of all but running; us_per_token of writing
        by SERIAL; tokens, computed (padding included), truncated; memory in bytes, or None.
    """
    found, measured = encode(subject.model, texts, Heads.parse(heads))
    measured["memory"] = peak_memory()
    return measured | {"us_per_token": serialised(subject.model, found)}


def encode(model: M3, texts: Sequence[str], heads: Heads) -> tuple[Embeddings, dict[str, Any]]:
    """Return the embeddings, and what split measures of them."""
    nothing = model.encode([], heads)
    forget_peak()
    clock, cpu = Clock(time.perf_counter), Clock(time.process_time)
    tokens = model.tokenize(texts)  # in many threads
    seconds, host = {"tokenise": clock.lap()}, cpu.lap()
    cpu = Clock(time.thread_time)  # the engine's threads may still be winding down
    planned = list(batches(tokens.ids, model.engine.limits))
    seconds["plan"], host = clock.lap(), host + cpu.lap()
    seconds |= {"run": 0.0, "post": 0.0}
    steps = model.run(tokens, heads)
    parts = []
    while step := next(steps, None):
        seconds["run"] += clock.lap()
        cpu.lap()
        batch, raw = step
        done = finish(batch, raw, model.manifest.unscored_ids, model.manifest.cls_interval)
        parts.append((batch, done))
        seconds["post"], host = seconds["post"] + clock.lap(), host + cpu.lap()
    seconds["run"] = max(0.0, seconds["run"] + clock.lap() - seconds["plan"])  # it plans, too
    cpu.lap()
    found = merge(tokens, parts, nothing)
    seconds["post"], host = seconds["post"] + clock.lap(), host + cpu.lap()
    real = int(found.n_tokens.sum())
    padded = sum(batch.width * len(batch.rows) for batch in planned)
    return found, {
        "seconds": seconds,
        "host": host,
        "tokens": real,
        "computed": padded if model.engine.limits.pads else real,
        "truncated": int(found.truncated.sum()),
    }


class Clock:
    """Measures the time between laps."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last = now()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        last, self._last = self._last, self._now()
        return self._last - last


def serialised(model: M3, found: Embeddings) -> dict[str, float]:
    """Return the microseconds a token of writing embeddings to nowhere, in each format."""
    shortest = np.argsort(found.n_tokens, kind="stable")
    fitting = int((np.cumsum(found.n_tokens[shortest]) <= SERIAL_TOKENS).sum())
    some = found.take(shortest[: max(1, fitting)])
    none = found.take([])
    width = model.manifest.colbert_dim or model.manifest.hidden
    spent = {}
    for name in SERIAL:
        clock = Clock(time.perf_counter)
        with writer(Format(name), cast(BinaryIO, Nowhere()), none, width) as write:
            write([str(i) for i in range(len(some))], some)
        spent[name] = 1e6 * clock.lap() / int(some.n_tokens.sum())
    return spent


class Nowhere(io.RawIOBase):
    """A file that keeps nothing; unlike the null device it cannot seek, which zip files notice."""

    def writable(self) -> bool:
        """Whether write can be called."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes."""
        return len(data)


def repeat(
    subject: Subject, texts: Sequence[str], heads: Sequence[str], seconds: float, most: int
) -> dict[str, Any]:
    """Encode the texts again and again.

    The first call does not count: an engine may prepare for a shape that it sees first. At least
    one does; another is made while there are fewer than most and time for it.

    Returns:
        seconds of each call.
    """
    run = partial(subject.model.encode, texts, Heads.parse(heads))
    clock = Clock(time.perf_counter)
    run()
    left = seconds - clock.lap()
    spent: list[float] = []
    while not spent or (len(spent) < most and left >= spent[-1]):
        run()
        spent.append(clock.lap())
        left -= spent[-1]
    return {"seconds": spent}


def accuracy(subject: Subject, longest: int) -> dict[str, Any]:
    """Compare with what the checkpoint gave in float32, for texts of at most so many tokens.

    Returns:
        figures: those of m3rt.parity; None where the model directory holds no reference.
    """
    file = subject.artifact.path / parity.REFERENCE
    if not file.is_file():
        return {"figures": None}
    model = subject.model
    reference = parity.Reference.read(file).upto(min(longest, model.max_length))
    found = parity.encode(model, reference.ids, "", None)
    limits = tolerances.TOLERANCES.get(model.engine.name.partition(":")[2])
    return {"figures": parity.compare(reference, found, model.manifest.unscored_ids, limits)}


REQUESTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "split": split,
    "repeat": repeat,
    "accuracy": accuracy,
}


def peak_memory() -> int | None:
    """Return the most memory that was resident since forget_peak, in bytes; None: unknown.

    Mapped files count as far as they were touched. Not getrusage: its figure starts with that of
    the process which started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


def forget_peak() -> None:
    """Count peak memory from now on, where the system can; elsewhere from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Be the worker."""
    # what libraries print would garble the answers: they get stderr
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.setdefault(EAGER, "1")

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        clock = Clock(time.perf_counter)
        opened = artifact.read(sys.argv[1])
        devices = sys.argv[4] if len(sys.argv) > 4 else None
        model = api.start(opened, sys.argv[2], int(sys.argv[3]), devices=devices)
        load, memory = clock.lap(), peak_memory()
        model.encode(["m3rt"])
        first = clock.lap()
    except Exception as error:  # whatever a library may raise
        answer({"error": describe(error)})
        return
    limits = model.engine.limits
    answer(
        {
            "engine": model.engine.name,
            "load": load,
            "first": first,
            "memory": memory,
            "max_length": model.max_length,
            "step": limits.max_tokens * limits.parallel,
        }
    )
    subject = Subject(opened, model)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer(REQUESTS[request.pop("do")](subject, **request))
        except Exception as error:
            answer({"error": describe(error)})


def describe(error: Exception) -> str:
    """Return one line for an error; m3rt's own say all there is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, M3Error) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
