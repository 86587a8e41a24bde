"""How a benchmark's result differs from an earlier one of the same model and machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3rt.errors import InputError
from m3rt.result import SCHEMA

RUN = "run: m3rt bench MODEL --output RESULT.json"
Document = Mapping[str, Any]  # a Result as JSON has it
Key = tuple[str, str]  # subject and figure
Value = tuple[float, bool]  # and whether more is better
PEAK_CHANGE = 0.05  # of the measured peak: more says that the machine is not as it was
ROUNDING = 1e-9  # errors below it are no better or worse than each other


@dataclass(frozen=True, slots=True)
class Change:
    """One figure, before and now."""

    engine: str
    subject: str  # a mix, a length, or a head
    figure: str
    before: float
    now: float
    gain: float | None  # a ratio, above 1 if now is better; None: there is none


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures that both results have, and reasons not to compare them."""

    before: str  # the earlier file
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


def read(path: Path) -> Document:
    """Read an earlier result.

    Raises:
        InputError: it cannot be read, or is not such a file.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {RUN}") from error
    if not isinstance(found, dict) or "schema" not in found:
        raise InputError(f"{path} is no result of m3rt bench; {RUN}")
    if found["schema"] != SCHEMA:
        raise InputError(f"{path} has schema {found['schema']}, expected {SCHEMA}; {RUN} again")
    try:
        compare(str(path), found, found)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; {RUN}") from error
    return found


def compare(name: str, before: Document, now: Document) -> Comparison:
    """Compare two results; ``name`` is the earlier one's file."""
    old = {run["engine"]: dict(figures(run)) for run in before["engines"]}
    changes = [
        change(run["engine"], key, old[run["engine"]][key], value)
        for run in now["engines"]
        if run["engine"] in old
        for key, value in figures(run)
        if key in old[run["engine"]]
    ]
    return Comparison(name, tuple(changes), tuple(warnings(before, now)))


def figures(run: Document) -> Iterator[tuple[Key, Value]]:
    """Give the figures of an engine that can be compared."""
    for mix in run["mixes"]:
        name = mix["mix"]
        yield (name, "tokens/s"), (mix["tokens_per_second"]["median"], True)
        yield (name, "host, us a token"), (mix["host_us_per_token"], False)
        if mix["peak_memory"] is not None:
            yield (name, "peak memory, MB"), (mix["peak_memory"] / 1e6, False)
    for one in run["latency"]:
        for percentile in ("p50", "p99"):
            yield (f"{one['length']} tokens", f"{percentile}, ms"), (one[percentile], False)
    for one in run["lengths"]:
        yield (f"{one['length']} tokens", "tokens/s"), (one["tokens_per_second"]["median"], True)
    for one in run["batches"]:
        yield (f"{one['texts']} texts", "ms"), (one["milliseconds"]["median"], False)
    if run["load_seconds"] is not None:
        yield ("start", "load, s"), (run["load_seconds"], False)
    for head in ("dense", "colbert"):
        for figure, value in (run["accuracy"] or {}).get(head, {}).items():
            if figure.startswith("cosine"):
                yield (head, f"1 - {figure.replace('_', ' ')}"), (abs(1 - value), False)
    sparse = (run["accuracy"] or {}).get("sparse", {})
    for figure, more in (("weight_error_max", False), ("top10_equal", True)):
        if figure in sparse:
            yield ("sparse", figure.replace("_", " ")), (sparse[figure], more)


def change(engine: str, key: Key, old: Value, new: Value) -> Change:
    """Return before, now, and by which factor now is better."""
    (before, more), (now, _) = old, new
    gain = None
    if before and now and max(before, now) >= ROUNDING:
        gain = now / before if more else before / now
    return Change(engine, *key, before, now, gain)


def gpus(result: Document) -> list[str]:
    """Return the names of the GPUs; older results hold nothing else of them."""
    nvidia = result["machine"]["nvidia"]
    return nvidia if isinstance(nvidia, list) else [gpu["name"] for gpu in nvidia["gpus"]]


def warnings(before: Document, now: Document) -> Iterator[str]:
    """Say what else changed."""
    for key in ("model", "cores", "flags"):
        old, new = before["machine"]["cpu"][key], now["machine"]["cpu"][key]
        if old != new:
            yield f"the processor differs in {key}: {old} before, {new} now"
    if gpus(before) != gpus(now):
        yield "the graphics processors differ"
    packages = now["machine"]["packages"]
    for name, version in before["machine"]["packages"].items():
        if packages.get(name) != version:
            yield f"{name} was {version or 'not installed'}, now {packages.get(name)}"
    for key in ("checkpoint", "revision", "hidden", "layers"):
        if before["model"][key] != now["model"][key]:
            yield f"another model: {key} was {before['model'][key]}, now {now['model'][key]}"
    for key in ("heads", "streams", "devices"):
        old, new = (one["settings"].get(key) for one in (before, now))
        if old != new:
            yield f"{key} were {old}, now {new}"
    mixes = {mix["name"]: mix["tokens"] for mix in now["mixes"]}
    for mix in before["mixes"]:
        if mixes.get(mix["name"], mix["tokens"]) != mix["tokens"]:
            yield f"the mix {mix['name']} had {mix['tokens']} tokens, now {mixes[mix['name']]}"
    fastest = fastest_products(now)
    for precision, rate in fastest_products(before).items():
        ratio = fastest.get(precision, rate) / rate
        if abs(ratio - 1) > PEAK_CHANGE:
            yield f"the machine's peak in {precision} is {ratio:.2f} times what it was"


def fastest_products(result: Document) -> dict[str, float]:
    """Return the best rate of each precision, in FLOP/s."""
    found: dict[str, float] = {}
    for rate in result["peak"]:
        found[rate["precision"]] = max(rate["flops"], found.get(rate["precision"], 0.0))
    return found
