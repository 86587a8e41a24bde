"""Very many requests that no honest client sends, and whether the server is well after them.

    python -m benchmarks.hostile --work FOLDER --json OUT
    python -m benchmarks.hostile --work FOLDER --json OUT --only 12345

Over raw sockets: JSON that is not what a route wants, of every route of /openapi.json, and HTTP
that is none; see attacks.py. No answer may have a status of 5xx other than 503 and 504. One request
in fifty is good, and its answer compared with the direct result. A request is made again from
--seed and its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from benchmarks import machine, server
from benchmarks.attacks import BODIES, Attack, attack
from benchmarks.questions import Truth
from benchmarks.server import Peer, Watch, reached
from m3rt import M3, api
from m3rt.arrivals import event_loop
from m3rt.connection import ExchangeError, Pool, Target

EVERY = 50  # of so many requests, one is good
AT_ONCE = 32
PATIENCE = 60.0  # seconds, for an answer that must come
MOMENT = 0.05  # seconds, for one that may
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
MAY = {503, 504}  # of 5xx
TEXTS = ("a text", "Grüße aus Köln", "東京は日本の首都です", "", "water " * 50)
FAULTS = 50  # kept
GROWTH = 256 << 20  # bytes of memory that a server may keep more


@dataclass
class Tally:
    """What became of the requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    good: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def fault(self, number: int, name: str, what: str) -> None:
        """Note what must not be."""
        if len(self.faults) < FAULTS:
            self.faults.append({"number": number, "attack": name, "found": what})


class Siege:
    """The hostile clients, and an honest one.

    Args:
        peer: the server.
        model: what it serves.
        seed: of the requests.
        bodies: valid ones by path.
    """

    def __init__(self, peer: Peer, model: M3, seed: int, bodies: Mapping[str, Any]) -> None:
        self.target = Target.parse(peer.url)
        self.seed = seed
        self.bodies = bodies
        self.tally = Tally()
        self._truth = Truth(model, TEXTS)
        self._pool = Pool(self.target, AT_ONCE, PATIENCE)

    async def run(self, numbers: range) -> None:
        """Send the requests of these numbers."""
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                if number % EVERY == EVERY - 1:
                    await self.honest(number)
                else:
                    await self.hostile(number, attack(self.seed, number, self.bodies))

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await self.honest(-1)
        self._pool.close()

    async def honest(self, number: int) -> None:
        """Ask what is right, and compare the answer."""
        row = number % len(TEXTS)
        question = self._truth.native([row, 0], ("dense", "sparse", "colbert"), "json")
        try:
            answer = await self._pool.ask(self.target.request(question.path, question.body))
        except ExchangeError as error:
            self.tally.fault(number, "honest", str(error))
            return
        if answer.status in (429, 503, 504):
            self.tally.statuses[f"honest {answer.status}"] += 1
        elif answer.status != 200:
            self.tally.fault(number, "honest", f"{answer.status} {answer.body[:200]!r}")
        elif fault := question.fault(answer.body):
            self.tally.fault(number, "honest", fault)
        else:
            self.tally.good += 1

    async def hostile(self, number: int, sent: Attack) -> None:
        """Send a request, and read what comes."""
        done = sent.name.rpartition(": ")[2]
        self.tally.names.update({part.partition(" ")[0] for part in done.split("+")})
        try:
            reader, writer = await asyncio.open_connection(self.target.host, self.target.port)
        except OSError as error:
            self.tally.fault(number, sent.name, f"no connection: {error}")
            return
        answer = b""
        try:
            with contextlib.suppress(OSError):
                writer.write(sent.data)
                answer = await self.heard(reader, PATIENCE if sent.whole else MOMENT)
        finally:
            writer.transport.abort()
        found = STATUS.match(answer)
        if found is None:
            self.tally.statuses["closed" if not answer else "no HTTP"] += 1
            if answer or sent.whole:
                self.tally.fault(number, sent.name, f"answered {answer[:100]!r}")
            return
        status = int(found[1])
        self.tally.statuses[str(status)] += 1
        if status >= 500 and status not in MAY:
            self.tally.fault(number, sent.name, answer[:500].decode("utf-8", "replace"))

    async def heard(self, reader: asyncio.StreamReader, seconds: float) -> bytes:
        """Read until the head of an answer is there, or the time over."""
        answer = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while b"\r\n\r\n" not in answer and (piece := await reader.read(65536)):
                    answer += piece
                    if answer.startswith(b"HTTP/1.1 1"):  # goes before the answer
                        answer = answer.partition(b"\r\n\r\n")[2]
        return answer


async def bodies_of(target: Target) -> dict[str, Any]:
    """Return a valid body for each route that takes one: built in, or the document's example."""
    pool = Pool(target, 1, PATIENCE)
    with contextlib.closing(pool):
        name = await server.named(pool)
        answer = await pool.ask(target.request("/openapi.json"))
    found = dict(BODIES) if answer.status != 200 else documented(json.loads(answer.body))
    return {
        path.replace("/models/m/", f"/models/{quote(name, '')}/"): (
            body | {"model": name} if isinstance(body, dict) and "model" in body else body
        )
        for path, body in found.items()
    }


def documented(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a valid body for each route of an OpenAPI document that takes one."""
    found: dict[str, Any] = {}
    for path, methods in document["paths"].items():
        if "post" not in methods:
            continue
        content = methods["post"].get("requestBody", {}).get("content", {})
        form = content.get("application/json", {})
        place = re.sub(r"\{\w+\}", "m", re.sub(r"\{\w*version\w*\}", "1", path))
        known = BODIES.get(path, BODIES.get(place.replace("/versions/1", "")))
        example = form.get("example", known)
        if example is None:
            example = sample(form.get("schema", {}), document)
        found[place] = example
    return found


def sample(schema: Mapping[str, Any], document: Mapping[str, Any], depth: int = 0) -> Any:
    """Make a value of a JSON schema, about."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return sample(document["components"]["schemas"][name], document, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return sample(schema[key][0], document, depth)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" and depth < 9:
        fields = schema.get("properties", {})
        return {name: sample(inner, document, depth + 1) for name, inner in fields.items()}
    if kind == "array":
        return [sample(schema.get("items", {}), document, depth + 1)]
    return {"integer": 1, "number": 0.5, "boolean": True, "null": None}.get(str(kind), "a")


def besieged(
    peer: Peer, model: M3, numbers: range, seed: int = 0, most_growth: int = GROWTH
) -> dict[str, Any]:
    """Send requests; return what became of them."""
    with asyncio.Runner(loop_factory=event_loop) as runner:
        bodies = runner.run(bodies_of(Target.parse(peer.url)))
        siege = Siege(peer, model, seed, bodies)
        begun = time.monotonic()
        with Watch(peer, 0.5) as watch:
            runner.run(siege.run(numbers))
            time.sleep(0.5)
    tally = siege.tally
    memory = watch.memory()
    if memory and memory["after_bytes"] - memory["before_bytes"] > most_growth:
        tally.fault(-1, "all", f"memory grew: {memory}")
    return {
        "requests": len(numbers),
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        "routes": sorted(bodies),
        "statuses": dict(tally.statuses.most_common()),
        "good_answers": tally.good,
        "attacks": dict(tally.names.most_common()),
        "faults": tally.faults,
        "memory": memory,
        "trends": watch.trends(),
        "samples": watch.thinned(),
    }


def main(
    work: Annotated[Path, typer.Option(help="Keeps the tiny model.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    requests: int = 100_000,
    seed: int = 0,
    only: Annotated[int | None, typer.Option(help="The request of this number alone.")] = None,
    engine: str = "cpu",
    url: Annotated[str | None, typer.Option(help="A server of that model that runs.")] = None,
    pid: Annotated[int | None, typer.Option(help="Its process.")] = None,
) -> None:
    """Run, and write the result; exits with 1 if something was that must not be."""
    model = server.small(work)
    numbers = range(requests) if only is None else range(only, only + 1)
    with reached(url, pid, model, engine) as peer:
        found = besieged(peer, api.load(model, engine), numbers, seed)
    kept = {"machine": machine.describe(), "engine": engine, **found}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    typer.echo(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=1))
    if found["faults"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
