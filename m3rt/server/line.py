"""Texts that wait for the engine: two lanes, and whose turn it is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from m3rt.server.choice import Chooser
from m3rt.server.fair import Fair
from m3rt.server.items import Item, State
from m3rt.server.work import Lane

BUSY = 10.0  # seconds after an interactive text in which another is expected


@dataclass(frozen=True, slots=True)
class Terms:
    """How the lanes share the engine.

    Args:
        ageing: seconds after which a bulk text need not wait for all interactive ones.
        share: of the engine's time that aged bulk texts get while interactive ones wait.
        quantum: seconds; see Chooser.
    """

    ageing: float = 5.0
    share: float = 0.25
    quantum: float = 0.05


class Line:
    """The queue. Not thread-safe: its owner locks."""

    def __init__(self, chooser: Chooser, terms: Terms) -> None:
        self._chooser = chooser
        self._terms = terms
        self._lanes = {lane: Fair() for lane in Lane}
        self._owed = 0.0  # seconds of the engine that aged bulk texts are behind their share
        self._interactive_at = -BUSY  # when the last interactive text came

    def __len__(self) -> int:
        return sum(lane.count for lane in self._lanes.values())

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(lane.tokens for lane in self._lanes.values())

    def push(self, items: Sequence[Item]) -> None:
        """Add the texts of one request."""
        if items[0].lane == Lane.INTERACTIVE:
            self._interactive_at = items[0].arrived
        self._lanes[items[0].lane].push(items)

    def drop(self, items: Sequence[Item]) -> None:
        """Remove texts that wait, and that nobody wants."""
        for lane, fair in self._lanes.items():
            some = [item for item in items if item.lane == lane and item.state == State.WAITING]
            for item in some:
                item.state = State.DONE
            if some:
                fair.drop(some)

    def ahead(self, client: str, lane: Lane, cost: float, last: float = 0.0) -> float:
        """Return the seconds of work that runs before the last text of some new work; see Fair."""
        own = self._lanes[lane].ahead(client, cost, last)
        return own if lane == Lane.INTERACTIVE else own + self._lanes[Lane.INTERACTIVE].cost

    def take(self, now: float) -> list[Item]:
        """Return the texts that run next, and count them as running; none if none waits."""
        while chosen := self._chosen(now):
            stale = [item for item in chosen if not item.wanted or self._late(item, now)]
            if not stale:
                break
            self.drop(stale)
        for lane, fair in self._lanes.items():
            some = [item for item in chosen if item.lane == lane]
            if some:
                fair.take(some)
        for item in chosen:
            item.state = State.RUNNING
        self._settle(chosen)
        return chosen

    def waiting(self) -> list[Item]:
        """Return all that wait."""
        return [item for fair in self._lanes.values() for item in fair.ordered()]

    def _late(self, item: Item, now: float) -> bool:
        """Return whether a text cannot be ready in time; others that can run instead.

        The last one that waits runs all the same: it shows whether the estimate is right.
        """
        if len(self) > 1:
            now += self._chooser.pace.batch(item.length)
        return item.deadline <= now

    def _chosen(self, now: float) -> list[Item]:
        """Return the texts that would run next."""
        turn = self._turn(now)
        lines = (self._lanes[lane].ordered() for lane in (turn, Lane(1 - turn)))
        order = itertools.chain(*lines)
        first = next(order, None)
        if first is None:
            return []
        shared = now - self._interactive_at < BUSY
        return self._chooser.fill(first, order, now, shared)

    def _turn(self, now: float) -> Lane:
        """Return the lane whose first text runs."""
        interactive, bulk = (self._lanes[lane] for lane in Lane)
        if not interactive.count:
            return Lane.BULK
        if not bulk.count or self._owed <= 0:
            return Lane.INTERACTIVE
        first = next(bulk.ordered())
        return Lane.BULK if now - first.arrived > self._terms.ageing else Lane.INTERACTIVE

    def _settle(self, chosen: Sequence[Item]) -> None:
        """Note what bulk texts are owed after a batch."""
        spent = {lane: sum(item.cost for item in chosen if item.lane == lane) for lane in Lane}
        if spent[Lane.INTERACTIVE] or self._lanes[Lane.INTERACTIVE].count:
            share = self._terms.share
            self._owed += share * spent[Lane.INTERACTIVE] - (1 - share) * spent[Lane.BULK]
        most = self._terms.ageing  # nobody saves up turns, or pays for them, for ever
        self._owed = max(-most, min(most, self._owed)) if self._lanes[Lane.BULK].count else 0.0
