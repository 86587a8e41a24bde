"""TensorRT on NVIDIA GPUs: rectangles of ids through a strongly typed engine."""

from __future__ import annotations

import contextlib
import queue
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from m3rt.engines.cuda import OutOfMemoryError
from m3rt.engines.padding import pad, unpad
from m3rt.engines.trt.profiles import Profile, limits
from m3rt.engines.trt.session import PATIENCE, Session
from m3rt.engines.trt.slots import Place, Slot
from m3rt.errors import EngineError
from m3rt.types import Batch, Bools, Floats, Heads, Ragged, Raw, offsets


class Typed:
    """A strongly typed engine. It takes any batch: what does not fit runs in parts."""

    def __init__(
        self, name: str, session: Session, profiles: Sequence[Profile], longest: int, pad_id: int
    ) -> None:
        self.name = name
        self.limits = limits(profiles, longest, len(session.slots))
        self._session = session
        self._profiles = tuple(profiles)
        self._rows = dict(zip(self.limits.widths, self.limits.rows, strict=True))
        self._pad_id = pad_id
        self._full: float = np.inf  # tokens for which memory was short
        self._idle: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in session.slots:
            self._idle.put(slot)
        # at exit at the latest
        self._release = weakref.finalize(self, release, session, self._idle)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        texts, width = len(batch.rows), self._width(int(batch.tokens.lengths.max()))
        tokens = texts * width
        if texts > 1 and (texts > self._rows[width] or tokens >= self._full):
            return self._halves(batch, heads)
        try:
            return self._step(Batch(batch.tokens, batch.rows, width), heads)
        except OutOfMemoryError as error:
            self._full = min(self._full, tokens)
            if texts == 1:
                raise EngineError(
                    f"a text of {len(batch.tokens.values)} tokens does not fit: {error}; "
                    "end what else uses the device, or encode with a smaller max_length"
                ) from error
        return self._halves(batch, heads)

    def warm_up(self) -> None:
        """Run each profile once, at the shape it is best at: the first run loads its kernels."""
        for profile in self._profiles:
            texts, width = profile.best
            width = min(width, self.limits.max_length)
            if not profile.holds(texts, width):
                continue  # for longer texts than the model takes
            ids = np.full(texts * width, self._pad_id, np.int32)
            tokens = Ragged(ids, offsets([width] * texts))
            self.run(Batch(tokens, np.arange(texts), width), Heads(0))

    def close(self) -> None:
        """Give back the device's memory; the engine runs no more."""
        self._release()

    def _width(self, longest: int) -> int:
        """Return the width to pad to."""
        if (place := bisect_left(self.limits.widths, longest)) < len(self.limits.widths):
            return self.limits.widths[place]
        raise EngineError(
            f"a text of {longest} tokens, and no profile of {self.name} takes more than "
            f"{self.limits.max_length}: encode with a max_length of at most that"
        )

    def _halves(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch in two parts, one after the other."""
        middle = len(batch.rows) // 2
        parts = []
        for rows in np.split(np.arange(len(batch.rows)), [middle]):
            tokens = batch.tokens.take(rows)
            part = Batch(tokens, batch.rows[rows], int(tokens.lengths.max()))
            parts.append(self.run(part, heads))
        return join(parts)

    def _step(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch that a profile holds."""
        index = self._profile(len(batch.rows), batch.width)
        ids, mask = pad(batch, self._pad_id)
        with self._slot() as slot:
            layout = self._session.enqueue(slot, index, ids, mask, heads.names)
            slot.downloaded.wait()  # while others enqueue
            return fetch(slot, layout, batch.tokens.starts, mask, heads)

    def _profile(self, texts: int, width: int) -> int:
        """Return the profile whose bounds are closest."""
        able = [i for i, profile in enumerate(self._profiles) if profile.holds(texts, width)]
        return min(able, key=lambda i: int(np.prod(self._profiles[i].most)))

    @contextlib.contextmanager
    def _slot(self) -> Iterator[Slot]:
        """Lend a slot; callers beyond their number wait."""
        slot = self._idle.get()
        try:
            yield slot
        except BaseException:
            self._session.drain()  # its next user must find it idle
            raise
        finally:
            self._idle.put(slot)


def release(session: Session, idle: queue.SimpleQueue[Slot]) -> None:
    """Give back a session, when its callers have brought back their slots."""
    back = []
    with contextlib.suppress(queue.Empty):
        for _ in session.slots:
            back.append(idle.get(timeout=PATIENCE))
    session.release()
    for slot in back:
        idle.put(slot)  # who comes later is told that it was closed, and does not wait


def fetch(
    slot: Slot, layout: Mapping[str, Place], starts: np.ndarray[Any, Any], mask: Bools, heads: Heads
) -> Raw:
    """Take the outputs from a slot, as copies: it will be written again."""

    def found(head: Heads) -> Any:
        return slot.array(layout[head.names[0]]) if head in heads else None

    dense, weights, colbert, scores = map(
        found, (Heads.DENSE, Heads.SPARSE, Heads.COLBERT, Heads.SCORE)
    )
    rows = None
    if colbert is not None:
        # float16 to float32 for real tokens alone
        values = np.empty((int(starts[-1]), colbert.shape[-1]), np.float32)
        rows = np.split(values, starts[1:-1])
        for row, text in zip(rows, colbert, strict=True):
            row[:] = text[: len(row)]
    return Raw(
        dense=None if dense is None else dense.copy(),
        # Copied to the host for padding, too: 4 bytes a token are nothing next to the 2048 of
        # ColBERT vectors, and alone not worth a kernel that leaves padding out.
        weights=None if weights is None else unpad(weights, mask),
        colbert=rows,
        scores=None if scores is None else scores.copy(),
    )


def join(parts: Sequence[Raw]) -> Raw:
    """Put the results of a batch's parts together."""

    def whole(arrays: list[Floats | None]) -> Floats | None:
        found = [array for array in arrays if array is not None]
        return np.concatenate(found) if found else None

    lists = [part.colbert for part in parts if part.colbert is not None]
    return Raw(
        dense=whole([part.dense for part in parts]),
        weights=whole([part.weights for part in parts]),
        colbert=[row for rows in lists for row in rows] if lists else None,
        scores=whole([part.scores for part in parts]),
    )
