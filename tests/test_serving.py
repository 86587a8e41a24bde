"""The benchmarks of a server run, and see what they must: against the server that tests have."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import hostile, serving, serving_tables, soak
from benchmarks.attacks import BODIES, attack
from benchmarks.questions import Truth
from benchmarks.server import Peer, Watch, quantiles, ready, usage
from m3rt import M3, report
from m3rt.arrivals import event_loop
from m3rt.connection import Pool, Target
from tests.scripted import Script, peer, reply
from tests.served import Served

TEXTS = ("a text", "Grüße aus Köln", "water " * 30)


def of(served: Served) -> Peer:
    return Peer(served.url, os.getpid())


def test_what_serving_costs_is_measured(served: Served) -> None:
    heads = ("dense",)
    trial = serving.Trial(
        of(served), served.model, "queries", 0.3, 3, 50.0, heads, "json", 64, (1.5,)
    )
    found = serving.measured(trial)
    figures = found.pop("figures")
    page = report.document("m3rt serve", [], figures, serving_tables.sheets(found))
    assert len(ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))) == 2
    assert [one["heads"] for one in found["overhead"]] == [
        ["dense"],
        ["dense", "sparse", "colbert"],
    ]
    for one in found["overhead"]:
        assert one["served_ms"]["n"] == one["direct_ms"]["n"] == 3
        assert one["served_ms"]["p50"] > one["direct_ms"]["p50"] > 0
    assert found["engine_ms"]["n"] == 64
    assert found["settings"]["deadline_ms"] == 50
    assert [part["run"]["load"] for part in found["steady"]] == [0.5, 0.8]
    assert [part["run"]["load"] for part in found["overload"]] == [1.5]
    for part in (*found["steady"], *found["overload"]):
        assert part["run"]["wrong"] == part["run"]["unchecked"] == 0
        assert part["memory"]["peak_bytes"] >= part["memory"]["before_bytes"] > 0
    assert set(found["lanes"]) >= {"alone", "bulk", "same_lane"}
    assert found["lanes"]["alone"]["beside"] is None
    assert found["lanes"]["bulk"]["beside"]["concurrency"] == serving.BULK
    assert serving_tables.markdown(json.loads(json.dumps(found))).count("\n|---") == 3


def test_a_soak_compares_every_answer(served: Served) -> None:
    found = soak.soaked(of(served), served.model, 150, questions=60, look=0.2)
    assert found["requests"] >= 150
    assert (found["wrong"], found["unexpected"]) == (0, 0), found
    assert set(found["right_answers"]) == set(found["surfaces"])
    assert "/v1/m3/embed" in found["surfaces"]
    assert found["trends"]["rss"]["most"] > 0
    assert found["trends"]["fds"]["last"] > 0
    # what waits for an answer got one
    assert sum(found["outcomes"].values()) >= found["kinds"]["plain"] + 30


def test_hostile_requests_leave_it_well(served: Served) -> None:
    found = hostile.besieged(of(served), served.model, range(500), most_growth=1 << 40)
    assert found["faults"] == []
    assert found["good_answers"] == 500 // hostile.EVERY + 1
    assert "/v1/m3/embed" in found["routes"]
    assert found["statuses"]["400"] > 50
    assert not {status for status in found["statuses"] if status.startswith("5")} - {"503", "504"}


def test_a_request_is_made_again_from_its_number() -> None:
    before = copy.deepcopy(dict(BODIES))
    first, second = ([attack(7, i, BODIES) for i in range(3000)] for _ in range(2))
    assert first == second
    assert before == BODIES
    assert len({one.data for one in first}) > 2000
    names = " ".join(one.name for one in first)
    for name in (*("replaced", "long_text", "deep", "odd_number", "odd_encoding", "flipped"),):
        assert name in names
    for name in ("length", "two lengths", "chunks", "flood", "binary", "pipelined", "tensors"):
        assert name in names
    data = b"".join(one.data for one in first)
    for part in (b"\\ud800", b"\xed\xa0\x80", b"\x00", b"NaN", b"9" * 300, b"[" * 1000):
        assert part in data


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[Peer]:
    """Run a peer in a thread."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    urls: list[str] = []
    there = threading.Event()

    async def work() -> None:
        async with peer(script) as found:
            urls.append(found.url)
            there.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    there.wait(10)
    try:
        yield Peer(urls[0], None)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@pytest.mark.parametrize("status", [500, 502])
def test_a_fault_of_the_server_is_found(model: M3, status: int) -> None:
    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b'{"model": "m"}', status if number else 200))

    with scripted(script) as found:
        result = hostile.besieged(found, model, range(60))
    assert any(f"HTTP/1.1 {status}" in one["found"] for one in result["faults"])
    assert any(one["attack"] == "honest" for one in result["faults"])
    assert result["memory"] is None


def test_a_wrong_answer_is_found(served: Served) -> None:
    """The right answer to one question is a wrong one to another, on every surface."""
    truth = Truth(served.model, TEXTS)
    heads = ("dense", "sparse", "colbert")
    right = truth.native([0, 1], heads, "json")

    async def answer(data: bytes) -> bytes:
        pool = Pool(Target.parse(served.url))
        with contextlib.closing(pool):
            return (await pool.ask(pool.target.request("/v1/m3/embed", data))).body

    with asyncio.Runner(loop_factory=event_loop) as runner:
        body = runner.run(answer(right.body))
    assert right.fault(body) is None
    for rows in ([1, 0], [0], [0, 2], [0, 1, 1]):
        assert truth.native(rows, heads, "json").fault(body) is not None
    dense = served.model.encode(TEXTS).dense
    assert dense is not None
    rows_ = dense.tolist()
    assert truth.tei([0, 1]).fault(json.dumps(rows_[:2]).encode()) is None
    assert truth.tei([1, 0]).fault(json.dumps(rows_[:2]).encode()) is not None
    data: list[dict[str, Any]] = [{"index": i, "embedding": row} for i, row in enumerate(rows_)]
    openai = json.dumps({"data": data[:2]}).encode()
    assert truth.openai([0, 1], packed=False).fault(openai) is None
    assert truth.openai([2, 1], packed=False).fault(openai) is not None
    for question in (truth.tei_sparse([0]), truth.tei_all([0]), truth.rerank(0, [0, 1])):
        assert question.fault(b"[[]]") is not None
        assert question.fault(b"{") is not None
    ranked = {"results": [{"index": 0}, {"index": 1}]}
    assert truth.rerank(0, [0, 2]).fault(json.dumps(ranked).encode()) is None
    assert truth.rerank(0, [2, 0]).fault(json.dumps(ranked).encode()) is not None


def test_what_a_process_holds() -> None:
    here = Peer("http://127.0.0.1:1", os.getpid())
    assert not ready(here.url)
    before = usage(os.getpid())
    with Watch(here, 0.01) as watch:
        kept = np.ones(8 << 20)  # 64 MB
        files = [open(os.devnull, "rb") for _ in range(20)]  # noqa: PTH123, SIM115
        threading.Event().wait(0.1)
    for file in files:
        file.close()
    memory = watch.memory()
    assert memory is not None
    assert memory["peak_bytes"] - memory["before_bytes"] > 0.9 * kept.nbytes
    trend = watch.trends(settled=0)
    assert trend["fds"]["most"] >= before["fds"] + 20
    assert len(watch.thinned(3)) <= 3
    assert quantiles([0.001, 0.003, 0.002]) == {
        "p10": 1.0,
        "p50": 2.0,
        "p90": 3.0,
        "p99": 3.0,
        "n": 3,
    }


def test_trends_are_slopes() -> None:
    watch = Watch(Peer("http://127.0.0.1:1", None))
    watch.samples = [{"seconds": float(i), "rss": 1000.0 + 5 * max(i, 10)} for i in range(40)]
    found = watch.trends()["rss"]
    assert found["slope_per_second"] == pytest.approx(5)
    assert (found["first"], found["last"], found["most"]) == (1050, 1195, 1195)
