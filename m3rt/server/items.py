"""One text on its way through the engine, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import enum
import math
from dataclasses import dataclass, field

from m3rt.server.work import Lane, Sender
from m3rt.types import Embeddings, Heads, Ints, Tokens


class State(enum.Enum):
    """Where a text is."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()  # run, failed, or dropped as nobody waits for it


@dataclass(slots=True, eq=False)
class Part:
    """One text's results: a place among those of a batch."""

    found: Embeddings
    place: int


@dataclass(slots=True, eq=False)
class Request:
    """What one caller waits for: all texts of a request."""

    tokens: Tokens
    heads: Heads
    lane: Lane
    sender: Sender
    done: asyncio.Future[None]
    arrived: float  # on the clock of time.monotonic, as all times here
    parts: list[Part | None]  # of each text
    left: int  # texts that have no part
    items: list[Item] = field(default_factory=list)  # what it waits for
    began: float = 0.0  # the first text of it
    ended: float = 0.0
    waited: float = 0.0  # the longest that a text of it waited for the engine
    shared: int = 0  # texts that another request ran, or the cache had

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: answered, refused, or the client has gone."""
        return self.done.done()


@dataclass(slots=True, eq=False)
class Item:
    """One text in the queue."""

    ids: Ints
    heads: Heads
    lane: Lane
    client: str
    cost: float  # seconds of the engine, as its pace tells them
    arrived: float
    waiters: list[tuple[Request, int]] = field(default_factory=list)  # and the text's place in it
    tag: tuple[float, int] = (0.0, 0)  # its place in its client's line
    state: State = State.WAITING

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return len(self.ids)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return any(not request.gone for request, _ in self.waiters)

    @property
    def deadlines(self) -> list[float]:
        """When those who wait for it have waited enough."""
        return [
            math.inf if request.sender.deadline is None else request.sender.deadline
            for request, _ in self.waiters
            if not request.gone
        ]

    @property
    def deadline(self) -> float:
        """When nobody wants it any more."""
        return max(self.deadlines, default=-math.inf)

    @property
    def soonest(self) -> float:
        """When somebody does not want it any more."""
        return min(self.deadlines, default=math.inf)
