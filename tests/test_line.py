"""Whose turn it is, in simulated time: the queue has no clock of its own."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt.server.choice import SLACK, Chooser, width_of
from m3rt.server.fair import IDLE, Fair
from m3rt.server.items import Item, Request, State
from m3rt.server.line import Line, Terms
from m3rt.server.pace import Pace
from m3rt.server.work import Lane, Sender
from m3rt.types import Heads, Limits, Tokens, ragged

LOOP = asyncio.new_event_loop()
TOKEN = 1e-3  # seconds
PACKED = Limits(256, 8192, pads=False)
PADDED = Limits(256, 512, pads=True, widths=(16, 64, 256, 512), rows=(8, 4, 2, 1))


@pytest.fixture(autouse=True, scope="module")
def _loop() -> Iterator[None]:
    yield
    LOOP.close()


def request_of(
    lengths: Sequence[int],
    client: str = "a",
    lane: Lane = Lane.INTERACTIVE,
    at: float = 0.0,
    heads: Heads = Heads.DENSE,
    deadline: float | None = None,
) -> list[Item]:
    """The items of one request."""
    ids = [np.zeros(length, np.int32) for length in lengths]
    tokens = Tokens(ragged(ids, np.int32), np.zeros(len(ids), np.bool_))
    sender = Sender(client, lane, deadline)
    count = len(ids)
    done: asyncio.Future[None] = LOOP.create_future()
    request = Request(tokens, heads, lane, sender, done, at, [None] * count, count)
    items = [Item(row, heads, lane, client, len(row) * TOKEN, at) for row in ids]
    for place, item in enumerate(items):
        item.waiters.append((request, place))
    return items


def line_of(
    limits: Limits = PACKED, terms: Terms | None = None, start: float = 0.2, token: float = TOKEN
) -> Line:
    """A line before an engine that takes so long for any batch, and so long for a token."""
    pace = Pace(limits.max_tokens)
    for tokens in (1, 16, 64, 128, 256, 8192):
        pace.learn(tokens, start + tokens * token)
    terms = terms or Terms()
    return Line(Chooser(limits, pace, terms.quantum), terms)


def drained(
    line: Line, now: float = 0.0, token: float = TOKEN
) -> Iterator[tuple[float, list[Item]]]:
    """Run all that waits, one batch after another; gives when each begins."""
    while items := line.take(now):
        yield now, items
        now += sum(item.length for item in items) * token


def test_an_empty_line_gives_nothing() -> None:
    assert line_of().take(0.0) == []


def test_what_fits_runs_together_at_once() -> None:
    line = line_of()
    line.push(request_of([10, 20, 30]))
    assert [item.length for item in line.take(0.0)] == [10, 20, 30]
    assert len(line) == line.tokens == 0


def test_a_long_text_runs_alone_and_is_not_passed_over() -> None:
    line = line_of()
    line.push(request_of([5000, 10]))
    assert [item.length for item in line.take(0.0)] == [5000]
    assert [item.length for item in line.take(0.0)] == [10]


def test_clients_share_whoever_sends_more() -> None:
    """One sends a hundred times as much; both have the same of the engine while both wait."""
    line = line_of()
    for _ in range(100):
        line.push(request_of([100] * 10, "greedy"))
    for _ in range(10):
        line.push(request_of([100], "modest"))
    ran = [item.client for _, items in drained(line) for item in items]
    assert Counter(ran[:20]) == {"greedy": 10, "modest": 10}


def test_nobody_saves_up_turns() -> None:
    line = line_of()
    line.push(request_of([100] * 50, "busy"))
    for _ in range(20):
        line.take(0.0)
    line.push(request_of([100] * 50, "late"))
    ran = [item.client for _, items in drained(line) for item in items]
    assert abs(Counter(ran[:20])["late"] - 10) <= 1


def test_a_query_does_not_wait_for_its_own_clients_bulk() -> None:
    line = line_of()
    line.push(request_of([200] * 100))
    line.take(0.0)
    line.push(request_of([10]))
    first, second = line.take(0.0), line.take(0.0)
    assert 10 in [item.length for item in (*first, *second)]


def test_interactive_texts_come_first() -> None:
    line = line_of()
    line.push(request_of([200] * 5, lane=Lane.BULK))
    line.push(request_of([200] * 2))
    lanes = [items[0].lane for _, items in drained(line)]
    assert lanes == [Lane.INTERACTIVE] * 2 + [Lane.BULK] * 5


def test_aged_bulk_texts_get_their_share_and_no_more() -> None:
    """Interactive texts come as fast as they run, for ever."""
    terms = Terms(ageing=1.0, share=0.25)
    line = line_of(terms=terms)
    line.push(request_of([200] * 200, "b", Lane.BULK))
    now, ran = 0.0, []
    for _ in range(400):
        line.push(request_of([200], "a", at=now))
        items = line.take(now)
        now += 0.2
        ran.append((now, items[0].lane))
    young = [lane for at, lane in ran if at < terms.ageing]
    aged = [lane for at, lane in ran if at > 2 * terms.ageing]
    assert Lane.BULK not in young
    assert Counter(aged)[Lane.BULK] / len(aged) == pytest.approx(0.25, abs=0.03)


def test_bulk_batches_are_short_beside_interactive_traffic() -> None:
    line = line_of(terms=Terms(quantum=0.255))
    line.push(request_of([20] * 40, lane=Lane.BULK))
    assert len(line.take(100.0)) == 12  # nobody interactive came lately: as many as fit
    line.push(request_of([5], at=100.0))
    line.take(100.0)
    assert len(line.take(100.1)) == 3  # what the first takes alone, and a quarter more
    line = line_of(terms=Terms(quantum=0.3))
    line.push(request_of([20] * 40, lane=Lane.BULK))
    line.push(request_of([5], at=100.0))
    line.take(100.0)
    assert len(line.take(100.1)) == 5  # the quantum: 100 tokens
    assert len(line.take(200.0)) == 12


def test_a_batch_grows_no_further_than_it_pays() -> None:
    """Where tokens cost the same however many there are, nobody waits for another's."""
    line = line_of(start=0.0)
    line.push(request_of([20] * 3))
    assert [len(items) for _, items in drained(line)] == [1, 1, 1]
    line = line_of(start=0.01)
    line.push(request_of([20] * 30))
    assert len(line.take(0.0)) == 12 // 2  # 128 tokens have 90 % of the speed


def test_a_batch_ends_before_its_deadlines() -> None:
    line = line_of()
    line.push(request_of([20] * 10, deadline=0.3))
    assert len(line.take(0.0)) == 5  # 0.2 s, and 0.1 s for 100 tokens
    line = line_of()
    line.push(request_of([20]))
    line.push(request_of([20], deadline=0.25))
    line.push(request_of([20]))
    assert len(line.take(0.0)) == 3  # what the first one alone takes, a quarter more may always
    line = line_of()
    line.push(request_of([200], deadline=0.1))
    assert len(line.take(0.0)) == 1  # it may be late: estimates are not always right


def test_a_bulk_text_longer_than_the_quantum_still_runs() -> None:
    line = line_of()
    line.push(request_of([5]))
    line.push(request_of([250], lane=Lane.BULK))
    assert [item.length for _, items in drained(line) for item in items] == [5, 250]


def test_texts_with_the_same_heads_run_together_first() -> None:
    line = line_of()
    line.push(request_of([100], heads=Heads.DENSE))
    line.push(request_of([100], heads=Heads.ALL))
    line.push(request_of([100], heads=Heads.DENSE))
    assert [item.heads for item in line.take(0.0)] == [Heads.DENSE] * 2
    line.push(request_of([100], heads=Heads.DENSE))
    assert len(line.take(0.0)) == 2  # where there is room, others come along


def test_what_nobody_wants_does_not_run() -> None:
    line = line_of()
    gone, late, kept = request_of([10]), request_of([11], deadline=1.0), request_of([12])
    for items in (gone, late, kept):
        line.push(items)
    gone[0].waiters[0][0].done.cancel()
    assert [item.length for item in line.take(2.0)] == [12]
    assert gone[0].state == late[0].state == State.DONE
    assert len(line) == 0


def test_a_text_two_wait_for_runs_while_one_still_wants_it() -> None:
    line = line_of()
    items = request_of([10], deadline=1.0)
    other = request_of([10])[0].waiters[0]
    items[0].waiters.append(other)
    line.push(items)
    assert line.take(2.0) == items


def test_what_cannot_be_ready_in_time_lets_others_run() -> None:
    line = line_of()  # a text of 20 tokens takes 0.22 s
    hopeless, fine = request_of([20], deadline=0.1), request_of([20], deadline=0.5)
    line.push(hopeless)
    line.push(fine)
    assert line.take(0.0) == fine
    assert hopeless[0].state == State.DONE
    line.push(request_of([20], deadline=0.1))
    assert len(line.take(0.0)) == 1  # nothing else waits


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(2, 512), min_size=1, max_size=6),
            st.sampled_from("abc"),
            st.sampled_from(Lane),
            st.sampled_from([Heads.DENSE, Heads.SPARSE, Heads.ALL]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([PACKED, PADDED]),
)
def test_all_run_once_within_the_limits(
    requests: list[tuple[list[int], str, Lane, Heads]], limits: Limits
) -> None:
    line = line_of(limits)
    pushed = []
    for lengths, client, lane, heads in requests:
        items = request_of(lengths, client, lane, heads=heads)
        line.push(items)
        pushed += items
    ran = []
    for _, items in drained(line):
        ran += items
        lengths = [item.length for item in items]
        width = width_of(max(lengths), limits)
        cost = width * len(items) if limits.pads else sum(lengths)
        assert len(items) == 1 or cost <= limits.max_tokens
        if limits.pads:
            place = limits.widths.index(width)
            assert len(items) <= limits.rows[place]
            assert cost <= SLACK * sum(width_of(length, limits) for length in lengths)
    assert sorted(map(id, ran)) == sorted(map(id, pushed))
    assert len(line) == line.tokens == 0
    assert all(item.state == State.RUNNING for item in pushed)


def test_the_estimate_of_a_wait_is_near_what_it_is() -> None:
    """Against runs of the same line. It may be too long: a short text fills what others leave."""
    errors = []
    for seed in range(300):
        rng = random.Random(seed)
        line = line_of()
        for n in range(rng.randint(1, 30)):
            texts = [rng.randint(5, 60)] * rng.randint(1, 5)
            line.push(request_of(texts, rng.choice("abcd"), at=n))
        new = [rng.randint(5, 60)] * rng.randint(1, 3)
        estimate = line.ahead("a", Lane.INTERACTIVE, sum(new) * TOKEN, new[-1] * TOKEN)
        items = request_of(new, "a")
        line.push(items)
        last = max(now for now, batch in drained(line) if any(item in batch for item in items))
        errors.append(estimate - last)
    batch = PACKED.max_tokens * TOKEN
    assert min(errors) > -1.5 * batch
    assert np.percentile(errors, 90) < batch
    assert abs(np.median(errors)) < 0.5 * batch


def test_idle_clients_are_forgotten() -> None:
    fair = Fair()
    fair.push(request_of([10], "waits"))
    for n in range(3 * IDLE):
        items = request_of([10], f"client {n}")
        fair.push(items)
        fair.take(items)
    assert len(fair._clients) <= IDLE + 1
    assert [item.client for item in fair.ordered()] == ["waits"]
    fair.drop(list(fair.ordered()))
    assert not fair._clients
    assert fair.cost == 0.0


def test_order_is_the_same_whenever_it_is_asked() -> None:
    fair = Fair()
    for n in range(20):
        fair.push(request_of([n + 2, n + 3], f"client {n % 3}"))
    first = list(fair.ordered())
    assert first == list(fair.ordered())
    some = list(itertools.islice(fair.ordered(), 7))
    fair.take(some)
    assert list(fair.ordered()) == first[7:]


def test_the_pace_is_learned_and_follows() -> None:
    pace = Pace(512)
    assert pace.batch(100) > 0
    for tokens in (16, 64, 512):
        pace.learn(tokens, 0.01 + tokens * 1e-3)
    assert pace.batch(4) == pytest.approx(0.026)  # all weights are read for the shortest text, too
    assert pace.batch(64) == pytest.approx(0.074)
    assert pace.batch(288) == pytest.approx(0.298)
    assert pace.batch(1024) == pytest.approx(2 * 0.522)
    assert pace.knee == 512
    assert pace.text(51) == pytest.approx(pace.batch(510) / 10)
    for _ in range(30):
        pace.learn(512, 1.0)  # the machine got slower
    assert pace.batch(512) == pytest.approx(1.0, rel=0.01)
