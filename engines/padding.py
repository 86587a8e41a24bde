"""To and from the rectangles that padded engines run."""

from __future__ import annotations

import numpy as np

from m3rt.types import Batch, Bools, Floats, Ints


def pad(batch: Batch, pad_id: int) -> tuple[Ints, Bools]:
    """Return ids and mask, each (n, width)."""
    mask = np.arange(batch.width) < batch.tokens.lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int32)
    ids[mask] = batch.tokens.values
    return ids, mask


def unpad(values: Floats, mask: Bools) -> Floats:
    """Return the values of real tokens: (n, width) becomes (t,)."""
    kept: Floats = values[mask]
    return kept


def cut(values: Floats, batch: Batch) -> list[Floats]:
    """Return each text's part of (n, width, d), as views."""
    return [row[:length] for row, length in zip(values, batch.tokens.lengths, strict=True)]
