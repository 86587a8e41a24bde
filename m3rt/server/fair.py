"""A line in which clients share the engine, and so do the requests of each of them.

Start-time fair queueing (Goyal, Vin and Cheng 1996), twice. Among clients, whoever has had the
least of the engine comes first; one that has waited for nothing starts where the others are, and
saves nothing up. Within a client, requests take turns text by text, so that a query does not wait
for all of the many texts that its own client sent before it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from m3rt.server.items import Item

IDLE = 1024  # clients that are remembered while nothing of theirs waits


@dataclass(slots=True)
class Client:
    """One client's line: by tag, which is where its request's work would have begun."""

    served: float = 0.0  # virtual seconds of the engine, comparable among clients
    clock: float = 0.0  # the tag that was last taken
    waiting: list[Item] = field(default_factory=list)  # ascending by tag
    backlog: float = 0.0  # seconds of those that wait


class Fair:
    """Items of one lane. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._clock = 0.0
        self._numbers = itertools.count()
        self.count = 0
        self.tokens = 0
        self.cost = 0.0

    def push(self, items: Sequence[Item]) -> None:
        """Add the texts of one request, all of one client, in order."""
        client = self._clients.setdefault(items[0].client, Client())
        if not client.waiting:
            client.served = max(client.served, self._clock)
        tag = client.clock
        for item in items:
            item.tag = (tag, next(self._numbers))
            tag += item.cost
            client.backlog += item.cost
            self.cost += item.cost
            self.tokens += item.length
        self.count += len(items)
        client.waiting.extend(items)
        client.waiting.sort(key=lambda item: item.tag)  # two sorted runs: linear

    def ordered(self) -> Iterator[Item]:
        """Give the items in the order in which they should run, as if each were charged."""
        lines = [
            (client.served, n, 0, client.waiting)
            for n, client in enumerate(self._clients.values())
            if client.waiting
        ]
        heapq.heapify(lines)
        while lines:
            served, n, place, waiting = lines[0]
            item = waiting[place]
            if place + 1 < len(waiting):
                heapq.heapreplace(lines, (served + item.cost, n, place + 1, waiting))
            else:
                heapq.heappop(lines)
            yield item

    def take(self, items: Sequence[Item]) -> None:
        """Remove items that are to run, in their order, and charge their clients."""
        for item in items:
            client = self._clients[item.client]
            self._clock = max(self._clock, client.served)
            client.served += item.cost
            client.clock = max(client.clock, item.tag[0])
        self._remove(items)

    def drop(self, items: Sequence[Item]) -> None:
        """Remove items that will not run."""
        self._remove(items)

    def ahead(self, name: str, cost: float, last: float = 0.0) -> float:
        """Return the seconds of others' work that would run before the last text of some new work.

        Args:
            name: the client's.
            cost: of the new work, in seconds.
            last: of its last text.
        """
        own = self._clients.get(name) or Client()
        end = own.clock + cost - last
        before = sum(item.cost for item in own.waiting if item.tag[0] <= end)
        served = own.served if own.waiting else max(own.served, self._clock)
        turn = served + before + cost - last  # others come first until they have had as much
        others = sum(
            min(client.backlog, max(0.0, turn - client.served) + client.waiting[0].cost / 2)
            for other, client in self._clients.items()
            if client.waiting and other != name
        )
        return before + others

    def _remove(self, items: Sequence[Item]) -> None:
        names = {item.client for item in items}
        for item in items:
            client = self._clients[item.client]
            client.backlog -= item.cost
            self.cost -= item.cost
            self.tokens -= item.length
        self.count -= len(items)
        gone = set(map(id, items))
        for name in names:
            client = self._clients[name]
            client.waiting = [item for item in client.waiting if id(item) not in gone]
            if not client.waiting:
                client.backlog = 0.0
        if not self.count:  # all had what they wanted: they are equal again
            self._clients.clear()
            self._clock = self.cost = 0.0
        elif len(self._clients) > IDLE:
            self._forget()

    def _forget(self) -> None:
        """Forget clients of whom nothing waits, those that are owed most first."""
        idle = sorted(
            (client.served, name) for name, client in self._clients.items() if not client.waiting
        )
        for served, name in idle:
            if served <= self._clock or len(self._clients) > IDLE:
                del self._clients[name]
