"""TensorRT on NVIDIA GPUs: rectangles of ids through a strongly typed engine."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from m3rt.engines.padding import pad, unpad
from m3rt.engines.slots import Layout, Slot
from m3rt.engines.trt.profiles import Profile
from m3rt.engines.trt.rectangles import Rectangles
from m3rt.engines.trt.session import Session
from m3rt.halves import widen
from m3rt.types import Batch, Bools, Heads, Raw


class Typed(Rectangles):
    """A strongly typed engine."""

    def __init__(
        self, name: str, session: Session, profiles: Sequence[Profile], longest: int, pad_id: int
    ) -> None:
        super().__init__(name, profiles, longest, pad_id, len(session.slots))
        self._session = session
        self._close = weakref.finalize(self, session.close)  # at exit at the latest

    def close(self) -> None:
        """Give back the device's memory; the engine runs no more."""
        self._close()

    def _step(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch that a profile holds."""
        index = self._profile(len(batch.rows), batch.width)
        ids, mask = pad(batch, self._pad_id)
        with self._session.lend() as slot:
            layout = self._session.enqueue(slot, index, ids, mask, heads.names)
            slot.downloaded.wait()  # while others enqueue
            return fetch(slot, layout, batch.tokens.starts, mask, heads)


def fetch(
    slot: Slot, layout: Layout, starts: np.ndarray[Any, Any], mask: Bools, heads: Heads
) -> Raw:
    """Take the outputs from a slot, as copies: it will be written again."""

    def found(head: Heads) -> Any:
        return slot.array(layout[head.names[0]]) if head in heads else None

    dense, weights, colbert, scores = map(
        found, (Heads.DENSE, Heads.SPARSE, Heads.COLBERT, Heads.SCORE)
    )
    rows, finite = None, Heads(0)
    if colbert is not None:
        # float16 to float32 for real tokens alone
        values = np.empty((int(starts[-1]), colbert.shape[-1]), np.float32)
        if widen(colbert.reshape(-1, colbert.shape[-1]), values, np.flatnonzero(mask)):
            finite = Heads.COLBERT
        rows = np.split(values, starts[1:-1])
    return Raw(
        dense=None if dense is None else dense.copy(),
        # Copied to the host for padding, too: 4 bytes a token are nothing next to the 2048 of
        # ColBERT vectors, and alone not worth a kernel that leaves padding out.
        weights=None if weights is None else unpad(weights, mask),
        colbert=rows,
        scores=None if scores is None else scores.copy(),
        finite=finite,
    )
