"""Measures, one contender's turn after the other, each figure written at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu import texts
from benchmarks.gpu.contenders import REFERENCE, Entry
from benchmarks.gpu.parts import ALL, STEP, Measure
from benchmarks.gpu.record import Record
from benchmarks.gpu.session import Session
from benchmarks.gpu.texts import Scale
from benchmarks.peers import accuracy
from benchmarks.peers.course import saved, without_paths
from benchmarks.peers.process import PeerError

PARITY = "parity"


def compare(entries: Sequence[Entry], session: Session, record: Record) -> None:
    """Encode the texts of parity, and compare every head with the reference's.

    Raises:
        OutOfTimeError: the time is over.
    """
    course = session.course
    saved(REFERENCE, course).parent.mkdir(parents=True, exist_ok=True)
    taking = [entry for entry in entries if PARITY in entry.parts]
    todo = [
        entry
        for entry in taking
        if not blocked(entry, session, record) and not record.known(entry.name, PARITY, 1)
    ]
    if todo and not saved(REFERENCE, course).exists():
        todo += [entry for entry in taking if entry.name == REFERENCE and entry not in todo]
    for entry in sorted(todo, key=lambda entry: entry.name != REFERENCE):
        batch = 1 if entry.name == REFERENCE else 4
        file = saved(entry.name, course)
        requests: list[dict[str, Any]] = [
            {"do": "encode", "batch": batch, "texts": str(texts.file(course.work, PARITY))},
            {"do": "save", "path": str(file)},
        ]
        answered = ask(entry, requests, session, record, PARITY)
        if answered is None or not saved(REFERENCE, course).exists():
            continue
        expected, given = (accuracy.read(one) for one in (saved(REFERENCE, course), file))
        figures = {"rounds": 1, "accuracy": accuracy.compare(expected, given)}
        record.figures(entry.name)[PARITY] = figures
        record.write()


def blocked(entry: Entry, session: Session, record: Record) -> bool:
    """Whether a contender cannot load, or has crashed too often."""
    return "error" in record.row(entry.name) or session.given_up(entry)


def ask(
    entry: Entry, requests: list[dict[str, Any]], session: Session, record: Record, key: str
) -> tuple[dict[str, Any], int, int] | None:
    """Ask a contender; None: it failed, which is its figure now."""
    try:
        answered = session.ask(entry, requests)
    except PeerError as error:
        message = without_paths(str(error))
        if entry.name in session.ready:
            record.figures(entry.name)[key] = {"error": message}
        else:  # it has never been ready
            record.row(entry.name)["error"] = message
        record.write()
        return None
    ready = session.ready[entry.name]
    record.row(entry.name)["versions"] = ready["versions"]
    record.row(entry.name).setdefault("load_seconds", {})[record.run] = round(ready["ready"], 2)
    return answered


def trial(entry: Entry, measure: Measure, session: Session, record: Record) -> bool:
    """Time each batch size once, and choose the fastest; whether there is one."""
    contender, row = entry.contender, record.row(entry.name)
    if not contender.batches or "batch" in row:
        return True
    seconds: dict[str, float] = row.setdefault("trial", {})
    path = str(texts.file(session.course.work, measure.texts))
    for size in [*contender.batches, contender.default_batch]:
        if str(size) in seconds or blocked(entry, session, record):
            continue
        request = {"do": "repeat", "texts": path, "batch": size, "warm": 1}
        request |= {"during": 0, "least": 1, "most": 1}
        answered = ask(entry, [request], session, record, f"trial of {size}")
        if answered is not None:
            seconds[str(size)] = round(answered[0]["seconds"][0], 4)
            record.write()
    if seconds:
        row["batch"] = int(min(seconds, key=lambda size: seconds[size]))
        record.write()
    return bool(seconds)


def rounds(
    measure: Measure,
    entries: Iterable[Entry],
    session: Session,
    record: Record,
    scale: Scale,
    base: str,
) -> None:
    """Let contenders take their turns at one figure, until it has all its rounds.

    Raises:
        OutOfTimeError: the time is over.
    """
    taking = [entry for entry in entries if measure.part in entry.parts and gives(entry, measure)]
    todo = [entry for entry in taking if not record.known(entry.name, measure.key, measure.rounds)]
    # for a ratio, the base must have it in the same run
    todo = [
        entry
        for entry in taking
        if entry in todo
        or (todo and entry.name == base and measure.key not in record.figures(base))
    ]
    for i in range(measure.rounds):
        for entry in todo:
            figure = record.figures(entry.name).get(measure.key, {})
            if figure.get("rounds", 0) > i or "error" in figure or blocked(entry, session, record):
                continue
            if trial(entry, measure, session, record):
                turn(entry, measure, session, record, scale)


def gives(entry: Entry, measure: Measure) -> bool:
    """Whether a contender has a figure of its own here: dense alone is all that some have."""
    return measure.heads == ALL or entry.contender.heads == ALL


def turn(entry: Entry, measure: Measure, session: Session, record: Record, scale: Scale) -> None:
    """Run one turn, and add what it took to the figure."""
    work, figures = session.course.work, record.figures(entry.name)
    row = record.row(entry.name)
    batch = row.get("batch")
    if entry.contender.batches and measure.length:
        batch = max(1, STEP // measure.length)
    requests: list[dict[str, Any]] = [{"do": "tune", "heads": heads(entry, measure)}]
    if "budgets" in entry.parts:
        requests[0]["batch_tokens"] = measure.budget
    if measure.alone:
        assert measure.length is not None
        text = texts.alone(work, measure.length)
        requests.append({"do": "latency", "text": text, "n": scale.samples})
    else:
        path = str(texts.file(work, measure.texts))
        request = {"do": "repeat", "texts": path, "batch": batch, "during": scale.seconds}
        requests.append(request | {"warm": 1, "least": 1, "most": 20})
    answered = ask(entry, requests, session, record, measure.key)
    if answered is None:
        return
    answer, device, host = answered
    figure = figures.setdefault(measure.key, {"rounds": 0})
    figure["rounds"] += 1
    if measure.alone:
        figure.setdefault("ms", []).extend(round(1e3 * one, 3) for one in answer["seconds"])
    else:
        for name in ("seconds", "cpu"):
            figure.setdefault(name, []).append(round(median(answer[name]), 5))
        figure["batch"] = batch
    figure["device_bytes"] = max(device, figure.get("device_bytes", 0))
    figure["host_bytes"] = max(host, figure.get("host_bytes", 0))
    record.write()


def heads(entry: Entry, measure: Measure) -> list[str]:
    """Return the heads that are asked for, of those that there are."""
    return [head for head in entry.contender.heads if head in measure.heads]
