"""The one thing that every surface calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from m3rt.runtime import M3
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Sender, Timings

P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """Embeds for all surfaces. This one is a stand-in: one text of one request at a time."""

    def __init__(self, settings: Settings, model: M3) -> None:
        self.settings = settings
        self.model = model
        self._pool = ThreadPoolExecutor(2, "m3rt-work")

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.settings.served_model_name or self.model.manifest.source.checkpoint

    @property
    def ready(self) -> bool:
        """Whether requests are answered: warmed up, not stopping, the engine well."""
        return True

    @property
    def live(self) -> bool:
        """Whether the process is worth keeping: the engine does not hang."""
        return True

    async def off(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work in another thread: tokenisation, serialisation, scores."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    async def embed(self, ask: Ask, sender: Sender) -> Answer:
        """Embed the texts of a request.

        Raises:
            RefusedError: it cannot be answered; says why.
        """
        begun = time.perf_counter()
        texts = [str(text) for text in ask.inputs]
        tokens = await self.off(self.model.tokenize, texts, max_length=ask.max_length)
        cut = time.perf_counter()
        found = await self.off(self.model.encode_tokens, tokens, ask.heads)
        done = time.perf_counter()
        spent = Timings(cut - begun, 0.0, done - cut, done - begun)
        return Answer(found, tokens, spent, sum(map(len, texts)))
