"""What serving adds to the engine, and what a server does under more load than it can bear.

    python -m benchmarks.serving --data SHARED_DATA --work FOLDER --engine openvino:bf16 --json OUT
    python -m benchmarks.serving --tiny --work FOLDER --json OUT

On random weights of BGE-M3's full size and its real tokenizer, or on a small network, to try it:
--tiny, which HTTP costs more than its engine, so that overload is that of HTTP, or --middle. The
server is a process of its own, m3rt serve; the direct results are of the same engine
in this process. The parts:

overhead    one query at a time, over a connection that stays, against M3.encode of the same text,
            in turn; the answer is not parsed
capacity    a closed loop, with more and more requests at once, while 99% are within the objective
steady      at 0.5 and 0.8 of the capacity, against the engine's own time for the same requests
overload    at 2 and 10 times the capacity, every answer compared, the server's memory watched
lanes       interactive requests alone, with bulk beside them until the server is full, and with
            the same requests beside them that do not say that they are bulk

In the last three, requests say how long they may take: the objective.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks import machine, server
from benchmarks.footprint import full_size
from benchmarks.server import Line, Peer, Watch, quantiles, reached
from benchmarks.serving_tables import BULK_TEXTS, markdown, sheets
from m3rt import M3, api, artifact, build, load_tables, mixes, report
from m3rt.arrivals import event_loop
from m3rt.connection import Pool, Target
from m3rt.doctor import version
from m3rt.expectation import COSINE
from m3rt.load_generator import Load
from m3rt.loads import Latencies, LoadSettings, Run, Stage
from m3rt.payloads import ROUTE, Group, body, distinct, make
from m3rt.types import Heads

STEADY = (0.5, 0.8)
OVERLOAD = (2.0, 10.0)
SHARE = 0.3  # of the capacity: the interactive requests beside bulk
BULK = 4  # bulk requests at once
PAUSE = 0.02  # seconds between two turns, in which threads of the other engine go to sleep
SLACK = 10  # times the engine's 99th percentile: the objective, where none is given
LEAST = 1000  # milliseconds
LIBRARIES = ("uvicorn", "uvloop", "httptools", "orjson", "msgspec")


@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured, and with what."""

    peer: Peer
    model: M3  # the same in this process
    mix: str
    seconds: float
    pairs: int
    slo_ms: float | None
    heads: tuple[str, ...]
    form: str
    distinct: int = 1024  # texts
    overload: tuple[float, ...] = OVERLOAD

    @property
    def texts(self) -> tuple[str, ...]:
        """What is sent."""
        return mixes.read(self.mix, self.model.tokenizer, self.model.max_length).texts


def overhead(trial: Trial, heads: Heads) -> dict[str, Any]:
    """Ask for a query and encode it, in turn: which one is first changes."""
    text = next(mixes.of_lengths(trial.model.tokenizer, [12]))
    request = Target.parse(trial.peer.url).request(ROUTE, body([text], heads.names, "json"))
    line = Line(trial.peer.url)
    spent: dict[str, list[float]] = {"served": [], "direct": []}

    def served() -> None:
        status, _ = line.ask(request)
        if status != 200:
            raise RuntimeError(f"the server answers {status} to a plain query")

    def direct() -> None:
        trial.model.encode([text], heads)

    ways: list[tuple[str, Callable[[], None]]] = [("served", served), ("direct", direct)]
    try:
        for number_ in range(trial.pairs + 5):
            for name, way in ways if number_ % 2 else reversed(ways):
                time.sleep(PAUSE)
                begun = time.perf_counter()
                way()
                if number_ >= 5:  # the first ones warm up
                    spent[name].append(time.perf_counter() - begun)
    finally:
        line.close()
    more = [a - b for a, b in zip(spent["served"], spent["direct"], strict=True)]
    return {
        "heads": list(heads.names),
        "served_ms": quantiles(spent["served"]),
        "direct_ms": quantiles(spent["direct"]),
        "overhead_ms": {"median_of_differences": round(1e3 * median(more), 4)} | quantiles(more),
    }


def engine_alone(trial: Trial) -> Latencies:
    """Encode each text of the mix by itself, twice; the second time counts."""
    heads = Heads.parse(trial.heads)
    spent: list[float] = []
    for counted in (False, True):
        for text in trial.texts:
            begun = time.perf_counter()
            trial.model.encode([text], heads)
            if counted:
                spent.append(time.perf_counter() - begun)
    found = Latencies.of(spent)
    assert found is not None
    return found


def load_of(trial: Trial, settings: LoadSettings, group: Group, mark: str = "") -> Load:
    """Return what sends requests of one kind; with another mark, its texts are others."""
    target = Target.parse(trial.peer.url)
    texts = distinct(trial.texts, settings.distinct, trial.model.tokenizer, mark)
    made = make(target, texts, group, settings.heads, settings.form, (), settings.deadline_ms)
    return Load(Pool(target, settings.connections, settings.timeout), [made], [1.0], settings)


async def under_load(trial: Trial, settings: LoadSettings) -> dict[str, Any]:
    """Measure all that needs more than one request at a time."""
    group = Group("", 1.0, 1)
    patient = load_of(trial, replace(settings, deadline_ms=None), group)
    await patient.alone()
    capacity = await patient.capacity(typer.echo)
    load = load_of(trial, settings, group)
    load.learn(patient)
    if not capacity.rate:
        raise RuntimeError("the server answered nothing")
    runs: list[Run] = []
    found: dict[str, Any] = {"capacity": asdict(capacity), "steady": [], "overload": []}
    for share in (*STEADY, *trial.overload):
        typer.echo(f"{share:g} of {capacity.rate:.4g} requests a second")
        with Watch(trial.peer) as watch:
            run = await load.at(share * capacity.rate, share)
        runs.append(run)
        part = {
            "run": asdict(run),
            "goodput_of_capacity": round(run.goodput / capacity.rate, 4),
            "memory": watch.memory(),
        }
        found["steady" if share in STEADY else "overload"].append(part)
    load.pool.close()
    patient.pool.close()
    found["lanes"] = await lanes(trial, settings, SHARE * capacity.rate)
    found["figures"] = load_tables.figures(runs, settings.slo_ms)
    return found


async def lanes(trial: Trial, settings: LoadSettings, rate: float) -> dict[str, Any]:
    """Measure interactive requests: alone, beside bulk, and beside as much that says it is not."""
    free = replace(settings, deadline_ms=None)  # bulk waits for as long as it takes
    found: dict[str, Any] = {"rate": rate, "bulk_at_once": BULK, "bulk_texts": BULK_TEXTS}
    for name, lane in (("alone", None), ("bulk", "bulk"), ("same_lane", "interactive")):
        typer.echo(f"lanes: {name}")
        mine = load_of(trial, settings, Group("interactive", 1.0, 1))
        others = load_of(trial, free, Group(lane or "", 1.0, BULK_TEXTS), "b")
        stage: Stage | None = None
        if lane:
            seconds = settings.warm_up + settings.seconds + 1
            run, stage = await asyncio.gather(mine.at(rate), others.closed(BULK, seconds))
        else:
            run = await mine.at(rate)
        found[name] = {"interactive": asdict(run), "beside": asdict(stage) if stage else None}
        mine.pool.close()
        others.pool.close()
    return found


def measured(trial: Trial) -> dict[str, Any]:
    """Measure everything."""
    found: dict[str, Any] = {"overhead": []}
    for heads in (Heads.DENSE, Heads.ALL):
        typer.echo(f"overhead: {', '.join(heads.names)}")
        found["overhead"].append(overhead(trial, heads))
    typer.echo("the engine alone")
    alone = engine_alone(trial)
    slo = trial.slo_ms or max(LEAST, math.ceil(SLACK * alone.p99))
    settings = LoadSettings(
        heads=trial.heads,
        form=trial.form,
        seconds=trial.seconds,
        warm_up=min(2.0, trial.seconds / 4),
        distinct=trial.distinct,
        slo_ms=slo,
        deadline_ms=slo,
        check=True,
        # in bf16 and int8 a vector differs with its batch; other texts' are much further away
        check_cosine=COSINE if trial.model.engine.name.endswith(":fp32") else 1 - 5e-4,
        timeout=max(60.0, 4 * slo / 1e3),
    )
    found["engine_ms"] = asdict(alone)
    found["settings"] = asdict(settings)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return found | runner.run(under_load(trial, settings))


def versions() -> dict[str, str | None]:
    """Return the versions of what serves."""
    return {name: version(name) for name in LIBRARIES}


def prepared(model: Path, engine: str) -> Path:
    """Build a model for an engine that needs it."""
    if engine not in ("auto", "cpu", "cpu:fp32") and engine not in (
        artifact.read(model).manifest.builds
    ):
        build.run(model, engine)
    return model


def main(
    work: Annotated[Path, typer.Option(help="Keeps checkpoint and model: 9 GB in full size.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    data: Annotated[Path | None, typer.Option(help="Shared data: tokenizer, config.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Two small layers, to try it.")] = False,
    middle: Annotated[bool, typer.Option("--middle", help="Twelve, a third as wide.")] = False,
    engine: str = "cpu",
    mix: str = "queries",
    heads: str = "dense,sparse,colbert",
    form: str = "base64",
    seconds: Annotated[float, typer.Option(help="At each rate.")] = 60.0,
    pairs: Annotated[int, typer.Option(help="Queries of the overhead.")] = 200,
    slo_ms: Annotated[float | None, typer.Option(help="Objective and deadline.")] = None,
    url: Annotated[str | None, typer.Option(help="A server that runs already.")] = None,
    pid: Annotated[int | None, typer.Option(help="Its process, whose memory is watched.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page with plots to write.")] = None,
) -> None:
    """Measure, and write the result."""
    size = "tiny" if tiny else "middle" if middle else "full size"
    if size in server.SHAPES:
        model = server.small(work, size)
    elif data is None:
        raise typer.BadParameter("--data is needed for the full size; or pass --tiny")
    else:
        model = full_size(data, work)
    prepared(model, engine)
    with reached(url, pid, model, engine) as peer:
        opened = api.load(model, engine)
        names = Heads.parse(heads.split(",")).names
        found = measured(Trial(peer, opened, mix, seconds, pairs, slo_ms, names, form))
    figures: Sequence[str] = found.pop("figures")
    about = machine.describe()
    about["versions"] |= versions()
    kept = {
        "machine": about,
        "model": f"{size}, random weights",
        "engine": opened.engine.name,
        "mix": mix,
        **found,
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    if html:
        facts = [("model", str(kept["model"])), ("engine", opened.engine.name), ("mix", mix)]
        facts.append(("cpu", f"{about['cpu']}, {about['cores']} cores"))
        html.write_text(report.document("m3rt serve", facts, figures, sheets(kept)), "utf-8")
    typer.echo(markdown(kept))


if __name__ == "__main__":
    typer.run(main)
