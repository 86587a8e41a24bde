"""The threads that run the engine: each takes what the line has, as soon as it is free."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from m3rt.engines.faults import DeviceLostError
from m3rt.errors import EngineError
from m3rt.heads import finished, not_finite
from m3rt.runtime import M3
from m3rt.server.choice import Shape, width_of
from m3rt.server.items import Item
from m3rt.server.line import Line
from m3rt.server.pace import Pace
from m3rt.types import NO_HEADS, Batch, Embeddings, Heads, ragged

log = logging.getLogger("m3rt.server")


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """What came of some texts that ran together."""

    items: Sequence[Item]
    found: Embeddings | None  # in the order of the items; None if all failed
    failed: dict[int, Exception]  # by place among the items
    began: float  # on the clock of time.monotonic
    ended: float
    places: int  # tokens computed, those of padding included
    heads: Heads


@dataclass(slots=True)
class Running:
    """A batch that the engine is at."""

    items: Sequence[Item]
    began: float
    expected: float  # seconds
    reported: bool = field(default=False)  # as one that hangs


class Crew:
    """As many threads as the engine runs batches at once.

    Args:
        model: the engine, and how its outputs are finished.
        line: what waits; shared, under ``lock``.
        pace: learns from each batch; likewise.
        lock: held while either is used.
        done: called with what came of each batch, in the thread that ran it.
    """

    def __init__(
        self,
        model: M3,
        line: Line,
        pace: Pace,
        lock: threading.Lock,
        done: Callable[[Ran], None],
    ) -> None:
        self._model = model
        self._line = line
        self._pace = pace
        self._done = done
        self.ready = threading.Condition(lock)
        self.running: dict[int, Running] = {}
        self.lost = False  # the device, or with it the engine
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"serve-engine-{n}", daemon=True)
            for n in range(max(1, model.engine.limits.parallel))
        ]
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> bool:
        """End the threads when each has finished what it is at; return whether all did."""
        with self.ready:
            self._closing = True
            self.ready.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, number: int) -> None:
        try:
            self._loop(number)
        except BaseException:  # a fault of ours: nobody would be answered any more, so tell
            self.lost = True
            log.exception("the thread that runs the engine ended")

    def _loop(self, number: int) -> None:
        while True:
            with self.ready:
                while not self._closing and not (items := self._line.take(time.monotonic())):
                    self.ready.wait()
                if self._closing:
                    return
                places = cost_of(items, self._model)
                began = time.monotonic()
                self.running[number] = Running(items, began, self._pace.batch(places))
            ran = self._run(items, began, places)
            with self.ready:
                del self.running[number]
                if ran.items is items and not ran.failed:  # not what ran one by one
                    self._pace.learn(places, ran.ended - began)
            self._done(ran)

    def _run(self, items: list[Item], began: float, places: int) -> Ran:
        """Run some texts together, or, if that fails, each alone: one may be at fault."""
        items.sort(key=lambda item: -item.length)  # as m3rt.plan gives them: the longest first
        heads = NO_HEADS
        for item in items:
            heads |= item.heads
        failed: dict[int, Exception] = {}
        found = None
        try:
            found = self._embeddings(items, heads, failed)
        except Exception as error:
            if len(items) == 1 or isinstance(error, DeviceLostError):
                failed = dict.fromkeys(range(len(items)), error)
                self._note(error)
            else:
                log.warning("a batch of %d texts failed, each runs alone: %s", len(items), error)
                return self._alone(items)
        return Ran(items, found, failed, began, time.monotonic(), places, heads)

    def _alone(self, items: Sequence[Item]) -> Ran:
        """Run each text by itself, and report them one by one; the last is returned."""
        for item in items[:-1]:
            self._done(self._one(item))
        return self._one(items[-1])

    def _one(self, item: Item) -> Ran:
        return self._run([item], time.monotonic(), cost_of([item], self._model))

    def _embeddings(
        self, items: Sequence[Item], heads: Heads, failed: dict[int, Exception]
    ) -> Embeddings:
        tokens = ragged([item.ids for item in items], np.int32)
        width = width_of(items[0].length, self._model.engine.limits)
        batch = Batch(tokens, np.arange(len(items)), width)
        raw = self._model.engine.run(batch, heads)
        manifest = self._model.manifest
        for head, places in not_finite(batch, raw).items():
            for place in places.tolist():
                failed[place] = EngineError(
                    f"the {head} output is NaN or Inf for this text: the weights or the engine's "
                    "precision are at fault; a fallback engine computes such texts again"
                )
        return finished(batch, raw, manifest.unscored_ids, manifest.cls_interval)

    def _note(self, error: Exception) -> None:
        if isinstance(error, DeviceLostError):
            self.lost = True
        log.error("the engine failed: %s", error)


def cost_of(items: Sequence[Item], model: M3) -> int:
    """Return the tokens that a batch computes, those of padding included."""
    shape = Shape(model.engine.limits)
    for item in items:
        shape.add(item.length)
    return shape.cost()
