"""TensorRT on NVIDIA GPUs: rectangles of ids through a strongly typed engine."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from m3rt.engines.padding import pad
from m3rt.engines.trt.profiles import Profile
from m3rt.engines.trt.rectangles import Rectangles, unpadded
from m3rt.engines.trt.session import Session
from m3rt.types import Batch, Heads, Raw


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
            found = {name: slot.array(layout[name]) for name in heads.names}
            return unpadded(found, batch.tokens.starts, mask)  # copies: it will be written again
