"""What a surface asks for, and what it gets, whatever the protocol."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from m3rt.server.room import Hold
from m3rt.types import Embeddings, Heads, Tokens

Input = str | Sequence[int]  # a text, or its token ids


class Lane(enum.IntEnum):
    """Who waits for whom: bulk texts run when no interactive ones wait, or when they have aged."""

    INTERACTIVE = 0
    BULK = 1


class Cut(enum.StrEnum):
    """What to do with a text that is too long."""

    RIGHT = "right"  # keep the first tokens
    LEFT = "left"  # keep the last ones
    NONE = "none"  # refuse the request


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds."""

    tokenise: float = 0.0
    queue: float = 0.0  # the longest that a text of it waited
    engine: float = 0.0  # from the first text's start to the last one's end
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What was embedded for a request, without the texts."""

    texts: int
    tokens: int
    characters: int
    shared: int
    truncated: int
    heads: Heads
    lane: Lane
    timings: Timings


@dataclass(slots=True)
class Trail:
    """What comes of a request while it is at work: for the log, the metrics and the memory."""

    holds: list[Hold] = field(default_factory=list)  # memory, given back when the answer is sent
    spent: list[Spent] = field(default_factory=list)
    coming: bool = False  # let in, and not in the queue yet
    inputs: list[Input] = field(default_factory=list)  # only where the log may have them

    def release(self) -> None:
        """Give the memory back."""
        for hold in self.holds:
            hold.release()
        self.holds.clear()


@dataclass(frozen=True, slots=True)
class Sender:
    """Whose request it is, and how it wants to be served."""

    client: str = ""  # clients share the engine fairly
    lane: Lane | None = None  # None: by the number of its texts
    deadline: float | None = None  # on the clock of time.monotonic, in seconds
    request_id: str = ""
    trail: Trail | None = field(default=None, compare=False)  # what comes of it


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts to embed."""

    inputs: Sequence[Input]
    heads: Heads
    max_length: int | None = None  # tokens kept of a text; the model's own by default
    cut: Cut = Cut.RIGHT
    bytes_per_number: float = 4.0  # of the answer, as it will be written: bounds what is held


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Embeddings, in the order of the inputs."""

    embeddings: Embeddings
    tokens: Tokens
    timings: Timings
    characters: int  # of texts; 0 for token ids
    shared: int = 0  # texts that were taken from the cache, or ran for another request, too
    effort: float = 0.0  # seconds that it takes to write, about

    @property
    def n_tokens(self) -> int:
        """Tokens that were encoded, special ones included."""
        return int(self.embeddings.n_tokens.sum())
