"""The one thing that every surface calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from m3rt.runtime import M3
from m3rt.server import bounds
from m3rt.server.crew import Ran
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.finished import Finished
from m3rt.server.gather import effort_of, gathered, summary
from m3rt.server.items import Request
from m3rt.server.room import Room, size_of
from m3rt.server.settings import Settings
from m3rt.server.stage import Stage, staged
from m3rt.server.tokens import Prepared, prepared
from m3rt.server.work import Answer, Ask, Lane, Sender, Timings
from m3rt.types import Heads

P = ParamSpec("P")
T = TypeVar("T")

# A thread's turn and the way back take some 100 microseconds, and several times that where a core
# has to wake up. What takes less is done at once: the event loop is not kept from others by that.
MOMENT = 1e-4  # seconds of writing
SHORT = 512  # characters of a request that is tokenised
FEW = 16  # texts of it, and of a request whose results are put together
LONG = 0.01  # seconds of writing that small answers need not wait for
LARGE = 1 << 16  # characters of a request that is tokenised apart, so that queries need not wait
QUERY = 1 << 10  # bytes of a request that is a query's, most likely
WATCH = 0.5  # seconds between looks at the engine


class Service:
    """Embeds for all surfaces, and knows whether it can.

    It belongs to one event loop, from ``start`` to ``stop``. A model is opened by the caller, and
    warmed up by ``start`` or ``swap``.
    """

    def __init__(self, settings: Settings, model: M3) -> None:
        self.settings = settings
        self.room = Room(settings.max_memory)
        self.watchers: list[Callable[[Ran], None]] = []  # told of every batch
        self.observers: list[Callable[[Finished], None]] = []  # told of every request
        self.closers: list[Callable[[], None]] = []  # called in the end
        self.requests = 0  # of any kind that are at work
        self.coming = 0  # those of them that are being read and tokenised
        self._first = model
        self._stage: Stage | None = None
        self._stopping = False
        self._closed = False
        self._stuck = False
        self._small = ThreadPoolExecutor(2, "serve-small")
        self._large = ThreadPoolExecutor(2, "serve-large")
        self._watch: asyncio.Task[None] | None = None

    @property
    def model(self) -> M3:
        """What serves now."""
        return self._first if self._stage is None else self._stage.model

    @property
    def stage(self) -> Stage:
        """The model that serves now, with its scheduler.

        Raises:
            RefusedError: it has not started.
        """
        if self._stage is None:
            raise RefusedError(Kind.NOT_READY, "the server is starting", retry_after=1.0)
        return self._stage

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping

    @property
    def started(self) -> bool:
        """Whether the model was warmed up."""
        return self._stage is not None

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.settings.served_model_name or self.model.manifest.source.checkpoint

    @property
    def ready(self) -> bool:
        """Whether requests are answered: warmed up, not stopping, the engine well."""
        return self._stage is not None and not self._stopping and self.live

    @property
    def live(self) -> bool:
        """Whether the process is worth keeping: the engine neither hangs nor lost its device."""
        return not self._stuck and not (self._stage and self._stage.scheduler.lost)

    async def start(self) -> None:
        """Warm the model up, and answer from then on.

        Raises:
            EngineError: the engine fails.
        """
        self._stage = await staged(self._first, self.settings, self._observe)
        self._watch = asyncio.create_task(self._watching())

    async def swap(self, model: M3) -> None:
        """Serve another model from now on: it is warmed up first, and no request is dropped.

        What is begun is finished on the old one, which is closed then. Both are in memory
        meanwhile.

        Raises:
            EngineError: the new engine fails; the old one goes on.
        """
        fresh = await staged(model, self.settings, self._observe)
        old, self._stage = self.stage, fresh
        await old.drained(self.settings.request_timeout)
        await asyncio.to_thread(old.close, self.settings.engine_timeout)

    def refuse(self) -> None:
        """Be not ready any more: what is begun is finished, load balancers look elsewhere."""
        self._stopping = True

    async def stop(self, seconds: float) -> bool:
        """Finish what is begun, then end; return whether all was finished in time."""
        self.refuse()
        if self._watch is not None:
            self._watch.cancel()
        done = True
        if self._stage is not None:
            done = await self._stage.drained(seconds)
            self._closed = True
            self._stage.scheduler.abandon(RefusedError(Kind.NOT_READY, "the server is stopping"))
            done &= await asyncio.to_thread(self._stage.close, 5.0 if done else 0.1)
        for close in self.closers:
            await asyncio.to_thread(close)
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)
        return done

    def over(self, done: Finished) -> None:
        """Tell all observers of a request that is over."""
        for observe in self.observers:
            observe(done)

    async def off(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work in another thread: serialisation, scores."""
        return await self._in(self._small, work, *args, **kwargs)

    async def finish(
        self, answer: Answer, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Write an answer: in another thread, unless that takes longer than the writing."""
        if answer.effort <= MOMENT:
            return work(*args, **kwargs)
        pool = self._small if answer.effort <= LONG else self._large
        return await self._in(pool, work, *args, **kwargs)

    @contextlib.contextmanager
    def entered(self, sender: Sender, size: int | None = None) -> Iterator[None]:
        """Count a request while it is at work, before any of its body is read.

        Args:
            sender: whose it is.
            size: bytes of its body, if that is known: of a small one the lane is known, too.

        Raises:
            RefusedError: there are too many, it would wait too long, or the server is not ready.
        """
        self._check_ready()
        if self.requests >= self.settings.max_concurrent_requests:
            raise RefusedError(
                Kind.OVERLOADED, f"{self.requests} requests are at work", retry_after=1.0
            )
        lane = sender.lane
        if lane is None and size is not None and size <= QUERY:
            lane = Lane.INTERACTIVE
        if lane is not None:
            scheduler = self.stage.scheduler
            scheduler.admit(sender.client, lane, sender.deadline, coming=self.coming)
        self.requests += 1
        if sender.trail is not None:
            sender.trail.coming = True
            self.coming += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._came(sender)

    async def embed(self, ask: Ask, sender: Sender) -> Answer:
        """Embed the texts of a request.

        Raises:
            RefusedError: it cannot be answered; says why.
            EngineError: the engine failed on a text of it.
        """
        self._check_ready()
        begun = time.perf_counter()
        stage = self.stage
        with stage.entered():
            heads = bounds.checked(self.settings, stage.model, ask)
            ready = await self._prepared(stage.model, ask)
            tokenised = time.perf_counter()
            lane = sender.lane
            if lane is None:
                few = len(ask.inputs) <= self.settings.interactive_texts
                lane = Lane.INTERACTIVE if few else Lane.BULK
            hold = self.room.take(
                size_of(
                    stage.model.manifest,
                    heads,
                    len(ready.keys),
                    len(ready.tokens.ids.values),
                    ask.bytes_per_number,
                )
            )
            if sender.trail is not None:
                sender.trail.holds.append(hold)
            try:
                request = self._request(ready, heads, lane, sender)
                await self._ran(stage, request, ready)
                parts = [part for part in request.parts if part is not None]
                join = len(parts) > FEW
                found = (
                    await self.off(gathered, request, parts) if join else gathered(request, parts)
                )
            finally:
                if sender.trail is None:
                    hold.release()
        spent = Timings(
            tokenised - begun,
            max(0.0, request.waited),
            max(0.0, request.ended - request.began),
            time.perf_counter() - begun,
        )
        if sender.trail is not None:
            sender.trail.spent.append(summary(request, ready.characters, spent))
            if self.settings.log_texts:
                sender.trail.inputs.extend(ask.inputs)
        effort = effort_of(found, ask.bytes_per_number)
        return Answer(found, request.tokens, spent, ready.characters, request.shared, effort)

    def _request(self, ready: Prepared, heads: Heads, lane: Lane, sender: Sender) -> Request:
        count = len(ready.keys)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return Request(
            ready.tokens, heads, lane, sender, done, time.monotonic(), [None] * count, count
        )

    async def _ran(self, stage: Stage, request: Request, ready: Prepared) -> None:
        """Have the texts run, and wait until they have or the deadline passes."""
        deadline = request.sender.deadline
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise RefusedError(Kind.EXPIRED, "the request's deadline passed before it ran")
        self._came(request.sender)
        try:
            stage.scheduler.submit(request, ready.keys)
            async with asyncio.timeout(remaining):
                await request.done
        except TimeoutError:
            raise RefusedError(
                Kind.EXPIRED, "the request's deadline passed; what had not run is dropped"
            ) from None
        finally:
            stage.scheduler.forget(request)

    def _came(self, sender: Sender) -> None:
        """Count a request no longer among those that are coming."""
        if sender.trail is not None and sender.trail.coming:
            sender.trail.coming = False
            self.coming -= 1

    async def _prepared(self, model: M3, ask: Ask) -> Prepared:
        characters = sum(map(len, ask.inputs))
        least = len(ask.inputs) * model.tokenizer.min_length
        bounds.check_tokens(self.settings, least)
        if characters <= SHORT and len(ask.inputs) <= FEW:
            ready = prepared(model, ask)
        else:
            pool = self._small if characters <= LARGE else self._large
            ready = await self._in(pool, prepared, model, ask)
        bounds.check_tokens(self.settings, len(ready.tokens.ids.values))
        return ready

    def _check_ready(self) -> None:
        if self._stuck:
            raise RefusedError(Kind.NOT_READY, "the engine does not answer", retry_after=10.0)
        if self.stage.scheduler.lost:
            raise RefusedError(Kind.NOT_READY, "the engine's device was lost")
        if self._closed:
            raise RefusedError(Kind.NOT_READY, "the server is stopping", retry_after=10.0)

    def _observe(self, ran: Ran) -> None:
        for watcher in self.watchers:
            watcher(ran)

    async def _watching(self) -> None:
        """Look whether the engine hangs, again and again."""
        while True:
            await asyncio.sleep(WATCH)
            scheduler = self.stage.scheduler
            stuck = scheduler.stuck(self.settings.engine_timeout)
            if stuck and not self._stuck:
                scheduler.abandon(RefusedError(Kind.NOT_READY, "the engine does not answer"))
            self._stuck = stuck

    async def _in(
        self,
        pool: ThreadPoolExecutor,
        work: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, lambda: work(*args, **kwargs))
