"""When requests come: by chance, at a rate, whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import math
import select
import selectors
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


def poisson(rate: float, seconds: float, seed: int) -> Times:
    """Return the times of a Poisson process from 0 on, in seconds, ascending.

    Args:
        rate: arrivals a second, on average.
        seconds: all arrivals are before.
        seed: the same gives the same times.
    """
    draw = np.random.default_rng(seed)
    mean = rate * seconds
    some = int(mean + 6 * math.sqrt(mean)) + 16
    times = np.cumsum(draw.exponential(1 / rate, some))
    while times[-1] < seconds:
        more = draw.exponential(1 / rate, some)
        times = np.concatenate([times, times[-1] + np.cumsum(more)])
    return times[times < seconds]


def picks(shares: Sequence[float], sizes: Sequence[int], count: int, seed: int) -> NDArray[np.intp]:
    """Choose what each arrival brings: a group by its share, all of the group in turn.

    So what is on the way at the same time differs, as far as there are as many: a server may answer
    equal requests once.

    Args:
        shares: of each group; their sum need not be 1.
        sizes: how many there are in each group.
        count: arrivals.
        seed: the same gives the same choice.

    Returns:
        Numbers (count,), counted through the groups one after another.
    """
    draw = np.random.default_rng([seed, 1])
    share = np.asarray(shares, float)
    size = np.asarray(sizes)
    first = np.cumsum(size) - size
    group = draw.choice(len(size), count, p=share / share.sum())
    found = np.empty(count, np.intp)
    for number in range(len(size)):
        mine = np.flatnonzero(group == number)
        turn = draw.permutation(size[number])
        found[mine] = first[number] + turn[np.arange(len(mine)) % size[number]]
    return found


async def launch(
    times: Times, start: float, work: Callable[[int, float], Coroutine[Any, Any, None]]
) -> None:
    """Start a piece of work at each time, and return when all have ended.

    Args:
        times: seconds after start.
        start: on the clock of the event loop.
        work: is given the number of the arrival and its time on that clock; it must not raise.
    """
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    try:
        for number, after in enumerate(times.tolist()):
            due = start + after
            # behind, too, so that answers are read between
            await asyncio.sleep(max(0.0, due - loop.time()))
            task = loop.create_task(work(number, due))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.wait(set(running))
    finally:
        for task in set(running):
            task.cancel()


PUNCTUAL = sys.platform == "linux"
if sys.platform == "linux":

    class Punctual(selectors.EpollSelector):
        """Wakes up when it should: epoll counts in milliseconds, and would come up to one late."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait for events; see the base."""
            if timeout is not None and 0 < timeout < 0.05:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)


def event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose clock is fine enough for short gaps."""
    return asyncio.SelectorEventLoop(Punctual()) if PUNCTUAL else asyncio.new_event_loop()
