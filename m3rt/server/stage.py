"""A model that serves, from its warm-up until the last request on it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from m3rt.runtime import M3
from m3rt.server.cache import Cache
from m3rt.server.choice import width_of
from m3rt.server.crew import Ran
from m3rt.server.line import Terms
from m3rt.server.scheduler import Bounds, Scheduler
from m3rt.server.settings import Settings
from m3rt.types import Batch, Limits, ragged

log = logging.getLogger("m3rt.server")

LEAST = 16  # tokens of the shortest text that is run to warm up
LONG = 1.0  # seconds of a run that need not be repeated to be known


class Stage:
    """A model, its scheduler, and the requests that are on it."""

    def __init__(
        self,
        model: M3,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        terms: Terms,
        bounds: Bounds,
        cache_bytes: int,
        observe: Callable[[Ran], None],
    ) -> None:
        self.model = model
        self.scheduler = Scheduler(model, limits, loop, terms, bounds, Cache(cache_bytes), observe)
        self.requests = 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Count a request while it is on this model."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def drained(self, seconds: float) -> bool:
        """Wait until no request is on this model; return whether that was in time."""
        until = time.monotonic() + seconds
        while self.requests and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return not self.requests

    def close(self, seconds: float) -> bool:
        """End the threads, and the engine if it can be; return whether all ended in time."""
        ended = self.scheduler.close(seconds)
        close: Callable[[], Any] | None = getattr(self.model.engine, "close", None)
        if ended and close is not None:
            close()
        return ended


async def staged(model: M3, settings: Settings, observe: Callable[[Ran], None]) -> Stage:
    """Warm a model up, and give it a scheduler in the event loop that runs.

    Raises:
        EngineError: the engine fails.
    """
    limits = model.engine.limits
    most = min(limits.max_tokens, settings.max_batch_tokens or limits.max_tokens)
    limits = dataclasses.replace(limits, max_tokens=most)
    taken = await asyncio.to_thread(warm, model, limits)
    waits = (settings.max_wait, settings.max_wait_bulk)
    stage = Stage(
        model,
        limits,
        asyncio.get_running_loop(),
        Terms(settings.ageing, settings.bulk_share, settings.quantum),
        Bounds(waits, settings.max_queue_tokens),
        settings.cache_bytes,
        observe,
    )
    for tokens, seconds in taken:
        stage.scheduler.learn(tokens, seconds)
    return stage


def warm(model: M3, limits: Limits) -> list[tuple[int, float]]:
    """Run every width that the engine was built for, or texts of several lengths.

    The first run of a shape is slow on most engines: kernels are chosen, memory is taken. What the
    second one takes is what the scheduler starts from.

    Returns:
        Tokens computed and seconds, of each.
    """
    rng = np.random.default_rng(0)
    found = []
    for texts, length in shapes(limits, model.max_length):
        rows = [rng.integers(4, model.manifest.vocab, length, np.int32) for _ in range(texts)]
        width = width_of(length, limits)
        batch = Batch(ragged(rows, np.int32), np.arange(texts), width)
        seconds = 0.0
        for _ in range(2):
            begun = time.perf_counter()
            model.engine.run(batch, model.heads)
            seconds = time.perf_counter() - begun
            if seconds > LONG:
                break
        found.append((texts * (width if limits.pads else length), seconds))
        log.debug("warmed up %d x %d tokens: %.4f s", texts, length, seconds)
    return found


def shapes(limits: Limits, max_length: int) -> list[tuple[int, int]]:
    """Return the batches to warm up with: texts, and tokens of each."""
    longest = min(limits.max_tokens, max_length)
    if limits.widths:
        lengths = [width for width in limits.widths if width <= max_length]
    else:
        doubled = (LEAST * 2**n for n in range(32))
        lengths = [*itertools.takewhile(lambda length: length < longest, doubled), longest]
    many = max(1, limits.max_tokens // width_of(lengths[0], limits))
    if limits.rows:
        many = min(many, limits.rows[0])
    return [(1, length) for length in lengths] + ([(many, lengths[0])] if many > 1 else [])
