"""A service that tells what it was asked, and does what some texts say."""

from __future__ import annotations

import asyncio
import threading
import time

from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.service import Service
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Sender

WAIT = "wait"  # until the deadline, then refuse
REFUSE = "refuse:"  # and the name of a kind


class Watched(Service):
    """Embeds, but refuses texts that begin with REFUSE and waits at those that are WAIT."""

    def __init__(self, settings: Settings, model: M3) -> None:
        super().__init__(settings, model)
        self.asks: list[tuple[Ask, Sender]] = []
        self.at_work = 0
        self.most_at_work = 0
        self.cancelled = threading.Event()
        self.is_ready = True

    @property
    def ready(self) -> bool:
        return self.is_ready

    async def embed(self, ask: Ask, sender: Sender) -> Answer:
        self.asks.append((ask, sender))
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            for text in map(str, ask.inputs):
                if text == WAIT:
                    await asyncio.sleep(max(0.0, (sender.deadline or 0.0) - time.monotonic()))
                    raise RefusedError(Kind.EXPIRED, "it is over")
                if text.startswith(REFUSE):
                    kind = Kind(text.removeprefix(REFUSE))
                    raise RefusedError(kind, "refused", retry_after=2.5)
            return await super().embed(ask, sender)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.at_work -= 1
