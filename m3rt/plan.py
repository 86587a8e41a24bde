"""Which texts run together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m3rt.types import Batch, Limits, Offsets, Ragged


def batches(tokens: Ragged[np.int32], limits: Limits) -> Iterator[Batch]:
    """Group texts of like length, longest first, within the engine's limits.

    Longest first, so that memory is short at the start or never, and the time left is
    over-estimated rather than under-estimated.
    """
    lengths = tokens.lengths
    order = np.argsort(-lengths, kind="stable")
    places = np.searchsorted(np.asarray(limits.widths, np.int64), lengths)
    alone = widths_of(lengths, places, limits)
    while len(order):
        width = int(alone[order[0]])
        count = fitting(width, lengths[order], limits)
        if places[order[0]] < len(limits.rows):
            count = min(count, limits.rows[places[order[0]]])
        # texts get shorter, so once the rectangle is too empty it stays so
        rectangles = width * np.arange(1, count + 1)
        full = rectangles <= limits.slack * np.cumsum(alone[order[:count]])
        count = max(1, int(full.sum()))
        rows, order = order[:count], order[count:]
        yield Batch(tokens.take(rows), rows, width)


def widths_of(lengths: Offsets, places: Offsets, limits: Limits) -> Offsets:
    """Return the width that each text has in a batch of its own, from its place in the widths."""
    if not limits.widths:
        return lengths
    widths = np.asarray(limits.widths, np.int64)
    last = len(widths) - 1
    return np.where(places <= last, widths[np.minimum(places, last)], lengths)


def fitting(width: int, lengths: Offsets, limits: Limits) -> int:
    """Return how many of these texts max_tokens allows in a batch; at most all, at least one."""
    if limits.pads:
        return min(len(lengths), max(1, limits.max_tokens // max(1, width)))
    return max(1, int(np.searchsorted(np.cumsum(lengths), limits.max_tokens, side="right")))
