"""An engine that a test steers: it waits, fails or hangs when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from m3rt import M3
from m3rt.types import Batch, Engine, Heads, Limits, Raw


class Steered:
    """Another engine, behind a gate. It notes what it ran."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self._engine = engine
        self.limits = limits or engine.limits
        self.name = engine.name
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)  # released once for each batch that begins
        self.ran: list[tuple[list[bytes], Heads]] = []  # texts, as the bytes of their ids
        self.before: Callable[[Batch], None] = lambda batch: None  # may raise
        self.after: Callable[[Batch, Raw], Raw] = lambda batch, raw: raw
        self.closed = False

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch when the gate is open."""
        self.ran.append(([ids.tobytes() for ids in batch.tokens], heads))
        self.entered.release()
        assert self.gate.wait(30)
        self.before(batch)
        return self.after(batch, self._engine.run(batch, heads))

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True


def steered(model: M3, limits: Limits | None = None) -> tuple[M3, Steered]:
    """Return the model with its engine behind a gate."""
    engine = Steered(model.engine, limits)
    return M3(model.manifest, model.tokenizer, engine), engine
