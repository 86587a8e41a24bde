"""Requests to batches and back: admission, texts that are asked for twice, cancellation.

What belongs to the event loop's thread: requests, who waits for which text, the cache. What the
threads that run the engine share with it, under one lock: the line and the pace.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m3rt.errors import EngineError
from m3rt.runtime import M3
from m3rt.server.cache import Cache
from m3rt.server.choice import Chooser
from m3rt.server.crew import Crew, Ran
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.gather import only
from m3rt.server.items import Item, Part, Request, State
from m3rt.server.line import Line, Terms
from m3rt.server.pace import Pace
from m3rt.server.work import Lane
from m3rt.types import Limits

MARGIN = 1.2  # times the estimated wait that must be left until a deadline
ROOM = 0.4  # of the time until a deadline, at most, that is kept for a batch with others
SHORT = 16  # tokens of a query, when nothing of a request is known yet


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is refused before it waits.

    Args:
        wait: seconds that a text may have to wait for the engine, by lane.
        tokens: that may wait in all.
    """

    wait: tuple[float, float] = (2.0, 60.0)
    tokens: int = 4_000_000


class Scheduler:
    """One engine's work. All methods are for the event loop's thread.

    Args:
        model: what runs.
        limits: its engine's, or stricter ones.
        loop: where callers wait.
        terms: how the lanes share the engine.
        bounds: what is refused.
        cache: results that are kept.
        observe: told of every batch, in the event loop's thread.
    """

    def __init__(
        self,
        model: M3,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        terms: Terms,
        bounds: Bounds,
        cache: Cache,
        observe: Callable[[Ran], None],
    ) -> None:
        self._loop = loop
        self._bounds = bounds
        self._cache = cache
        self._observe = observe
        self._lock = threading.Lock()
        self._parallel = max(1, limits.parallel)
        self.pace = Pace(limits.max_tokens)
        self.line = Line(Chooser(limits, self.pace, terms.quantum), terms)
        self._flights: dict[bytes, Item] = {}  # texts that wait or run, by their tokens
        self._crew = Crew(model, self.line, self.pace, self._lock, self._ran)

    @property
    def lost(self) -> bool:
        """Whether the engine's device was lost: nothing runs any more."""
        return self._crew.lost

    def learn(self, tokens: int, seconds: float) -> None:
        """Tell of a batch that ran before there was a queue."""
        with self._lock:
            self.pace.learn(tokens, seconds)

    def wait(self, client: str, lane: Lane, costs: Sequence[float] = (), coming: int = 0) -> float:
        """Return about how many seconds the last text of new work would wait for the engine.

        Args:
            client: whose it is.
            lane: in which it waits.
            costs: seconds of the engine that each text takes; none stands for a short query.
            coming: requests that were let in and are not in the queue yet.
        """
        now = time.monotonic()
        with self._lock:
            short = self.pace.text(SHORT)
            costs = costs or [short]
            ahead = self.line.ahead(client, lane, sum(costs), costs[-1]) + coming * short
            ahead /= self._parallel
            left = [
                max(0.0, batch.began + batch.expected - now)
                for batch in self._crew.running.values()
            ]
        free = 0.0 if len(left) < self._parallel else min(left)
        return free + ahead

    def admit(
        self,
        client: str,
        lane: Lane,
        deadline: float | None,
        costs: Sequence[float] = (),
        coming: int = 0,
    ) -> None:
        """Refuse work that would wait too long; see wait.

        Raises:
            RefusedError: says how long, and when to come back.
        """
        wait = self.wait(client, lane, costs, coming)
        most = self._bounds.wait[lane]
        if deadline is not None:
            left = deadline - time.monotonic()
            most = min(most, (left - self._together(costs, left)) / MARGIN)
        if wait > max(most, 0.0):  # what would run at once runs: an estimate is not always right
            raise RefusedError(
                Kind.OVERLOADED,
                f"it would wait about {wait:.1f} s, and {max(0.0, most):.1f} s is the most",
                retry_after=max(1.0, math.ceil(wait - most)),
            )

    def _together(self, costs: Sequence[float], left: float) -> float:
        """Return the seconds that new work should have left when its turn comes.

        Enough for a batch that is large enough: where all are let in until their deadlines, those
        whose turn it is have no time to run with others, and the engine is slow.
        """
        with self._lock:
            large = self.pace.batch(self.pace.knee)
        return max(sum(costs) / self._parallel, min(large, ROOM * left))

    def submit(self, request: Request, keys: Sequence[bytes]) -> None:
        """Queue the texts of a request; its future ends when all have results.

        Args:
            request: none of whose texts has a result.
            keys: of its texts, equal where tokens are.

        Raises:
            RefusedError: it would wait too long, or too much waits.
        """
        fresh: dict[bytes, Item] = {}
        attached: list[tuple[Item, int]] = []
        with self._lock:
            costs = {key: self.pace.text(len(key) // 4) for key in set(keys)}
        for row, key in enumerate(keys):
            if found := self._cache.find(key, request.heads):
                request.parts[row] = Part(found, 0)
                request.left -= 1
                request.shared += 1
                continue
            item = fresh.get(key) or self._flights.get(key)
            if item is None or not joinable(item, request):
                item = fresh[key] = item_of(request, row, costs[key])
            attached.append((item, row))
        self._admit(request, list(fresh.values()))
        request.shared += len(attached) - len(fresh)
        for item, row in attached:
            item.waiters.append((request, row))
        with self._crew.ready:
            for place, (item, row) in enumerate(attached):
                if item.state == State.DONE:  # those who waited for it were late: just dropped
                    again = fresh.setdefault(keys[row], item_of(request, row, costs[keys[row]]))
                    again.waiters.append((request, row))
                    attached[place] = again, row
            if fresh:
                self.line.push(list(fresh.values()))
                self._crew.ready.notify(min(len(fresh), self._parallel))
        request.items += [item for item, _ in attached]
        self._flights.update(fresh)
        if not request.left:
            request.done.set_result(None)

    def forget(self, request: Request) -> None:
        """Drop what only this request waited for; it is answered, or its client has gone."""
        if not request.done.done():
            request.done.cancel()
        if not request.left:
            return
        unwanted = [
            item for item in set(request.items) if item.state != State.RUNNING and not item.wanted
        ]
        with self._lock:
            self.line.drop(unwanted)
        for item in unwanted:
            self._land(item)

    def stuck(self, seconds: float) -> bool:
        """Return whether a batch has run for longer than that, and fail what waits for it."""
        now = time.monotonic()
        found = False
        with self._lock:
            batches = list(self._crew.running.values())
        for batch in batches:
            if now - batch.began <= max(seconds, 10 * batch.expected):
                continue
            found = True
            if not batch.reported:
                batch.reported = True
                error = EngineError(f"the engine has not answered for {now - batch.began:.0f} s")
                for item in batch.items:
                    self._fail(item, error)
        return found

    def abandon(self, error: RefusedError) -> None:
        """Refuse all that waits."""
        with self._lock:
            items = self.line.waiting()
            self.line.drop(items)
        for item in items:
            self._fail(item, error)

    def close(self, seconds: float) -> bool:
        """End the engine's threads; return whether all ended in time. It blocks."""
        return self._crew.close(seconds)

    def _admit(self, request: Request, items: Sequence[Item]) -> None:
        """Refuse a request that would wait too long."""
        if not items:
            return
        tokens = sum(item.length for item in items)
        if self.line.tokens + tokens > self._bounds.tokens and len(self.line):
            raise RefusedError(
                Kind.OVERLOADED,
                f"{self.line.tokens} tokens wait, and {self._bounds.tokens} are the most",
                retry_after=max(1.0, self.wait(request.sender.client, request.lane)),
            )
        sender = request.sender
        self.admit(sender.client, request.lane, sender.deadline, [item.cost for item in items])

    def _ran(self, ran: Ran) -> None:
        """Pass on what came of a batch, from the thread that ran it."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, ran)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _deliver(self, ran: Ran) -> None:
        for place, item in enumerate(ran.items):
            if error := ran.failed.get(place):
                self._fail(item, error)
                continue
            assert ran.found is not None
            self._land(item)
            if self._cache.most and item.lane == Lane.INTERACTIVE:
                own = only(ran.found, item.heads)
                self._cache.keep(item.ids.tobytes(), item.heads, own, place)
            for request, row in item.waiters:
                request.began = min(request.began or ran.began, ran.began)
                request.ended = ran.ended
                request.waited = max(request.waited, ran.began - request.arrived)
                request.parts[row] = Part(ran.found, place)
                request.left -= 1
                if not request.left and not request.done.done():
                    request.done.set_result(None)
        self._loop.call_soon(self._observe, ran)  # after those who wait have their turn

    def _fail(self, item: Item, error: Exception) -> None:
        self._land(item)
        for request, _ in item.waiters:
            if not request.done.done():
                request.done.set_exception(error)

    def _land(self, item: Item) -> None:
        """Let nobody join a text any more."""
        item.state = State.DONE
        key = item.ids.tobytes()
        if self._flights.get(key) is item:
            del self._flights[key]


def item_of(request: Request, row: int, cost: float) -> Item:
    """Return what a text of a request is in the queue."""
    client = request.sender.client
    ids = request.tokens.ids[row]
    return Item(ids, request.heads, request.lane, client, cost, request.arrived)


def joinable(item: Item, request: Request) -> bool:
    """Return whether a request can wait for a text that another one asked for, and lose nothing."""
    if item.state == State.DONE or request.heads not in item.heads:
        return False
    return item.state == State.RUNNING or item.lane <= request.lane
