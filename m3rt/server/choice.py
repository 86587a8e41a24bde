"""Which texts run next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m3rt.server.items import Item
from m3rt.server.pace import Pace
from m3rt.server.work import Lane
from m3rt.types import Limits

LOOKED_AT = 4  # times the tokens of a batch, to fill it with what suits it best
JOINED = 1.25  # times what a batch's first text takes alone, which others may always add
SLACK = 2.0  # places of a rectangle, for each that its texts would take alone: of engines that pad


@dataclass(slots=True)
class Shape:
    """What a batch has so far, under an engine's limits; see m3rt.plan.batches."""

    limits: Limits
    count: int = 0
    tokens: int = 0
    longest: int = 0
    alone: int = 0  # places that its texts would take, each in a batch of its own

    def cost(self, length: int = 0) -> int:
        """Return the places that the engine computes, with one more text of a length, if any."""
        if not self.limits.pads:
            return self.tokens + length
        return width_of(max(self.longest, length), self.limits) * (self.count + bool(length))

    def admits(self, length: int) -> bool:
        """Return whether one more text fits; the first one always does."""
        if not self.count:
            return True
        cost = self.cost(length)
        if cost > self.limits.max_tokens:
            return False
        if not self.limits.pads:
            return True
        slack = min(self.limits.slack, SLACK)
        if cost > slack * (self.alone + width_of(length, self.limits)):
            return False
        place = bisect_left(self.limits.widths, max(self.longest, length))
        return place >= len(self.limits.rows) or self.count < self.limits.rows[place]

    def add(self, length: int) -> None:
        """Take one more text."""
        self.count += 1
        self.tokens += length
        self.longest = max(self.longest, length)
        self.alone += width_of(length, self.limits)


@dataclass(slots=True)
class Chooser:
    """Fills a batch around the text that comes first.

    Args:
        limits: the engine's.
        pace: what batches take.
        quantum: seconds; a batch with bulk texts takes no longer while there is interactive
            traffic, if its first text does not alone.
    """

    limits: Limits
    pace: Pace
    quantum: float

    def fill(self, first: Item, others: Iterable[Item], now: float, shared: bool) -> list[Item]:
        """Return the first text, and others that run with it.

        Those of its own lane and with the same heads come first, then whatever there is room for:
        the heads of all are computed for all. While interactive texts may come, a batch grows no
        further than its tokens come cheaper for it: they would wait for nothing. And it ends in
        time for all of its texts, if the first one alone would.

        Args:
            first: runs in any case.
            others: that wait, in order; LOOKED_AT bounds how many are looked at.
            now: the time.
            shared: whether there is interactive traffic.
        """
        shape = Shape(self.limits)
        shape.add(first.length)
        alone = self.pace.batch(shape.cost())
        until = first.soonest
        has_bulk = first.lane == Lane.BULK
        chosen = [first]
        for item in ranked(first, others, LOOKED_AT * self.limits.max_tokens):
            if not shape.admits(item.length):
                continue
            cost = shape.cost(item.length)
            bulk = has_bulk or item.lane == Lane.BULK
            if shared and cost > self.pace.knee:
                continue
            seconds = self.pace.batch(cost)
            if bulk and shared and seconds > max(self.quantum, JOINED * alone):
                continue
            if seconds > max(min(until, item.soonest) - now, JOINED * alone):
                continue
            shape.add(item.length)
            chosen.append(item)
            has_bulk, until = bulk, min(until, item.soonest)
            if shape.cost() >= self.limits.max_tokens:
                break
        return chosen


def ranked(first: Item, others: Iterable[Item], most: int) -> Sequence[Item]:
    """Put what suits the first text before what does not; otherwise the order is kept.

    Args:
        first: decides the lane and the heads.
        others: in order.
        most: tokens of others that are looked at.
    """
    seen: list[Item] = []
    for item in others:
        most -= item.length
        if most < 0:
            break
        seen.append(item)
    return sorted(seen, key=lambda item: (item.lane, item.heads != first.heads))


def width_of(length: int, limits: Limits) -> int:
    """Return the width at which a text of a length runs."""
    place = bisect_left(limits.widths, length)
    return limits.widths[place] if place < len(limits.widths) else length
