"""Which texts run together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m3rt.types import Batch, Limits, Ragged


def batches(tokens: Ragged[np.int32], limits: Limits) -> Iterator[Batch]:
    """Group texts of like length, longest first, within the engine's limits.

    Longest first, so that memory is short at the start or never, and the time left is
    over-estimated rather than under-estimated.
    """
    lengths = tokens.lengths
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        longest = int(lengths[order[0]])
        width = next((w for w in limits.widths if w >= longest), longest)
        cost = np.full(len(order), width) if limits.pads else lengths[order]
        count = max(1, int(np.searchsorted(np.cumsum(cost), limits.max_tokens, side="right")))
        # texts get shorter, so once the rectangle is too empty it stays so
        places = width * np.arange(1, count + 1)
        count = max(1, int((places <= limits.slack * np.cumsum(lengths[order[:count]])).sum()))
        rows, order = order[:count], order[count:]
        yield Batch(tokens.take(rows), rows, width)
