"""The worker's end of the protocol: load a runtime, then answer requests, a line of JSON each.

    python -m benchmarks.peers.FAMILY --model DIR --files DIR --data DIR --texts JSON
                                      --options JSON [--prepare]

It says ``{"ready": seconds of loading, "versions": {...}}``, then answers on standard output

    {"do": "encode", "batch": 8}           with {"seconds": ...}: all texts, every head it has
    {"do": "save", "path": "out.npz"}      with {}: what the last encode gave
    {"do": "latency", "text": ..., "n": 5} with {"seconds": [...]}: the text alone, n times
    {"do": "repeat", "batch": 8, "during": 0.5, "least": 2, "most": 9, "warm": 1}
                                           with {"seconds": [...], "cpu": [...]}: of each pass
    {"do": "tune", "heads": ["dense"]}     with {}: what later requests compute; see Tunable
    {"do": "rest"}                         with {}: memory that it only keeps is given back

until its input ends; ``{"error": ...}`` stands for an answer that could not be given. encode and
repeat take "texts", the path of a JSON list, in the place of --texts. Each answer holds ``peak``,
the most memory that the process has had so far, in bytes. With --prepare it makes the files its
library needs of the model, and ends. It runs in an environment that has the library, not m3rt: it
imports numpy and the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Job:
    """What a worker is to run."""

    model: Path  # a checkpoint, or what m3rt exported: as the contender says
    files: Path  # a folder of its own, kept between runs
    data: Path  # the shared data, for what a checkpoint has not
    options: Mapping[str, Any]  # the contender's


@dataclass(frozen=True)
class Outputs:
    """What a runtime gives for n texts; None for a head that it does not have."""

    dense: Floats | None  # (n, h)
    sparse: Sequence[Mapping[int, float]] | None = None  # token id to weight
    colbert: Sequence[Floats] | None = None  # one row per token but the first


class Peer(Protocol):
    """A loaded runtime."""

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts as a user of the library would; this is what is timed."""
        ...

    def outputs(self, found: Any) -> Outputs:
        """Give what encode returned the form of the comparison; not timed."""
        ...


class Tunable(Peer, Protocol):
    """A runtime that later requests may ask for something else; what it lacks is refused."""

    heads: Sequence[str]  # that encode computes

    def rest(self) -> None:
        """Give back memory that is kept for later: others take their turns now."""
        ...


def serve(
    load: Callable[[Job], Peer],
    packages: Sequence[str] = (),
    prepare: Callable[[Job], None] | None = None,
) -> None:
    """Be the worker of this process.

    Args:
        load: opens the model.
        packages: those whose versions to report, if they are there.
        prepare: makes the files that load needs, in ``Job.files``.
    """
    parser = argparse.ArgumentParser()
    for name in ("model", "files", "data", "texts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--prepare", action="store_true")
    arguments = parser.parse_args()
    job = Job(arguments.model, arguments.files, arguments.data, arguments.options)
    # what libraries print would garble the answers: they get standard error
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arguments.prepare:
        if prepare:
            job.files.mkdir(parents=True, exist_ok=True)
            prepare(job)
        return
    files: dict[str, list[str]] = {}  # by path

    def texts_of(request: Mapping[str, Any]) -> list[str]:
        path = request.get("texts") or str(arguments.texts)
        if path not in files:
            files[path] = json.loads(Path(path).read_text("utf-8"))
        return files[path]

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values | {"peak": peak_memory()}) + "\n")
        answers.flush()

    try:
        before = time.perf_counter()
        peer = load(job)
        spent = time.perf_counter() - before
        # kernels are chosen, threads started and memory taken at the first texts of a kind
        texts = by_length(texts_of({}))
        peer.encode(texts[:: max(1, len(texts) // 4)], 1)
    except Exception as error:  # whatever a library may raise
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(ready=spent, versions=versions(packages))
    found: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "encode":
                before = time.perf_counter()
                found = peer.encode(texts_of(request), request["batch"])
                answer(seconds=time.perf_counter() - before)
            elif request["do"] == "repeat":
                answer(**repeat(peer, texts_of(request), request))
            elif request["do"] == "tune":
                tune(peer, request)
                answer()
            elif request["do"] == "rest":
                if hasattr(peer, "rest"):
                    peer.rest()
                answer()
            elif request["do"] == "latency":
                answer(seconds=latency(peer, request["text"], request["n"]))
            elif request["do"] == "save":
                save(Path(request["path"]), peer.outputs(found))
                answer()
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def latency(peer: Peer, text: str, n: int) -> list[float]:
    """Return the seconds of each of n calls with one text, after one that does not count."""
    peer.encode([text], 1)
    seconds = []
    for _ in range(n):
        before = time.perf_counter()
        peer.encode([text], 1)
        seconds.append(time.perf_counter() - before)
    return seconds


def repeat(peer: Peer, texts: list[str], request: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of each pass over texts, by the clock and of this process's processors.

    After ``warm`` passes that do not count, ``least`` passes or more, up to ``most``, while
    are not over.
    """
    for _ in range(request["warm"]):
        peer.encode(texts, request["batch"])
    seconds: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + request["during"]
    while len(seconds) < request["least"] or (
        len(seconds) < request["most"] and time.perf_counter() < end
    ):
        before, used = time.perf_counter(), time.process_time()
        peer.encode(texts, request["batch"])
        seconds.append(time.perf_counter() - before)
        cpu.append(time.process_time() - used)
    return {"seconds": seconds, "cpu": cpu}


def tune(peer: Peer, request: Mapping[str, Any]) -> None:
    """Set what a peer is to do from now on.

    Raises:
        NotImplementedError: it has no such setting.
    """
    for name, value in request.items():
        if name == "do":
            continue
        if not hasattr(peer, name):
            raise NotImplementedError(f"it has no {name} to choose")
        setattr(peer, name, value)


def save(path: Path, outputs: Outputs) -> None:
    """Write outputs as arrays, those of rows of unequal length end to end with their starts."""
    arrays: dict[str, NDArray[Any]] = {}
    if outputs.dense is not None:
        arrays["dense"] = np.asarray(outputs.dense, np.float32)
    if outputs.sparse is not None:
        rows = [sorted(row.items()) for row in outputs.sparse]
        arrays["sparse_ids"] = np.array([key for row in rows for key, _ in row], np.int32)
        arrays["sparse_weights"] = np.array([value for row in rows for _, value in row], np.float32)
        arrays["sparse_starts"] = starts([len(row) for row in rows])
    if outputs.colbert is not None:
        arrays["colbert"] = np.concatenate(list(outputs.colbert)).astype(np.float32, copy=False)
        arrays["colbert_starts"] = starts([len(row) for row in outputs.colbert])
    np.savez(path, **arrays)  # type: ignore[arg-type] # numpy's stub takes allow_pickle: bool


def starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return where each row starts, and where the last one ends: (n,) becomes (n + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def by_length(texts: Sequence[str]) -> list[str]:
    """Return texts longest first."""
    return sorted(texts, key=len, reverse=True)


def lexical(ids: Ints, weights: Floats, unscored: frozenset[int]) -> dict[int, float]:
    """Merge the weights (t,) of a text's tokens: the largest of each id, special ones left out."""
    found: dict[int, float] = {}
    for key, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if key not in unscored and weight > found.get(key, 0.0):
            found[key] = weight
    return found


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes; Linux says so in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
