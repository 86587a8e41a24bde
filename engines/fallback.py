"""Texts for which an engine gave NaN or Inf, computed again by another."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator

import numpy as np

from m3rt.errors import EngineError
from m3rt.heads import not_finite
from m3rt.plan import batches
from m3rt.types import Batch, Engine, Heads, Offsets, Raw

LOG = logging.getLogger("m3rt")  # m3rt.records says where a text stands in its file


class Fallback:
    """An engine, and a second one for the texts that it fails on.

    fp16 reaches 65504, and a few texts may go beyond. All that was asked for of such a text comes
    from the second engine, in the place of what the first one gave. If that is NaN or Inf, too, it
    stays, and is refused as it always is.

    Args:
        main: runs every batch; its name and limits are this engine's.
        second: the name of the other one.
        load: opens it, which is done for the first text that needs it.
    """

    def __init__(self, main: Engine, second: str, load: Callable[[], Engine]) -> None:
        self.name = main.name
        self.limits = main.limits
        self.second = second
        self.recomputed = 0  # texts, since this was opened
        self._main = main
        self._load = load
        self._opened: Engine | None = None
        self._lock = threading.Lock()

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        raw = self._main.run(batch, heads)
        bad = np.unique(np.concatenate([*not_finite(batch, raw).values(), np.empty(0, np.int64)]))
        if not len(bad):
            return raw
        for part, places in self._batches(batch, bad):
            raw = patched(raw, batch, self._engine().run(part, heads), part, places)
        with self._lock:
            self.recomputed += len(bad)
        texts = ", ".join(map(str, sorted(batch.rows[bad].tolist())))
        LOG.warning(
            "%s gave NaN or Inf for %d text(s) of the request: %s; computed again by %s",
            *(self.name, len(bad), texts, self.second),
        )
        return raw

    def _engine(self) -> Engine:
        with self._lock:
            if self._opened is None:
                self._opened = self._load()
            return self._opened

    def _batches(self, batch: Batch, bad: Offsets) -> Iterator[tuple[Batch, Offsets]]:
        """Give batches for the second engine, and where their texts stand in the first one's."""
        limits, lengths = self._engine().limits, batch.tokens.lengths[bad]
        if lengths.max() > limits.max_length:
            text = int(batch.rows[bad[lengths.argmax()]])
            raise EngineError(
                f"{self.name} gave NaN or Inf for text {text}, which has {lengths.max()} tokens; "
                f"the fallback {self.second} takes at most {limits.max_length}: choose another"
            )
        for part in batches(batch.tokens.take(bad), limits):
            places = bad[part.rows]
            yield dataclasses.replace(part, rows=batch.rows[places]), places


def patched(raw: Raw, batch: Batch, again: Raw, part: Batch, places: Offsets) -> Raw:
    """Return what an engine gave, with some texts' outputs replaced; nothing is written in place.

    Args:
        raw: outputs of the batch.
        batch: what they are of.
        again: outputs of the texts to replace.
        part: what those are of.
        places: where these texts stand in the batch.
    """
    dense, weights, colbert, scores = raw.dense, raw.weights, raw.colbert, raw.scores
    if dense is not None and again.dense is not None:
        dense = dense.copy()
        dense[places] = again.dense
    if scores is not None and again.scores is not None:
        scores = scores.copy()
        scores[places] = again.scores
    if weights is not None and again.weights is not None:
        weights = weights.copy()
        starts, parts = batch.tokens.starts, part.tokens.starts
        for i, place in enumerate(places):
            weights[starts[place] : starts[place + 1]] = again.weights[parts[i] : parts[i + 1]]
    if colbert is not None and again.colbert is not None:
        colbert = list(colbert)
        for place, rows in zip(places, again.colbert, strict=True):
            colbert[place] = rows.astype(colbert[place].dtype, copy=False)
    return Raw(dense, weights, colbert, scores, raw.finite & again.finite)
