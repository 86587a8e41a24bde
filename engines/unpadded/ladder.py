"""The shapes that small steps are padded to, so that few CUDA graphs serve all of them."""

from __future__ import annotations

from bisect import bisect_left

from m3rt.engines.graphs import TOKENS

STEP = 8  # tokens; what a matrix product likes its rows in
RATIO = 1.2  # from rung to rung: 9 % of the tokens of a step are padding, in the mean


def rungs(most: int = TOKENS) -> tuple[int, ...]:
    """Return the numbers of tokens, ascending, the last one ``most``."""
    found = [STEP]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + STEP, int(found[-1] * RATIO) // STEP * STEP)))
    return tuple(found)


RUNGS = rungs()
QUERIES = tuple(rung for rung in RUNGS if rung <= 128)  # what a query has, captured beforehand


def tokens(count: int) -> int | None:
    """Return the rung for so many tokens; None: they are too many for a graph."""
    place = bisect_left(RUNGS, count)
    return RUNGS[place] if place < len(RUNGS) else None


def texts(count: int) -> int:
    """Return the rung for so many texts and one more, for padding: 2, 8, 32, 128 and so on.

    Steps are large: a text of no tokens costs next to nothing, a graph takes memory.
    """
    found = 2
    while found < count + 1:
        found *= 4
    return found


def width(longest: int, step: int) -> int:
    """Return the width of a rectangle: a multiple of a step, for each takes a plan of its own."""
    return -(-longest // step) * step
