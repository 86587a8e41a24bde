"""Tokens through an engine, step by step."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from m3rt.errors import InputError
from m3rt.plan import batches
from m3rt.types import Batch, Engine, Heads, Raw, Tokens


def run(
    engine: Engine, tokens: Tokens, heads: Heads, batch_tokens: int | None = None
) -> Iterator[tuple[Batch, Raw]]:
    """Run tokens, and give what the engine returns, batch by batch; longest texts first.

    Args:
        engine: where to.
        tokens: what to run.
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
    work = batches(tokens.ids, limits)
    if limits.parallel == 1:
        for batch in work:
            yield batch, engine.run(batch, heads)
    else:
        yield from at_once(engine, work, heads, limits.parallel)


def at_once(
    engine: Engine, work: Iterator[Batch], heads: Heads, parallel: int
) -> Iterator[tuple[Batch, Raw]]:
    """Run several batches at once, in order, without holding more than are needed."""
    with ThreadPoolExecutor(parallel, "m3rt") as pool:
        ahead: deque[tuple[Batch, Future[Raw]]] = deque()
        for batch in work:
            ahead.append((batch, pool.submit(engine.run, batch, heads)))
            if len(ahead) > parallel:
                done, found = ahead.popleft()
                yield done, found.result()
        for done, found in ahead:
            yield done, found.result()


def recomputed(engine: Engine) -> int:
    """Return how many texts a fallback computed again; 0 for an engine that has none."""
    found: int = getattr(engine, "recomputed", 0)
    return found
