"""Which texts run together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m3rt.types import Batch, Limits, Offsets, Ragged, offsets


def batches(tokens: Ragged[np.int32], limits: Limits) -> Iterator[Batch]:
    """Group texts of like length, longest first, within the engine's limits.

    Longest first, so that memory is short at the start or never, and the time left is
    over-estimated rather than under-estimated. A batch costs no more for the texts left: sums over
    all of them are made once.
    """
    order = np.argsort(-tokens.lengths, kind="stable")
    lengths = tokens.lengths[order]
    places = np.searchsorted(np.asarray(limits.widths, np.int64), lengths)
    alone = widths_of(lengths, places, limits)
    ends, filled = offsets(lengths), offsets(alone)
    first = 0
    while first < len(order):
        width = int(alone[first])
        count = fitting(width, ends, first, limits)
        if places[first] < len(limits.rows):
            count = min(count, limits.rows[places[first]])
        # texts get shorter, so once the rectangle is too empty it stays so
        rectangles = width * np.arange(1, count + 1)
        needed = filled[first + 1 : first + count + 1] - filled[first]
        count = max(1, int((rectangles <= limits.slack * needed).sum()))
        rows = order[first : first + count]
        yield Batch(tokens.take(rows), rows, width)
        first += count


def widths_of(lengths: Offsets, places: Offsets, limits: Limits) -> Offsets:
    """Return the width that each text has in a batch of its own, from its place in the widths."""
    if not limits.widths:
        return lengths
    widths = np.asarray(limits.widths, np.int64)
    last = len(widths) - 1
    return np.where(places <= last, widths[np.minimum(places, last)], lengths)


def fitting(width: int, ends: Offsets, first: int, limits: Limits) -> int:
    """Return how many texts from the first max_tokens allows in a batch; at most all, at least one.

    Args:
        width: of the batch.
        ends: where each text starts, texts laid end to end, and where the last one ends.
        first: the longest text of the batch.
        limits: the engine's.
    """
    if limits.pads:
        return min(len(ends) - 1 - first, max(1, limits.max_tokens // max(1, width)))
    last = np.searchsorted(ends, ends[first] + limits.max_tokens, side="right") - 1
    return max(1, int(last) - first)
