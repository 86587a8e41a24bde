"""An hour's requests as fast as the server takes them, and what it holds meanwhile.

    python -m benchmarks.soak --work FOLDER --json OUT
    python -m benchmarks.soak --work FOLDER --json OUT --rate 50 --hours 1

3600 times --rate requests, of every surface that the server has, one text or many, short or long,
in every form, every answer compared with the direct result; among them clients that vanish, read
slowly, send half a body, or all come at once and will not wait. The server's memory, threads and
open files are looked at all the time; their slopes are of the last three quarters.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, server
from benchmarks.questions import Question, Truth
from benchmarks.server import Peer, Watch, reached
from m3rt import M3, api, mixes
from m3rt.arrivals import event_loop
from m3rt.connection import ExchangeError, Pool, Target

HEADS = (("dense",), ("sparse",), ("dense", "sparse"), ("dense", "sparse", "colbert"))
FORMS = ("json", "base64", "half", "tensors")
QUESTIONS = 400  # distinct ones
LONG = 2000  # tokens of the longest texts
WORKERS = 16  # requests at once
CROWD = 64  # requests that come together
HURRY_MS = 20  # that those of a crowd say they may take
SLOW_PIECE, SLOW_SECONDS = 8192, 0.02  # what a slow reader takes at once, and how often
REFUSED = {"429", "503", "504"}  # what a server may say when too much is asked
SHARES = {"plain": 0.9, "crowd": 0.002, "vanishing": 0.03, "half": 0.02, "slow": 0.01, "bad": 0.01}


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)  # of all that wait for an answer
    kinds: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)  # right answers
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All of them."""
        return sum(self.kinds.values())

    def judge(self, question: Question, status: int, body: bytes, may: set[str]) -> None:
        """Count an answer."""
        self.outcomes[str(status)] += 1
        if status == 200:
            if fault := question.fault(body):
                self.wrong.append(f"{question.path}: {fault}")
            else:
                self.routes[question.path] += 1
        elif str(status) not in may:
            text = body[:200].decode("utf-8", "replace")
            self.unexpected.append(f"{question.path}: {status} {text}")


class Soak:
    """The clients.

    Args:
        peer: the server.
        truth: direct results.
        seed: of what is sent.
    """

    def __init__(self, peer: Peer, truth: Truth, seed: int = 0) -> None:
        self.tally = Tally()
        self.peer = peer
        self.target = Target.parse(peer.url)
        self._pool = Pool(self.target, 2 * CROWD, timeout=120)
        self._draw = random.Random(seed)
        self._truth = truth
        self._questions: list[Question] = []
        self._kinds: dict[str, Callable[[Question], Awaitable[int]]] = {
            "plain": self.plain,
            "crowd": self.crowd,
            "vanishing": self.vanishing,
            "half": self.half,
            "slow": self.slow,
            "bad": self.bad,
        }

    async def prepare(self, questions: int = QUESTIONS) -> list[str]:
        """Make so many questions, for the routes that are there; return those routes."""
        truth, draw = self._truth, self._draw
        truth.name = await server.named(self._pool)
        makers: list[Callable[[list[int]], Question]] = [
            lambda rows: truth.native(rows, draw.choice(HEADS), draw.choice(FORMS)),
            lambda rows: truth.openai(rows, draw.random() < 0.5),
            truth.tei,
            truth.tei_sparse,
            truth.tei_all,
            lambda rows: truth.rerank(rows[0], rows),
        ]
        there = []
        for make in makers:
            question = make([0])
            answer = await self._pool.ask(self.request(question))
            if answer.status != 404:
                there.append(make)
        # m3rt's own route in every form, as far as the server has it
        known = len(truth.texts)
        while len(self._questions) < questions:
            size = draw.choice((1, 1, 1, 1, 1, 1, 2, 2, 4, 16))
            self._questions.append(draw.choice(there)([draw.randrange(known) for _ in range(size)]))
        if await self._lacks_tensors():
            self._questions = [one for one in self._questions if not one.headers]
        return sorted({question.path for question in self._questions})

    async def _lacks_tensors(self) -> bool:
        answer = await self._pool.ask(self.request(self._truth.native([0], ("dense",), "tensors")))
        return answer.headers.get("content-type", "").startswith("application/json")

    def request(self, question: Question, **headers: str) -> bytes:
        """Return the bytes of a request."""
        said = {**question.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return self.target.request(question.path, question.body, said)

    async def run(self, requests: int) -> None:
        """Send so many requests, about."""
        names, shares = list(SHARES), list(SHARES.values())

        async def worker() -> None:
            while self.tally.requests < requests:
                kind = self._draw.choices(names, shares)[0]
                self.tally.kinds[kind] += 1
                more = await self._kinds[kind](self._draw.choice(self._questions))
                self.tally.kinds[kind] += more - 1

        await asyncio.gather(*(worker() for _ in range(WORKERS)))

    async def last(self) -> None:
        """Ask every question once more, and let no answer but the right one pass."""
        for question in self._questions:
            await self._ask(question, set())
        self._pool.close()

    async def _ask(self, question: Question, may: set[str], **headers: str) -> None:
        try:
            answer = await self._pool.ask(self.request(question, **headers))
        except ExchangeError as error:
            self.tally.outcomes[error.kind] += 1
            self.tally.unexpected.append(f"{question.path}: {error}")
        else:
            self.tally.judge(question, answer.status, answer.body, may)

    async def plain(self, question: Question) -> int:
        """Ask, and wait."""
        lane = {"x_priority": "bulk"} if self._draw.random() < 0.2 else {}
        await self._ask(question, REFUSED, **lane)
        return 1

    async def crowd(self, question: Question) -> int:
        """Ask many times at once, in a hurry."""
        asked = (
            self._ask(question, REFUSED, x_request_timeout_ms=str(HURRY_MS)) for _ in range(CROWD)
        )
        await asyncio.gather(*asked)
        return CROWD

    async def vanishing(self, question: Question) -> int:
        """Ask, and go: at once, or while the answer is made."""
        _, writer = await asyncio.open_connection(self.target.host, self.target.port)
        writer.write(self.request(question))
        with contextlib.suppress(OSError):
            await writer.drain()
            await asyncio.sleep(self._draw.choice((0, 0.001, 0.01)))
        writer.transport.abort()
        return 1

    async def half(self, question: Question) -> int:
        """Send a part of a request, wait a little, and go."""
        _, writer = await asyncio.open_connection(self.target.host, self.target.port)
        data = self.request(question)
        writer.write(data[: self._draw.randrange(1, len(data))])
        with contextlib.suppress(OSError):
            await writer.drain()
            await asyncio.sleep(self._draw.choice((0, 0.05, 0.2)))
        writer.transport.abort()
        return 1

    async def slow(self, question: Question) -> int:
        """Ask for all that many texts give, and read it slowly, to its end."""
        rows = [self._draw.randrange(len(self._truth.texts)) for _ in range(4)]
        question = self._truth.native(rows, HEADS[-1], "json")
        raw = socket.socket(socket.AF_INET6 if ":" in self.target.host else socket.AF_INET)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_PIECE)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (self.target.host, self.target.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=SLOW_PIECE)
        writer.write(self.request(question))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = bytearray()
            while len(body) < length:
                piece = await reader.read(SLOW_PIECE)
                if not piece:
                    raise ConnectionError("the answer ended early")
                body += piece
                await asyncio.sleep(SLOW_SECONDS)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.tally.unexpected.append(f"a slow reader: {error}")
        else:
            self.tally.judge(question, int(head[9:12]), bytes(body), REFUSED)
        writer.close()
        return 1

    async def bad(self, question: Question) -> int:
        """Ask for what cannot be."""
        data = self.target.request(question.path, self._draw.choice((b"{", b"[]", b"{}", b"\xff")))
        try:
            answer = await self._pool.ask(data)
        except ExchangeError as error:
            self.tally.unexpected.append(f"a bad request: {error}")
            return 1
        self.tally.outcomes[str(answer.status)] += 1
        if not 400 <= answer.status < 500:
            self.tally.unexpected.append(f"a bad request to {question.path}: {answer.status}")
        return 1


def texts_of(model: M3) -> list[str]:
    """Return texts of many lengths."""
    lengths = [*mixes.LENGTHS["mixed"], 600, 1000, LONG]
    return list(mixes.of_lengths(model.tokenizer, [min(one, model.max_length) for one in lengths]))


def soaked(
    peer: Peer,
    model: M3,
    requests: int,
    seed: int = 0,
    questions: int = QUESTIONS,
    look: float = 1.0,
) -> dict[str, Any]:
    """Send requests; return what became of them, and what the server held.

    Args:
        peer: the server.
        model: the same, for direct results.
        requests: how many, at least.
        seed: of what is sent.
        questions: how many are distinct.
        look: seconds between looks at the server's process.
    """
    soak = Soak(peer, Truth(model, texts_of(model)), seed)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        routes = runner.run(soak.prepare(questions))
        begun = time.monotonic()
        with Watch(peer, look, metrics=True) as watch:
            runner.run(soak.run(requests))
            spent = time.monotonic() - begun
            runner.run(soak.last())
            time.sleep(1.0)  # connections that were left are closed
    tally = soak.tally
    trends = watch.trends()
    for trend in trends.values():
        slope = trend["slope_per_second"]
        trend["slope_per_1000_requests"] = (
            None if slope is None else slope * spent / tally.requests * 1000
        )
    return {
        "requests": tally.requests,
        "seconds": round(spent, 1),
        "requests_per_second": round(tally.requests / spent, 1),
        "seed": seed,
        "surfaces": routes,
        "kinds": dict(tally.kinds),
        "outcomes": dict(tally.outcomes.most_common()),
        "right_answers": dict(tally.routes.most_common()),
        "wrong": len(tally.wrong),
        "wrong_examples": tally.wrong[:10],
        "unexpected": len(tally.unexpected),
        "unexpected_examples": tally.unexpected[:10],
        "trends": trends,
        "samples": watch.thinned(),
    }


def main(
    work: Annotated[Path, typer.Option(help="Keeps the tiny model.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    rate: Annotated[float, typer.Option(help="Requests a second of the hour.")] = 50.0,
    hours: float = 1.0,
    requests: Annotated[int | None, typer.Option(help="So many instead.")] = None,
    engine: str = "cpu",
    url: Annotated[str | None, typer.Option(help="A server of that model that runs.")] = None,
    pid: Annotated[int | None, typer.Option(help="Its process.")] = None,
    seed: int = 0,
) -> None:
    """Run, and write the result; exits with 1 if an answer was wrong or unexpected."""
    model = server.small(work)
    count = requests if requests is not None else round(3600 * hours * rate)
    with reached(url, pid, model, engine) as peer:
        found = soaked(peer, api.load(model, engine), count, seed)
    kept = {"machine": machine.describe(), "engine": engine, "rate": rate, "hours": hours, **found}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    typer.echo(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=1))
    if found["wrong"] or found["unexpected"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
