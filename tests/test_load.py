"""The load client: what it measures is so, against a peer that does as it is told and a server."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import m3rt
from m3rt import cli, expectation, load_course, mixes
from m3rt.arrivals import event_loop, picks, poisson
from m3rt.connection import ExchangeError, Pool, Response, Target
from m3rt.errors import InputError, UnavailableError
from m3rt.load_generator import Load, spent
from m3rt.load_summary import Client, Window, summarise
from m3rt.loads import STAGES, Latencies, LoadSettings, Run, Sample
from m3rt.payloads import FORMS, Estimate, Group, distinct, make
from m3rt.result import percentile
from tests.scripted import Script, peer, reply
from tests.served import Served

T = TypeVar("T")

TEXTS = ["one", "two", "three"]


def ran(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(work)


def answers(*parts: bytes, close: bool = False) -> Script:
    """Every request gets these bytes, apart in time."""

    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.002)
        if close:
            writer.close()

    return script


async def asked(script: Script, times: int = 1, **options: Any) -> tuple[list[Response], Pool]:
    async with peer(script) as found:
        pool = Pool(Target.parse(found.url), **options)
        data = pool.target.request("/x", b"{}")
        return [await pool.ask(data) for _ in range(times)], pool


def load_of(url: str, settings: LoadSettings, groups: list[Group] | None = None) -> Load:
    groups = groups or [Group("", 1.0, settings.texts)]
    target = Target.parse(url)
    payloads = [make(target, TEXTS, group, settings.heads, settings.form) for group in groups]
    pool = Pool(target, settings.connections, settings.timeout)
    return Load(pool, payloads, [group.share for group in groups], settings)


def refused(work: Awaitable[Any]) -> str:
    async def inner() -> None:
        await work

    with pytest.raises(ExchangeError) as caught:
        ran(inner())
    return caught.value.kind


# the protocol


def test_a_connection_is_kept_and_used_again() -> None:
    found, pool = ran(asked(answers(reply(b"abc")), 5))
    assert [(one.status, one.body) for one in found] == [(200, b"abc")] * 5
    assert pool.opened == 1


def test_an_answer_in_pieces_of_a_byte() -> None:
    whole = reply(b"abc", headers="X-Thing: a: b\r\n")
    found, _ = ran(asked(answers(*(bytes([byte]) for byte in whole))))
    assert found[0].body == b"abc"
    assert found[0].headers["x-thing"] == "a: b"
    assert found[0].size == len(whole)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_chunks(step: int) -> None:
    whole = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"3;name=value\r\nabc\r\n1\r\n\n\r\nA\r\n0123456789\r\n0\r\ntrailer: yes\r\n\r\n"
    )
    parts = [whole[i : i + step] for i in range(0, len(whole), step)]
    found, pool = ran(asked(answers(*parts), 2))
    assert [one.body for one in found] == [b"abc\n0123456789"] * 2
    assert pool.opened == 1


def test_until_the_connection_ends() -> None:
    found, pool = ran(asked(answers(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def", close=True), 2))
    assert [one.body for one in found] == [b"abcdef"] * 2
    assert pool.opened == 2


@pytest.mark.parametrize(
    ("headers", "opened"), [("connection: close\r\n", 3), ("connection: keep-alive\r\n", 1)]
)
def test_a_server_says_whether_it_keeps_the_connection(headers: str, opened: int) -> None:
    _, pool = ran(asked(answers(reply(b"abc", headers=headers)), 3))
    assert pool.opened == opened


def test_what_goes_before_the_answer_is_not_the_answer() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    found, _ = ran(asked(answers(early + reply(b"abc"))))
    assert found[0].body == b"abc"
    found, pool = ran(asked(answers(b"HTTP/1.1 204 No Content\r\n\r\n"), 2))
    assert (found[0].status, found[0].body, pool.opened) == (204, b"", 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
        b"a" * 100_000,
    ],
)
def test_what_is_no_http(answer: bytes) -> None:
    assert refused(asked(answers(answer))) == "malformed"


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"],
)
def test_a_connection_that_ends_too_early(answer: bytes) -> None:
    assert refused(asked(answers(answer, close=True))) == "closed"


def test_an_idle_connection_that_was_closed_is_replaced() -> None:
    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        if number != 1:
            writer.write(reply(b"abc"))
        else:
            writer.close()  # as if it had been closed just before the request came

    found, pool = ran(asked(script, 2))
    assert [one.body for one in found] == [b"abc"] * 2
    assert (pool.opened, pool.again) == (2, 1)


def test_more_than_was_asked_for_ends_the_connection() -> None:
    found, pool = ran(asked(answers(reply(b"abc") + reply(b"late")), 2))
    assert [one.body for one in found] == [b"abc"] * 2
    assert pool.opened == 2


def test_an_answer_that_does_not_come() -> None:
    async def work() -> None:
        async with peer(answers(b"HTTP/1.1 200 OK\r\n")) as found:
            pool = Pool(Target.parse(found.url), most=1, timeout=0.05)
            for _ in range(2):
                with pytest.raises(ExchangeError, match="within"):
                    await pool.ask(pool.target.request("/"))
            assert (pool.opened, found.connections) == (2, 2)

    ran(work())


def test_connections_are_bounded_and_who_waits_is_served() -> None:
    async def work() -> None:
        async with peer(answers(reply())) as found:
            pool = Pool(Target.parse(found.url), most=3)
            data = pool.target.request("/")
            await asyncio.gather(*(pool.ask(data) for _ in range(20)))
            assert (pool.opened, pool.waited) == (3, 17)
            # one that is given up while it waits takes no place with it
            tasks = [asyncio.create_task(pool.ask(data)) for _ in range(9)]
            await asyncio.sleep(0)
            for task in tasks[2:7]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(one, Response) for one in done) == 4
            await asyncio.gather(*(pool.ask(data) for _ in range(6)))

    ran(work())


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x", "http://", "http://x:port"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="is no URL"):
        Target.parse(url)


def test_urls() -> None:
    assert Target.parse("https://example.org/m3/") == Target("example.org", 443, True, "/m3")
    six = Target.parse("http://[::1]:81")
    assert (six.authority, six.port) == ("[::1]:81", 81)
    data = Target.parse("http://h/m3").request("/x", b"{}", {"a": "b"})
    assert data == (
        b"POST /m3/x HTTP/1.1\r\nhost: h:80\r\na: b\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\n\r\n{}"
    )


# arrivals


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson(200.0, 100.0, seed=3)
    assert np.array_equal(times, poisson(200.0, 100.0, seed=3))
    assert not np.array_equal(times[:100], poisson(200.0, 100.0, seed=4)[:100])
    assert times[0] > 0
    assert times[-1] < 100
    assert (np.diff(times) > 0).all()
    assert abs(len(times) - 20_000) < 5 * 20_000**0.5
    gaps = np.diff(times)
    # of an exponential distribution: deviation as the mean, and 1/e of it over the mean
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert abs((gaps > gaps.mean()).mean() - np.exp(-1)) < 0.02
    # counts of seconds: their variance is their mean
    counts = np.bincount(times.astype(int), minlength=100)
    assert 0.6 < counts.var() / counts.mean() < 1.5
    assert len(poisson(0.001, 1.0, 0)) == 0


def test_what_arrives_is_chosen_by_shares() -> None:
    chosen = picks([3.0, 1.0], [2, 4], 40_000, seed=0)
    counts = np.bincount(chosen, minlength=6) / 40_000
    assert np.abs(counts - [0.375, 0.375, *[0.0625] * 4]).max() < 0.02
    # in turn: whatever follows each other differs
    of_second = chosen[chosen >= 2]
    assert all(len(set(of_second[i : i + 4])) == 4 for i in range(0, 1000, 4))


def test_texts_that_differ(model: m3rt.M3) -> None:
    texts = list(mixes.of_lengths(model.tokenizer, [12, 40, 200]))
    found = distinct(texts, 50, model.tokenizer)
    assert found[:3] == texts
    assert len(set(found)) == len(found) == 50
    lengths = model.tokenizer.lengths(found)
    for i, wanted in enumerate((12, 40, 200)):
        assert set(lengths[i::3].tolist()) <= {wanted - 1, wanted}
    others = distinct(texts, 50, model.tokenizer, "b")
    assert not set(found) & set(others)
    assert distinct(texts, 2) == texts
    assert distinct(["a"], 3) == ["a", "1 a", "2 a"]
    assert len(distinct(["a" * 10**6], 1000)) < 10


def test_a_server_that_stalls_does_not_slow_the_arrivals() -> None:
    settings = LoadSettings(seconds=0.5, warm_up=0.0, connections=400, timeout=10)
    released: asyncio.Event

    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.write(reply())

    async def work() -> tuple[Run, list[float], float]:
        nonlocal released
        released = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with peer(script) as found:
            load = load_of(found.url, settings)
            begun = loop.time()
            loop.call_later(1.0, released.set)  # long after the last arrival
            run = await load.at(200.0)
            return run, found.arrived, begun

    run, arrived, begun = ran(work())
    due = poisson(200.0, 0.5, 0)
    assert run.requests == len(due) == len(arrived)
    assert max(arrived) - begun < 1.0  # all were there before anything was answered
    assert run.outcomes == {"200": len(due)}
    assert run.throughput == 0  # nothing came within the half second
    assert run.latency is not None
    # from the arrival to the release: those that came first waited longest
    least, most = 1e3 * (0.95 - due[-1]), 1e3 * (1.0 - due[0])
    assert least - 60 < run.latency.p50 < most
    assert run.latency.max - run.latency.p50 > 1e3 * (np.median(due) - due[0]) - 60


def test_the_wait_for_a_connection_is_latency() -> None:
    settings = LoadSettings(seconds=0.4, warm_up=0.0, connections=1, timeout=10)

    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(reply(headers="server-timing: queue;dur=1.5, total;dur=5\r\n"))

    async def work() -> Run:
        async with peer(script) as found:
            return await load_of(found.url, settings).at(100.0)

    run = ran(work())
    assert run.waited > 0
    assert run.opened == 1
    assert run.latency is not None
    assert run.latency.max > 20 * (run.requests - 22)  # the last came after all before it
    assert run.split is not None
    assert run.split.p50["queue"] == pytest.approx(1.5)
    assert run.split.p50["rest"] > run.split.p50["total"] == pytest.approx(5)


# what is said of samples


def sample(due: float, latency: float, outcome: str = "200", **rest: Any) -> Sample:
    values: dict[str, Any] = {"lane": "", "question": 0, "texts": 1, "begun": due, "tokens": 7}
    values |= rest
    return Sample(due=due, ended=due + latency, outcome=outcome, **values)


def summary(
    samples: list[Sample], seconds: float = 10.0, slo_ms: float = 100.0, **rest: Any
) -> Run:
    settings = LoadSettings(slo_ms=slo_ms)
    values: dict[str, Any] = {"checked": None} | rest
    return summarise(
        samples, Window(5.0, 5.0 + seconds), 50.0, None, settings, Client(0, 0, 0, 0.0), **values
    )


def test_percentiles_are_those_of_the_samples() -> None:
    seconds = np.random.default_rng(0).permutation(np.arange(1, 2001) / 1e3).tolist()
    found = Latencies.of(seconds)
    assert found is not None
    assert found.n == 2000
    assert found.mean == pytest.approx(1000.5)
    assert [found.p999, found.max, found.p999_why] == [1998, 2000, None]
    assert [found.p50, found.p90, found.p99] == [
        pytest.approx(1e3 * percentile(seconds, p)) for p in (50, 90, 99)
    ]
    few = Latencies.of(seconds[:999])
    assert few is not None
    assert few.p999 is None
    assert few.p999_why == "999 samples, needs 1000"
    assert Latencies.of([]) is None
    assert Latencies.of([0.002]) == Latencies(1, 2, 2, 2, 2, None, 2, "1 samples, needs 1000")


def test_what_is_counted() -> None:
    run = summary(
        [
            sample(4.99, 0.05),  # in the warm-up, and answered in the window
            sample(5.5, 0.05, received=10, sent=3),
            sample(6.0, 0.1001, received=10, sent=3),  # too late for the objective
            sample(6.5, 0.001, "429"),
            sample(6.6, 0.002, "429"),
            sample(7.0, 0.03, "504"),
            sample(7.5, 0.5, "timeout"),
            sample(7.6, 0.05, fault="not to be read: index 1 in place 0"),
            sample(14.95, 0.06),  # answered after the end
        ]
    )
    assert (run.requests, run.arrivals) == (8, 0.8)
    assert run.throughput == pytest.approx(0.4)
    assert run.goodput == pytest.approx(0.2)
    assert run.good_share == 2 / 8
    assert run.shed_share == 2 / 8
    assert run.outcomes == {"200": 4, "429": 2, "504": 1, "timeout": 1}
    assert run.latency is not None
    assert run.latency.n == 3
    assert run.latency.max == pytest.approx(100.1)
    assert run.refusals is not None
    assert run.refusals.n == 3
    assert run.refusals.p50 == pytest.approx(2)
    assert run.tokens_per_second == pytest.approx(2.8)
    assert (run.received_bytes, run.sent_bytes) == (20, 6)
    assert run.wrong is None
    assert run.lanes == ()
    assert run.split is None


def test_wrong_answers_and_those_that_could_not_be_checked_are_told() -> None:
    samples = [sample(5, 0.01, fault="a"), sample(6, 0.01), sample(7, 0.01, question=1, tokens=0)]
    run = summary(samples, checked={0})
    assert (run.wrong, run.wrong_examples, run.unchecked) == (1, ("a",), 1)
    assert run.tokens_per_second is None  # one answer does not tell


def test_lanes() -> None:
    samples = [sample(5, 0.01, lane="interactive"), sample(6, 0.2, lane="bulk", texts=32)]
    run = summary([*samples, sample(7, 0.01, "429", lane="bulk", texts=32)])
    bulk, interactive = run.lanes
    assert (bulk.lane, bulk.requests, bulk.texts, bulk.goodput) == ("bulk", 2, 32, 0)
    assert bulk.outcomes == {"200": 1, "429": 1}
    assert (interactive.goodput, interactive.requests) == (0.1, 1)
    assert run.texts_per_second == pytest.approx(3.3)


def test_sheds_and_answers_are_told_apart() -> None:
    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        if number % 3:
            writer.write(reply(b'{"usage":{"prompt_tokens":3}}'))
        else:
            writer.write(reply(status=429, headers="retry-after: 1\r\n"))

    async def work() -> Run:
        async with peer(script) as found:
            return await load_of(found.url, LoadSettings(seconds=0.6, warm_up=0.0)).at(150.0)

    run = ran(work())
    shed = -(-run.requests // 3)
    assert run.outcomes == {"200": run.requests - shed, "429": shed}
    assert run.shed_share == shed / run.requests
    assert run.latency is not None
    assert run.latency.p50 >= 10
    assert run.late is not None


def test_refused_connections_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def work() -> Run:
        load = load_of(url, LoadSettings(seconds=0.2, warm_up=0.0))
        assert await load.alone() is None
        assert (await load.closed(2, 0.2)).throughput == 0
        return await load.at(100.0)

    run = ran(work())
    assert run.outcomes == {"refused": run.requests}
    assert (run.latency, run.goodput, run.tokens_per_second) == (None, 0, 0)


def test_the_capacity_is_that_of_the_server() -> None:
    """Four at once, 20 ms each: 200 a second, whatever is asked of it."""
    places: asyncio.Semaphore

    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        async with places:
            await asyncio.sleep(0.02)
        writer.write(reply())

    async def work() -> Any:
        nonlocal places
        places = asyncio.Semaphore(4)
        async with peer(script) as found:
            load = load_of(found.url, LoadSettings(seconds=0.4, concurrency=64))
            return await load.capacity()

    found = ran(work())
    assert 120 < found.rate <= 210
    assert [stage.concurrency for stage in found.stages][:3] == [4, 8, 16]
    assert found.rate == max(stage.throughput for stage in found.stages)


def test_a_rate_that_comes_too_late_is_no_capacity() -> None:
    """Requests that wait for each other: 32 at once take longer than the objective."""
    waiting: list[asyncio.Event]

    async def script(number: int, data: bytes, writer: asyncio.StreamWriter) -> None:
        waiting.append(asyncio.Event())
        await asyncio.sleep(0.012 * len(waiting))
        waiting.pop()
        writer.write(reply())

    async def work() -> Any:
        nonlocal waiting
        waiting = []
        async with peer(script) as found:
            load = load_of(found.url, LoadSettings(seconds=0.5, slo_ms=150))
            return await load.capacity()

    found = ran(work())
    assert found.concurrency < found.stages[-1].concurrency
    assert found.stages[-1].latency.p99 > 150
    assert all(stage.latency.p99 <= 150 for stage in found.stages[:-1])


def test_server_timing_and_timings() -> None:
    def split(body: bytes = b"", header: str | None = None) -> dict[str, float]:
        headers = {} if header is None else {"server-timing": header}
        return spent(Response(200, headers, body, 0.0, 0))

    found = split(header='tokenise;dur=1.5, queue;desc="a";dur=2, engine;dur=x, miss')
    assert found == {"tokenise": 0.0015, "queue": 0.002}
    body = b'{"data":[],"timings":{"tokenise":1,"queue":2,"total":0.5}}'
    assert split(body) == {"tokenise": 0.001, "queue": 0.002, "total": 0.0005}
    assert split(b'{"timings":{"queue":"x"}}') == {}


# what is sent


def test_requests_say_what_they_are() -> None:
    target = Target.parse("http://h:1")
    made = make(target, TEXTS, Group("bulk", 0.2, 2), ("dense",), "base64", ["k1", "k2"], 250.0)
    assert [one.texts for one in made] == [2] * 4
    assert len({one.question for one in made}) == 2
    head, _, content = made[3].data.partition(b"\r\n\r\n")
    assert json.loads(content) == {
        "inputs": ["three", "one"],
        "outputs": ["dense"],
        "format": "base64",
        "dtype": "float16",
    }
    for line in (b"x-priority: bulk", b"x-request-timeout-ms: 250", b"authorization: Bearer k2"):
        assert line in head.split(b"\r\n")
    plain = make(target, ["Grüße"], Group("", 1, 1), ("dense",), "json")[0].data
    assert b"x-priority" not in plain
    assert "Grüße".encode() in plain


def test_lengths_are_estimated_without_a_tokenizer(model: m3rt.M3) -> None:
    lines = list(mixes.of_lengths(model.tokenizer, [50] * 40))
    found = Estimate(lines, model.tokenizer.lengths(lines), model.tokenizer.min_length)
    assert found.lengths(lines).tolist() == model.tokenizer.lengths(lines).tolist()
    assert found.lengths([""]).tolist() == [model.tokenizer.min_length]
    texts = list(mixes.of_lengths(model.tokenizer, [100, 400]))
    assert np.abs(found.lengths(texts) / [100, 400] - 1).max() < 0.3


# what is expected


def item(**changes: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "n_tokens": 3,
        "truncated": False,
        "dense": [1.0, 0.0],
        "sparse": {"indices": [4, 9], "values": [0.5, 0.25]},
        "colbert": [[1.0, 0.0], [0.0, 1.0]],
        **changes,
    }


def written(*items: dict[str, Any]) -> bytes:
    return json.dumps({"data": items, "usage": {"prompt_tokens": 3 * len(items)}}).encode()


def packed(values: Any, dtype: str) -> dict[str, Any]:
    array = np.array(values, dtype)
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape), "dtype": dtype, "data": data}


EXPECTED = expectation.expect(written(item()), "json")


def test_answers_that_are_alike() -> None:
    assert EXPECTED.tokens == 3
    like = item(
        dense=packed([1.0, 1e-4], "float32"),
        sparse={"indices": [4, 8, 9], "values": [0.5, 1e-7, 0.25]},
        colbert=packed([[1.0, 0.0], [1e-3, 1.0]], "float16"),
    )
    assert expectation.fault(written(like), "json", EXPECTED) is None
    assert expectation.fault(written(item()), "json", EXPECTED) is None


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "0 texts, expected 1"),
        ([item(), item(index=1)], "2 texts, expected 1"),
        ([item(index=1)], "not to be read: index 1 in place 0"),
        ([item(dense=[1.0, 0.01])], "dense of text 0 has a cosine of 0.99995"),
        ([item(dense=[0.0, 0.0])], "dense of text 0 has a cosine"),
        ([item(dense=[1.01, 0.0])], "dense of text 0 has a cosine of 0.99995"),
        ([item(sparse={"indices": [4, 9], "values": [1.0, 0.5]})], "indices of text 0"),
        ([item(dense=packed([float("nan"), 0.0], "float32"))], "dense of text 0 has a cosine"),
        ([item(dense=[1.0])], "dense of text 0 is"),
        ([item(n_tokens=4)], "n_tokens of text 0"),
        ([item(sparse={"indices": [4, 8], "values": [0.5, 0.25]})], "indices of text 0"),
        ([item(sparse={"indices": [4], "values": [0.5, 0.25]})], "indices of text 0"),
        ([item(colbert=[[0.0, 1.0], [1.0, 0.0]])], "colbert of text 0 has a cosine of 0.0"),
        ([item(colbert=[[1.0, 0.0]])], "colbert of text 0 is"),
        ([{"index": 0, "n_tokens": 3}], "text 0 has n_tokens, expected"),
        ([{"index": 0}], "not to be read: KeyError"),
    ],
)
def test_answers_that_are_wrong(items: list[dict[str, Any]], said: str) -> None:
    found = expectation.fault(written(*items), "json", EXPECTED)
    assert found is not None
    assert found.startswith(said)


def test_tensors_are_read_as_json_is() -> None:
    """A text without lexical weights, and one with; the header padded, as writers do."""
    arrays = {
        "dense": np.array([[1, 0], [0, 1]], "<f2"),
        "colbert": np.arange(6, dtype="<f2").reshape(3, 2),
        "colbert_offsets": np.array([0, 1, 3], "<i8"),
        "sparse_indices": np.array([4, 9], "<i4"),
        "sparse_values": np.array([0.5, 0.25], "<f4"),
        "sparse_offsets": np.array([0, 0, 2], "<i8"),
        "n_tokens": np.array([2, 3], "<i4"),
        "truncated": np.array([False, True]),
    }
    names = {"f2": "F16", "f4": "F32", "i4": "I32", "i8": "I64", "b1": "BOOL"}
    header: dict[str, Any] = {"__metadata__": {"model": "m"}}
    data = b""
    for name, values in arrays.items():
        offsets = [len(data), len(data) + values.nbytes]
        kind = names[values.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": offsets}
        data += values.tobytes()
    text = json.dumps(header).encode() + b"  "
    body = len(text).to_bytes(8, "little") + text + data
    first, second = (
        item(dense=[1, 0], n_tokens=2, colbert=[[0, 1]], sparse={"indices": [], "values": []}),
        item(index=1, dense=[0, 1], colbert=[[2, 3], [4, 5]]),
    )
    likewise = expectation.expect(written(first, second), "json")
    found = expectation.expect(body, "binary")
    assert found.tokens == 5
    assert expectation.difference(found.arrays, likewise.arrays, 1.0) is None
    assert expectation.fault(body, "binary", found) is None
    changed = bytearray(body)
    changed[8 + len(text)] ^= 0x40
    assert (expectation.fault(bytes(changed), "binary", found) or "").startswith("dense of text 0")
    for broken in (b"", body[:20], body[:-9], b"\xff" * 100):
        assert (expectation.fault(broken, "binary", found) or "").startswith("not to be read")
        assert expectation.tokens(broken[:20], "binary") == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"data":3}', b'{"data":[{"index":0}]}'])
def test_answers_that_are_not_to_be_read(body: bytes) -> None:
    assert (expectation.fault(body, "json", EXPECTED) or "").startswith("not to be read")


# against a server


def invoked(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


SHORT = ("--duration", "0.5", "--warm-up", "0.1", "--rate", "40", "--check", "--distinct", "100")


@pytest.mark.parametrize("form", FORMS)
def test_all_answers_of_a_server_are_right(
    served: Served, model_dir: Path, form: str, tmp_path: Path
) -> None:
    output, html = tmp_path / "out.json", tmp_path / "out.html"
    done = invoked(
        *(model_dir, "--server", served.url, "--mix", "queries", "--form", form, *SHORT),
        *("--bulk", "0.2", "--bulk-texts", "4", "--json", "-o", output, "--html", html),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads(output.read_text("utf-8"))
    assert found["schema"] == 1
    assert found["mixes"][0]["quantiles"]["p50"] == 12
    assert not found["estimated"]
    assert found["alone"]["n"] == 100 + 25  # each text alone, and in a bulk request
    run = found["runs"][0]
    assert run["outcomes"] == {"200": run["requests"]}
    assert (run["wrong"], run["unchecked"], run["good_share"]) == (0, 0, 1.0)
    assert {lane["lane"] for lane in run["lanes"]} == {"interactive", "bulk"}
    assert run["tokens_per_second"] > run["texts_per_second"] > run["throughput"] > 0
    assert run["latency"]["p50"] <= run["latency"]["p99"] <= run["latency"]["max"]
    assert run["latency"]["p999"] is None
    assert "samples" in run["latency"]["p999_why"]
    assert run["received_bytes"] > 0
    if form != "binary":  # which tells no timings
        assert run["split"]["n"] == run["requests"]
        assert set(run["split"]["p50"]) == {"wait", *STAGES, "rest"}
    page = html.read_text("utf-8").removeprefix("<!DOCTYPE html>\n")
    assert len(ElementTree.fromstring(page).findall(".//figure")) == 2


def test_a_swapped_answer_is_found(served: Served) -> None:
    """The check of every answer fails where it must: the expected ones are changed about."""

    async def work() -> Run:
        load = load_of(served.url, LoadSettings(seconds=0.4, warm_up=0.0, check=True))
        await load.alone()
        expected = load._expected
        first, second, _ = expected
        expected[first], expected[second] = expected[second], expected[first]
        return await load.at(50.0)

    run = ran(work())
    assert run.wrong is not None
    assert 0 < run.wrong < run.requests
    assert run.goodput == pytest.approx((run.outcomes["200"] - run.wrong) / 0.4, rel=0.3)


def test_a_server_alone_is_enough(served: Served) -> None:
    """Without the model, lengths are estimated; rates are shares of the capacity."""
    done = invoked(
        *("--server", served.url, "--mix", "queries", "--load", "0.3,0.6", "--duration", "0.4"),
        *("--warm-up", "0.1", "--concurrency", "8", "--heads", "dense", "--json"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["estimated"]
    assert found["mixes"][0]["quantiles"]["p50"] in range(10, 15)
    assert [run["load"] for run in found["runs"]] == [0.3, 0.6]
    assert found["runs"][0]["rate"] == pytest.approx(0.3 * found["capacity"]["rate"])
    assert [stage["concurrency"] for stage in found["capacity"]["stages"]] == [4, 8]


def test_it_is_shown_as_tables(served: Served, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("first text\nsecond text\n", "utf-8")
    done = invoked("--server", served.url, "--mix", texts, *SHORT)
    assert done.exit_code == 0, done.output
    for shown in ("goodput/s", "latency from the arrival", "every answer", "processors"):
        assert shown in done.stdout
    sized = invoked("--server", served.url, "--lengths", "8,40", "--json", *SHORT)
    assert json.loads(sized.stdout)["mixes"][0]["texts"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "5"], "--rate needs --server URL"),
        (["--server", "http://127.0.0.1:1", "--engine", "cpu"], "--engine is not for --server"),
        (["--server", "http://127.0.0.1:1", "--rate", "x"], "not numbers"),
        (["--server", "http://127.0.0.1:1", "--load", "0"], "above 0"),
        (["--server", "http://127.0.0.1:1", "--form", "xml"], "none of json"),
        ([], "MODEL is missing"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    done = invoked(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_server_that_is_not_there() -> None:
    done = invoked("--server", "http://127.0.0.1:1", "--json")
    assert done.exit_code == UnavailableError.exit_code
    assert "no server answers" in done.stderr


def test_a_server_that_is_not_there_is_measured_where_texts_need_none(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("first text\n", "utf-8")
    rest = ("--duration", "0.2", "--warm-up", "0", "--rate", "50", "--load", "1", "--json")
    done = invoked("--server", "http://127.0.0.1:1", "--mix", texts, *rest)
    assert done.exit_code == 0, done.output
    assert "no rate is a share" in done.stderr
    found = json.loads(done.stdout)
    assert found["runs"][0]["outcomes"] == {"refused": found["runs"][0]["requests"]}
    assert found["capacity"]["rate"] == 0


def test_a_mix_that_there_is_not() -> None:
    settings = LoadSettings(rates=(5.0,), seconds=0.2, warm_up=0.0)
    with pytest.raises(InputError, match="no mix"):
        load_course.run("http://127.0.0.1:1", settings, ["nothing"])
