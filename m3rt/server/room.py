"""What may be held in memory for requests at once: their answers, as arrays and as bytes."""

from __future__ import annotations

from m3rt.artifact import Manifest
from m3rt.server.faults import Kind, RefusedError
from m3rt.types import Heads

ENTRY = 28  # bytes of a lexical weight: the id and the weight, and both as they are written


class Room:
    """Bytes that may be held. Used from one thread, that of the event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, size: int) -> Hold:
        """Hold so many bytes until the answer is sent.

        Raises:
            RefusedError: they never fit, or do not fit now.
        """
        if size > self.most:
            raise RefusedError(
                Kind.TOO_LARGE,
                f"the answer would take {size >> 20} MiB, and {self.most >> 20} MiB is the most "
                "held for all: send fewer texts at a time, ask for fewer outputs, or for binary",
            )
        if self.held + size > self.most:
            raise RefusedError(
                Kind.OVERLOADED, "answers that are not sent yet fill the memory", retry_after=1.0
            )
        return Hold(self, size)


class Hold:
    """Bytes held. They are given back once, by release or when this is forgotten."""

    def __init__(self, room: Room, size: int) -> None:
        self._room = room
        self._size = size
        room.held += size

    def release(self) -> None:
        """Give the bytes back."""
        self._room.held -= self._size
        self._size = 0


def size_of(manifest: Manifest, heads: Heads, texts: int, tokens: int, written: float) -> int:
    """Return about how many bytes an answer takes, at most.

    Args:
        manifest: of the model: how wide vectors are.
        heads: asked for.
        texts: of the request.
        tokens: of all texts.
        written: bytes of a number in the answer's body; it has four in memory.
    """
    numbers = texts * manifest.hidden if Heads.DENSE in heads else 0
    if Heads.COLBERT in heads:
        numbers += tokens * (manifest.colbert_dim or manifest.hidden)
    size = numbers * (4 + written) + 256 * texts
    return int(size + (tokens * ENTRY if Heads.SPARSE in heads else 0))
