"""Tokens through an engine, step by step."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from m3rt.errors import InputError
from m3rt.plan import batches
from m3rt.types import Batch, Engine, Heads, Limits, Raw, Tokens


def run(
    engine: Engine,
    tokens: Tokens | Iterable[Tokens],
    heads: Heads,
    batch_tokens: int | None = None,
) -> Generator[tuple[Batch, Raw]]:
    """Run tokens, and give what the engine returns, batch by batch; longest texts first.

    Args:
        engine: where to.
        tokens: what to run, or windows of it, one after another: the longest of each come first,
            and texts are counted through. A generator of them is closed in the end.
        heads: what to compute.
        batch_tokens: aim for the tokens of one step, instead of the engine's own.

    Raises:
        InputError: batch_tokens is less than 1.
        EngineError: the engine failed.
    """
    limits = engine.limits
    if batch_tokens is not None:
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}, expected at least 1")
        limits = dataclasses.replace(limits, max_tokens=batch_tokens)
    windows = (tokens,) if isinstance(tokens, Tokens) else tokens
    with contextlib.ExitStack() as closed:
        if isinstance(windows, Generator):
            closed.callback(windows.close)
        work = planned(windows, limits)
        if limits.parallel == 1:
            for batch in work:
                yield batch, engine.run(batch, heads)
        else:
            yield from at_once(engine, work, heads, limits.parallel)


def planned(windows: Iterable[Tokens], limits: Limits) -> Iterator[Batch]:
    """Plan each window by itself, and count the texts through."""
    first = 0
    for tokens in windows:
        for batch in batches(tokens.ids, limits):
            yield dataclasses.replace(batch, rows=batch.rows + first)
        first += len(tokens.ids)


def at_once(
    engine: Engine, work: Iterator[Batch], heads: Heads, parallel: int
) -> Iterator[tuple[Batch, Raw]]:
    """Run several batches at once, in order, without holding more than are needed.

    One batch alone runs in the caller's thread: to start another is a part of a query's latency.
    """
    start = list(itertools.islice(work, 2))
    if len(start) < 2:
        for batch in start:
            yield batch, engine.run(batch, heads)
        return
    with ThreadPoolExecutor(parallel, "m3rt") as pool:
        ahead: deque[tuple[Batch, Future[Raw]]] = deque()
        try:
            for batch in itertools.chain(start, work):
                ahead.append((batch, pool.submit(engine.run, batch, heads)))
                if len(ahead) > parallel:
                    done, found = ahead.popleft()
                    yield done, found.result()
            for done, found in ahead:
                yield done, found.result()
        finally:
            for _, found in ahead:
                found.cancel()  # what has not begun, where the caller has seen enough


def recomputed(engine: Engine) -> int:
    """Return how many texts a fallback computed again; 0 for an engine that has none."""
    found: int = getattr(engine, "recomputed", 0)
    return found
