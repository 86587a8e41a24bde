"""What every surface relies on: right answers, admission, deadlines, faults, reload, end."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3rt import M3
from m3rt.engines.faults import DeviceLostError
from m3rt.errors import EngineError
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.scheduler import Scheduler
from m3rt.server.service import Service
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Cut, Lane, Sender, Trail
from m3rt.types import Batch, Embeddings, Heads, Limits, Raw
from tests.steered import Steered, steered

WORDS = (
    *("the", "quick", "brown", "fox", "Grüße", "aus", "Köln", "東京", "は", "日本", "の", "首都"),
    *("مرحبا", "دنيا", "नमस्ते", "🦊"),
)
HEADS = [Heads.DENSE, Heads.SPARSE, Heads.COLBERT, Heads.DENSE | Heads.SPARSE, Heads.ALL]


def numbered(n: int) -> str:
    """A text that no other number has, for the small model's tokenizer, too: it has no digits."""
    return " ".join("ab"[int(bit)] for bit in f"1{n:b}")


def same(found: Embeddings, direct: Embeddings) -> None:
    """The same heads, numbers and order, but for rounding, which other heads change."""
    np.testing.assert_array_equal(found.n_tokens, direct.n_tokens)
    np.testing.assert_array_equal(found.truncated, direct.truncated)
    assert (found.dense is None) == (direct.dense is None)
    if found.dense is not None and direct.dense is not None:
        np.testing.assert_allclose(found.dense, direct.dense, atol=1e-6)
    assert (found.sparse is None) == (direct.sparse is None)
    if found.sparse is not None and direct.sparse is not None:
        np.testing.assert_array_equal(found.sparse.ids.starts, direct.sparse.ids.starts)
        np.testing.assert_array_equal(found.sparse.ids.values, direct.sparse.ids.values)
        np.testing.assert_allclose(
            found.sparse.weights.values, direct.sparse.weights.values, atol=1e-6
        )
    assert (found.colbert is None) == (direct.colbert is None)
    for left, right in zip(found.colbert or [], direct.colbert or [], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def width_of(found: Embeddings) -> int:
    assert found.dense is not None
    return int(found.dense.shape[1])


class Stand:
    """A service with a steered engine."""

    def __init__(self, service: Service, engine: Steered, model: M3) -> None:
        self.service = service
        self.engine = engine
        self.model = model
        engine.ran.clear()  # what warmed it up
        while engine.entered.acquire(blocking=False):
            pass

    async def ask(self, *inputs: str, heads: Heads = Heads.DENSE, **sender: Any) -> Answer:
        return await self.service.embed(Ask(inputs, heads), Sender(**sender))

    def start(
        self, *inputs: str, heads: Heads = Heads.DENSE, **sender: Any
    ) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(*inputs, heads=heads, **sender))

    async def blocked(self) -> asyncio.Task[Answer]:
        """Have the engine at work on one text, and keep it there."""
        self.engine.gate.clear()
        task = self.start("it is busy")
        await asyncio.to_thread(self.engine.entered.acquire, timeout=10)
        return task

    async def waiting(self, count: int) -> None:
        """Wait until so many texts wait."""
        line = self.service.stage.scheduler.line
        for _ in range(1000):
            if len(line) == count:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(line)} texts wait, expected {count}")


def stood(
    model: M3,
    work: Callable[[Stand], Coroutine[Any, Any, None]],
    limits: Limits | None = None,
    **changes: Any,
) -> None:
    """Run a test's work on a service of its own."""
    gated, engine = steered(model, limits)
    settings = dataclasses.replace(Settings(Path("model")), **changes)

    async def whole() -> None:
        service = Service(settings, gated)
        await service.start()
        try:
            await asyncio.wait_for(work(Stand(service, engine, model)), 60)
        finally:
            engine.gate.set()
            await service.stop(5)

    asyncio.run(whole())


def slow(scheduler: Scheduler) -> None:
    """Have it believe that a token takes 100 ms."""
    for _ in range(50):
        for tokens in (16, 32, 64, 128, 256, 512):
            scheduler.learn(tokens, tokens * 0.1)


def refused(kind: Kind) -> Any:
    return pytest.raises(RefusedError, check=lambda error: error.kind == kind)


@pytest.mark.parametrize("pads", [False, True])
def test_every_answer_is_the_direct_result(model: M3, pads: bool) -> None:
    rng = random.Random(3)
    longest = model.max_length
    limits = Limits(128, longest, pads=pads, widths=(16, 64, longest) if pads else (), parallel=3)

    async def one(stand: Stand) -> None:
        texts = [
            " ".join(rng.choices(WORDS, k=rng.randint(0, 40))) for _ in range(rng.randint(1, 9))
        ]
        heads = rng.choice(HEADS)
        found = await stand.ask(
            *texts, heads=heads, client=rng.choice("abc"), lane=rng.choice(list(Lane))
        )
        direct = model.encode(texts, heads)
        same(found.embeddings, direct)
        assert found.n_tokens == direct.n_tokens.sum()
        assert found.timings.total >= found.timings.queue

    async def work(stand: Stand) -> None:
        await asyncio.gather(*(one(stand) for _ in range(150)))
        assert len(stand.engine.ran) < 700

    stood(model, work, limits, max_wait=60.0)


def test_texts_asked_for_at_once_run_once(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        tasks = [stand.start("same", "other", "same") for _ in range(5)]
        narrow = stand.start("same", heads=Heads.DENSE)
        wide = stand.start("same", heads=Heads.ALL)
        await stand.waiting(3)  # same, other, and same with more heads
        stand.engine.gate.set()
        for task in tasks:
            same((await task).embeddings, model.encode(["same", "other", "same"], Heads.DENSE))
        same((await narrow).embeddings, model.encode(["same"], Heads.DENSE))
        same((await wide).embeddings, model.encode(["same"]))
        assert sum(task.result().shared for task in tasks) == 5 * 3 - 2
        await busy
        texts = [text for batch, _ in stand.engine.ran for text in batch]
        assert len(texts) == 4

    stood(model, work)


def test_an_interactive_text_does_not_wait_for_the_same_one_in_bulk(model: M3) -> None:
    async def work(stand: Stand) -> None:
        await stand.blocked()
        stand.start("same", lane=Lane.BULK)
        await stand.waiting(1)
        stand.start("same", lane=Lane.INTERACTIVE)
        await stand.waiting(2)
        stand.start("same", lane=Lane.BULK)
        await asyncio.sleep(0.05)
        await stand.waiting(2)

    stood(model, work)


def test_the_cache_gives_what_the_engine_gave(model: M3) -> None:
    async def work(stand: Stand) -> None:
        first = await stand.ask("a query", heads=Heads.ALL)
        again = await stand.ask("a query", heads=Heads.ALL)
        assert (first.shared, again.shared) == (0, 1)
        same(again.embeddings, first.embeddings)
        assert len(stand.engine.ran) == 1
        await stand.ask("a query", heads=Heads.DENSE)  # other heads: not the same
        for n in range(400):
            await stand.ask(numbered(n), heads=Heads.ALL)
        cache = stand.service.stage.scheduler._cache
        assert 0 < cache.held <= 100_000
        assert (await stand.ask("a query", heads=Heads.ALL)).shared == 0  # the oldest went

    stood(model, work, cache_bytes=100_000)


def test_without_a_cache_each_request_runs(model: M3) -> None:
    async def work(stand: Stand) -> None:
        await stand.ask("a query")
        await stand.ask("a query")
        assert len(stand.engine.ran) == 2

    stood(model, work)


def test_what_a_client_left_does_not_run(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        gone = stand.start(*map(numbered, range(10)))
        stays = stand.start("stays")
        await stand.waiting(11)
        gone.cancel()
        await stand.waiting(1)
        stand.engine.gate.set()
        await busy
        same((await stays).embeddings, model.encode(["stays"], Heads.DENSE))
        assert sum(len(batch) for batch, _ in stand.engine.ran) == 2
        with pytest.raises(asyncio.CancelledError):
            await gone

    stood(model, work)


def test_a_shared_text_runs_for_the_one_who_stays(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        gone = stand.start("shared")
        await stand.waiting(1)
        stays = stand.start("shared", "own")
        await stand.waiting(2)
        gone.cancel()
        await asyncio.sleep(0.02)
        stand.engine.gate.set()
        same((await stays).embeddings, model.encode(["shared", "own"], Heads.DENSE))
        await busy

    stood(model, work)


def test_a_deadline_ends_the_wait_in_the_queue_and_at_the_engine(model: M3) -> None:
    async def work(stand: Stand) -> None:
        stand.engine.gate.clear()
        soon = time.monotonic() + 0.2
        running = stand.start("runs", deadline=soon)
        await asyncio.to_thread(stand.engine.entered.acquire, timeout=10)
        queued = stand.start("waits", deadline=soon)
        for task in (running, queued):
            with refused(Kind.EXPIRED):
                await task
        assert time.monotonic() < soon + 2
        with refused(Kind.EXPIRED):
            await stand.ask("is late", deadline=time.monotonic() - 1)
        stand.engine.gate.set()
        same((await stand.ask("works")).embeddings, model.encode(["works"], Heads.DENSE))
        assert sum(len(batch) for batch, _ in stand.engine.ran) == 2

    stood(model, work)


def test_nothing_is_left_of_what_was_late(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        soon = time.monotonic() + 0.1
        late = [stand.start(numbered(n), deadline=soon) for n in range(20)]
        await asyncio.sleep(0.2)
        again = stand.start(numbered(3))  # the same text, by somebody who has time
        await asyncio.sleep(0.05)
        stand.engine.gate.set()
        same((await again).embeddings, model.encode([numbered(3)], Heads.DENSE))
        found = await asyncio.gather(busy, *late, return_exceptions=True)
        assert sum(isinstance(one, RefusedError) for one in found) == 20
        assert not stand.service.stage.scheduler._flights
        assert sum(len(batch) for batch, _ in stand.engine.ran) == 2

    stood(model, work)


def test_what_would_wait_too_long_is_refused_with_a_time_to_come_back(model: M3) -> None:
    async def work(stand: Stand) -> None:
        scheduler = stand.service.stage.scheduler
        slow(scheduler)
        busy = await stand.blocked()
        tasks = [stand.start(numbered(n), client="a") for n in range(20)]
        await asyncio.sleep(0.1)
        over = [task for task in tasks if task.done()]
        assert 5 < len(over) < 20
        error = over[0].exception()
        assert isinstance(error, RefusedError)
        assert error.kind == Kind.OVERLOADED
        assert error.retry_after is not None
        assert 1 <= error.retry_after < 60
        # before its body is read, too
        hurried = Sender("a", Lane.INTERACTIVE, time.monotonic() + 1)
        with refused(Kind.OVERLOADED), stand.service.entered(hurried):
            pass
        with refused(Kind.OVERLOADED):
            await stand.ask("x", client="b", deadline=time.monotonic() + 0.5)
        bulk = stand.start("bulk", lane=Lane.BULK)  # may wait longer
        await asyncio.sleep(0.05)
        assert not bulk.done()
        stand.engine.gate.set()
        done = await asyncio.gather(busy, bulk, *tasks, return_exceptions=True)
        assert sum(isinstance(one, Answer) for one in done) == 22 - len(over)

    stood(model, work, max_wait=5.0)


def test_a_client_that_floods_does_not_shut_others_out(model: M3) -> None:
    async def work(stand: Stand) -> None:
        scheduler = stand.service.stage.scheduler
        slow(scheduler)
        await stand.blocked()
        flood = [stand.start(numbered(n), client="flood") for n in range(50)]
        await asyncio.sleep(0.1)
        assert any(task.done() for task in flood)
        other = stand.start("modest", client="other")
        await asyncio.sleep(0.1)
        assert not other.done()

    stood(model, work, max_wait=5.0)


def test_tokens_that_wait_are_bounded(model: M3) -> None:
    async def work(stand: Stand) -> None:
        await stand.blocked()
        first = stand.start("one two three four five six seven eight nine ten")
        await stand.waiting(1)
        with refused(Kind.OVERLOADED):
            await stand.ask("one two three four five six seven eight nine eleven")
        assert not first.done()

    stood(model, work, max_queue_tokens=12)


def test_memory_of_answers_is_bounded_and_given_back(model: M3) -> None:
    async def work(stand: Stand) -> None:
        room = stand.service.room
        with refused(Kind.TOO_LARGE):
            await stand.ask(*["a long text " * 8] * 40, heads=Heads.ALL)
        assert room.held == 0
        trail = Trail()
        await stand.ask("short", heads=Heads.ALL, trail=trail)
        assert room.held > 0  # until its answer is sent
        trail.release()
        trail.release()
        assert room.held == 0
        await stand.blocked()
        held = [stand.start(f"{numbered(n)} " * 9, heads=Heads.ALL) for n in range(12)]
        await asyncio.sleep(0.2)
        errors = [task.exception() for task in held if task.done()]
        assert {error.kind for error in errors if isinstance(error, RefusedError)} == {
            Kind.OVERLOADED
        }
        stand.engine.gate.set()
        await asyncio.gather(*held, return_exceptions=True)
        assert room.held == 0

    stood(model, work, max_memory=200_000)


def test_one_bad_text_fails_alone(model: M3) -> None:
    bad = model.tokenize(["poison"]).ids[0].tobytes()

    def before(batch: Batch) -> None:
        if any(ids.tobytes() == bad for ids in batch.tokens):
            raise EngineError("it does not like it")

    async def work(stand: Stand) -> None:
        stand.engine.before = before
        busy = await stand.blocked()
        tasks = [stand.start(text) for text in ("good", "poison", "fine")]
        await stand.waiting(3)
        stand.engine.gate.set()
        good, poison, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(poison, EngineError)
        for text, answer in (("good", good), ("fine", fine)):
            assert isinstance(answer, Answer)
            same(answer.embeddings, model.encode([text], Heads.DENSE))
        await busy
        assert stand.service.ready

    stood(model, work)


def test_nan_fails_the_text_that_has_it(model: M3) -> None:
    bad = model.tokenize(["poison"]).ids[0].tobytes()

    def after(batch: Batch, raw: Raw) -> Raw:
        rows = [n for n, ids in enumerate(batch.tokens) if ids.tobytes() == bad]
        assert raw.dense is not None
        dense = raw.dense.copy()
        dense[rows] = np.nan
        return dataclasses.replace(raw, dense=dense)

    async def work(stand: Stand) -> None:
        stand.engine.after = after
        await stand.blocked()
        tasks = [stand.start(text) for text in ("good", "poison")]
        await stand.waiting(2)
        stand.engine.gate.set()
        good, poison = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(good, Answer)
        assert isinstance(poison, EngineError)
        assert "NaN" in str(poison)
        assert len(stand.engine.ran) == 2  # none ran again

    stood(model, work)


def test_a_lost_device_is_told(model: M3) -> None:
    def before(batch: Batch) -> None:
        raise DeviceLostError("fell off the bus")

    async def work(stand: Stand) -> None:
        stand.engine.before = before
        with pytest.raises(DeviceLostError):
            await stand.ask("a", "b")
        assert not stand.service.live
        assert not stand.service.ready
        with refused(Kind.NOT_READY):
            await stand.ask("c")

    stood(model, work)


def test_an_engine_that_hangs_is_told_and_may_come_back(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        queued = stand.start("waits")
        with pytest.raises(EngineError, match="has not answered"):
            await busy
        with refused(Kind.NOT_READY):
            await queued
        assert not stand.service.live
        with refused(Kind.NOT_READY):
            await stand.ask("refused")
        stand.engine.gate.set()
        while not stand.service.ready:
            await asyncio.sleep(0.01)
        same((await stand.ask("works")).embeddings, model.encode(["works"], Heads.DENSE))

    stood(model, work, engine_timeout=0.3)


def test_a_reload_drops_no_request(model: M3, odd_model_dir: Path) -> None:
    """Requests come all the time; each is answered by one model or the other."""
    import m3rt

    other = m3rt.load(odd_model_dir, "cpu")
    texts = ["one text", "and another one"]
    old, new = model.encode(texts, Heads.DENSE), other.encode(texts, Heads.DENSE)

    async def work(stand: Stand) -> None:
        widths: list[int] = []
        stop = False

        async def client() -> None:
            while not stop:
                found = (await stand.ask(*texts)).embeddings
                width = width_of(found)
                same(found, old if width == width_of(old) else new)
                widths.append(width)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await asyncio.sleep(0.2)
        await stand.service.swap(other)
        await asyncio.sleep(0.2)
        stop = True
        await asyncio.gather(*clients)
        assert (widths[0], widths[-1]) == (width_of(old), width_of(new))
        assert stand.engine.closed
        assert stand.service.model.manifest == other.manifest

    stood(model, work)


def test_the_end_waits_for_what_is_begun(model: M3) -> None:
    async def work(stand: Stand) -> None:
        busy = await stand.blocked()
        queued = stand.start("waits")
        await stand.waiting(1)
        ending = asyncio.create_task(stand.service.stop(10))
        await asyncio.sleep(0.05)
        assert not stand.service.ready
        stand.engine.gate.set()
        assert await ending
        for task, text in ((busy, "it is busy"), (queued, "waits")):
            same((await task).embeddings, model.encode([text], Heads.DENSE))
        with refused(Kind.NOT_READY):
            await stand.ask("too late")
        assert stand.engine.closed

    stood(model, work)


def test_the_end_does_not_wait_for_ever(model: M3) -> None:
    async def work(stand: Stand) -> None:
        await stand.blocked()
        queued = stand.start("waits")
        await stand.waiting(1)
        assert not await stand.service.stop(0.1)
        with refused(Kind.NOT_READY):
            await queued
        assert not stand.engine.closed  # it is at work

    stood(model, work)


def test_before_the_start_nothing_is_answered(model: M3) -> None:
    async def work() -> None:
        service = Service(Settings(Path("model")), model)
        assert not service.ready
        assert service.live
        with refused(Kind.NOT_READY):
            await service.embed(Ask(["a"], Heads.DENSE), Sender())
        await service.stop(1)

    asyncio.run(work())


def test_bounds_of_a_request(model: M3) -> None:
    async def work(stand: Stand) -> None:
        with refused(Kind.EMPTY):
            await stand.ask()
        with refused(Kind.TOO_MANY):
            await stand.ask(*"abcdefg")
        with refused(Kind.TOO_MANY):
            await stand.ask("word " * 30, "word " * 30)
        with refused(Kind.INVALID):
            await stand.service.embed(Ask(["a"], Heads.DENSE, max_length=1), Sender())
        with refused(Kind.INVALID):
            ask = Ask(["a"], Heads.DENSE, max_length=model.max_length + 1)
            await stand.service.embed(ask, Sender())
        with refused(Kind.TOKENIZER):
            await stand.ask("\ud800")
        assert not stand.engine.ran

    stood(model, work, max_client_batch_size=5, max_request_tokens=50)


def test_a_model_without_a_head_says_so(model: M3) -> None:
    lacking = M3(
        dataclasses.replace(model.manifest, heads=("dense",)), model.tokenizer, model.engine
    )

    async def work(stand: Stand) -> None:
        with refused(Kind.UNSUPPORTED):
            await stand.ask("a", heads=Heads.SPARSE)
        found = await stand.ask("a", heads=Heads.ALL)  # all that there are
        assert found.embeddings.sparse is None

    stood(lacking, work)


@pytest.mark.parametrize("cut", Cut)
def test_long_texts_are_cut_as_asked(model: M3, cut: Cut) -> None:
    text = " ".join(WORDS)
    whole = model.tokenize([text]).ids[0]
    ask = Ask([text, "short"], Heads.DENSE, max_length=8, cut=cut)

    async def work(stand: Stand) -> None:
        if cut == Cut.NONE:
            with refused(Kind.TOO_LONG):
                await stand.service.embed(ask, Sender())
            return
        found = await stand.service.embed(ask, Sender())
        kept = whole[:7] if cut == Cut.RIGHT else np.concatenate([whole[:1], whole[-7:-1]])
        expected = np.concatenate([kept, whole[-1:]])
        np.testing.assert_array_equal(found.tokens.ids[0], expected)
        assert found.embeddings.truncated.tolist() == [True, False]

    stood(model, work)


def test_token_ids_are_texts_too(model: M3) -> None:
    text = "the quick brown fox"
    ids = model.tokenize([text]).ids[0].tolist()
    direct = model.encode([text] * 4)

    async def work(stand: Stand) -> None:
        inputs = [ids, text, ids[1:-1], ids]
        found = await stand.service.embed(Ask(inputs, Heads.ALL), Sender())
        same(found.embeddings, direct)
        with refused(Kind.TOKENIZER):
            await stand.service.embed(Ask([[1 << 40]], Heads.DENSE), Sender())
        with refused(Kind.TOKENIZER):
            await stand.service.embed(Ask([[-1]], Heads.DENSE), Sender())

    stood(model, work)


def test_a_large_request_is_tokenised_beside_queries(model: M3) -> None:
    """What takes long is in threads of its own: a query is answered meanwhile."""
    texts = ["many words " * 30] * 900

    async def work(stand: Stand) -> None:
        large = stand.start(*texts, lane=Lane.BULK)
        await asyncio.sleep(0)
        same((await stand.ask("query")).embeddings, model.encode(["query"], Heads.DENSE))
        assert not large.done()
        same((await large).embeddings, model.encode(texts, Heads.DENSE))

    stood(model, work)


def test_threads_end_with_the_service(model: M3) -> None:
    async def work(stand: Stand) -> None:
        await stand.ask("a")

    before = threading.active_count()
    for _ in range(5):
        stood(model, work)
    time.sleep(0.2)
    assert threading.active_count() <= before + 1
