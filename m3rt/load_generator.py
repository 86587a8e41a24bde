"""Requests that arrive at a rate, or follow each other, and what became of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

from m3rt import expectation
from m3rt.arrivals import launch, picks, poisson
from m3rt.connection import ExchangeError, Pool, Response
from m3rt.expectation import Expected
from m3rt.load_summary import Client, Window, outcomes, summarise
from m3rt.loads import Capacity, Latencies, LoadSettings, Run, Sample, Stage
from m3rt.payloads import Payload

Say = Callable[[str], None]

FIRST = 4  # requests at once where the capacity's search begins, which doubles them
GAIN = 1.05  # of the best rate before, at least; two stages without it end the search
PAUSE = 0.05  # seconds that a closed loop waits after a refusal
SETTLING = 0.25  # of a stage, not counted
ALONE = 64  # requests that are sent alone where answers are not compared
TRIES = 3  # of a request that is sent alone
TIMINGS = re.compile(rb'"timings":\s*(\{[^{}]*\})')
NAMES = {"tokenize": "tokenise", "tokenization": "tokenise", "inference": "engine"}


class Load:
    """Sends requests.

    Args:
        pool: connections to the server.
        groups: requests of each kind, as payloads.make returns them.
        shares: of each kind.
        settings: of the benchmark.
    """

    def __init__(
        self,
        pool: Pool,
        groups: Sequence[Sequence[Payload]],
        shares: Sequence[float],
        settings: LoadSettings,
    ) -> None:
        self.pool = pool
        self.settings = settings
        self._payloads = [payload for group in groups for payload in group]
        self._sizes = [len(group) for group in groups]
        self._shares = shares
        self._expected: dict[int, Expected] = {}

    async def once(self, payload: Payload, due: float) -> Sample:
        """Send one request that arrived at a time, and return how it ended."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            response = await self.pool.ask(payload.data)
        except ExchangeError as error:
            kind, ended = error.kind, loop.time()
            size = len(payload.data)
            return Sample(
                *(payload.lane, payload.question, payload.texts, due, begun, ended, kind),
                sent=size,
            )
        good = response.status == 200
        fault = None
        if good and self.settings.check and (known := self._expected.get(payload.question)):
            fault = expectation.fault(
                response.body, self.settings.form, known, self.settings.check_cosine
            )
        return Sample(
            lane=payload.lane,
            question=payload.question,
            texts=payload.texts,
            due=due,
            begun=begun,
            ended=response.ended,
            outcome=str(response.status),
            tokens=expectation.tokens(response.body, self.settings.form) if good else 0,
            received=response.size,
            sent=len(payload.data),
            split=spent(response) if good else {},
            fault=fault,
        )

    async def alone(self) -> Latencies | None:
        """Send requests one after another: all distinct ones, to compare with; else some."""
        loop = asyncio.get_running_loop()
        seen: set[int] = set()
        seconds: list[float] = []
        for payload in self._payloads:
            if payload.question in seen:
                continue
            if len(seen) == ALONE and not self.settings.check:
                break
            seen.add(payload.question)
            for _ in range(TRIES):
                begun = loop.time()
                try:
                    response = await self.pool.ask(payload.data)
                except ExchangeError:
                    break
                if response.status == 200:
                    seconds.append(response.ended - begun)
                    self._remember(payload, response)
                    break
                await asyncio.sleep(PAUSE)
        return Latencies.of(seconds)

    def _remember(self, payload: Payload, response: Response) -> None:
        if self.settings.check:
            with contextlib.suppress(ValueError):
                found = expectation.expect(response.body, self.settings.form)
                self._expected[payload.question] = found

    def learn(self, other: Load) -> None:
        """Take over the answers that requests with the same texts gave alone."""
        self._expected = other._expected

    async def closed(self, concurrency: int, seconds: float) -> Stage:
        """Keep so many requests on the way, each followed by the next."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        window = Window(start + SETTLING * seconds, start + seconds)
        samples: list[Sample] = []
        numbers = cycle(picks(self._shares, self._sizes, 4096, self.settings.seed).tolist())

        async def worker(numbers: Iterator[int]) -> None:
            while loop.time() < window.end:
                sample = await self.once(self._payloads[next(numbers)], loop.time())
                samples.append(sample)
                if sample.outcome != "200":
                    await asyncio.sleep(PAUSE)

        await asyncio.gather(*(worker(numbers) for _ in range(concurrency)))
        ended = window.ended(samples)
        served = [one.latency for one in ended if one.ok]
        return Stage(
            concurrency, len(served) / window.seconds, Latencies.of(served), outcomes(ended)
        )

    async def capacity(self, say: Say = lambda step: None) -> Capacity:
        """Double the requests on the way until that gives no more answers a second, or too late.

        A rate counts if the 99th percentile of its latency is within the objective; if none is,
        that of the first stage counts.
        """
        stages: list[Stage] = []
        best = idle = 0
        concurrency = min(FIRST, self.settings.concurrency)
        while True:
            say(f"capacity: {concurrency} requests at once")
            stage = await self.closed(concurrency, self.settings.seconds)
            stages.append(stage)
            late = stage.latency is None or stage.latency.p99 > self.settings.slo_ms
            gained = stage.throughput > GAIN * stages[best].throughput
            idle = 0 if gained or len(stages) == 1 else idle + 1
            if stage.throughput > stages[best].throughput and not late:
                best = len(stages) - 1
            if late or idle == 2 or concurrency >= self.settings.concurrency:
                return Capacity(stages[best].throughput, stages[best].concurrency, tuple(stages))
            concurrency = min(2 * concurrency, self.settings.concurrency)

    async def at(self, rate: float, load: float | None = None) -> Run:
        """Let requests arrive at a rate, and wait until the last has ended.

        Args:
            rate: requests a second.
            load: the share of the capacity that this is, if so.
        """
        settings = self.settings
        times = poisson(rate, settings.warm_up + settings.seconds, settings.seed)
        chosen = picks(self._shares, self._sizes, len(times), settings.seed)
        samples: list[Sample] = []

        async def work(number: int, due: float) -> None:
            samples.append(await self.once(self._payloads[chosen[number]], due))

        pool = self.pool
        before = pool.waited, pool.opened, pool.again
        start = asyncio.get_running_loop().time() + PAUSE
        wall, cpu = time.perf_counter(), time.process_time()
        await launch(times, start, work)
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
        begun = start + settings.warm_up
        return summarise(
            samples,
            Window(begun, begun + settings.seconds),
            rate,
            load,
            settings,
            Client(pool.waited - before[0], pool.opened - before[1], pool.again - before[2], busy),
            set(self._expected) if settings.check else None,
        )


def spent(response: Response) -> dict[str, float]:
    """Return the server's account of a request, in seconds, by stage.

    It stands in the header ``server-timing``, or as ``timings`` at the end of m3rt's own answers,
    both in milliseconds.
    """
    found: dict[str, float] = {}
    if header := response.headers.get("server-timing"):
        for entry in header.split(","):
            name, *attributes = (part.strip() for part in entry.split(";"))
            for attribute in attributes:
                if attribute.startswith("dur="):
                    with contextlib.suppress(ValueError):
                        found[NAMES.get(name, name)] = float(attribute[4:]) / 1e3
    elif match := TIMINGS.search(response.body[-600:]):
        with contextlib.suppress(ValueError, TypeError):
            for name, value in json.loads(match[1]).items():
                found[NAMES.get(name, name)] = float(value) / 1e3
    return found
