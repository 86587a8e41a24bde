"""Tokens of a large request, some at a time, so that the engine starts before all are there."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from m3rt.tokenizer import together
from m3rt.types import Tokens

T = TypeVar("T")

READY = 2  # windows that are there, or in the making, before they are asked for


def windows(chunks: Iterable[Tokens], least: int) -> Generator[Tokens]:
    """Put chunks of texts together until each window has so many tokens; the last may have fewer.

    Chunks are made in a thread of its own while earlier windows run. No more than two windows are
    made before they are asked for. To close this ends the thread, when it has finished the window
    that it is at.

    Args:
        chunks: what makes them runs in that thread; an error of it comes where its window would.
        least: tokens of a window.
    """
    yield from prefetched(gathered(chunks, least), READY)


def gathered(chunks: Iterable[Tokens], least: int) -> Iterator[Tokens]:
    """Put chunks together until they hold so many tokens."""
    parts: list[Tokens] = []
    count = 0
    for chunk in chunks:
        parts.append(chunk)
        count += len(chunk.ids.values)
        if count >= least:
            yield together(parts)
            parts, count = [], 0
    if parts:
        yield together(parts)


def alone(tokens: Tokens) -> Generator[Tokens]:
    """Give one window, which is there already."""
    yield tokens


def noted(windows: Iterable[Tokens], seen: list[Tokens]) -> Iterator[Tokens]:
    """Give windows on, and keep them: in the end they are the tokens of the request."""
    for tokens in windows:
        seen.append(tokens)
        yield tokens


def exceeds(texts: Iterable[str], tokens: int) -> bool:
    """Return whether texts may have more tokens than that: a token is a character or more."""
    sizes = itertools.accumulate(len(text) + 2 for text in texts)
    return any(size > tokens for size in sizes)


def prefetched(items: Iterator[T], most: int) -> Generator[T]:
    """Make items in another thread, up to so many before they are asked for."""
    pool = ThreadPoolExecutor(1, "m3rt-tokens")
    try:
        ready = deque(pool.submit(next, items, None) for _ in range(most))
        while (item := ready.popleft().result()) is not None:
            ready.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
