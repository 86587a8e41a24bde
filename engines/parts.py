"""A batch in parts, run one after the other, and their results put together."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from m3rt.engines.cuda import OutOfMemoryError
from m3rt.errors import EngineError
from m3rt.types import Batch, Offsets, Ragged, Raw, S, offsets


class Shrinking:
    """Runs batches, in halves where they are too large or the device's memory is short."""

    def __init__(self) -> None:
        self._full = math.inf  # tokens for which memory was short

    def run(
        self, batch: Batch, tokens: Callable[[Batch], float], step: Callable[[Batch], Raw]
    ) -> Raw:
        """Run a batch.

        Args:
            batch: what to run.
            tokens: what it takes, padding included; infinity: too large.
            step: runs what is not too large, at once.

        Raises:
            EngineError: one text alone does not fit.
        """
        texts, taken = len(batch.rows), tokens(batch)
        if texts == 1 or taken < self._full:
            try:
                return step(batch)
            except OutOfMemoryError as error:
                self._full = min(self._full, taken)
                if texts == 1:
                    raise EngineError(
                        f"a text of {len(batch.tokens.values)} tokens does not fit: {error}; "
                        "end what else uses the device, or encode with a smaller max_length"
                    ) from error
        parts = np.split(np.arange(texts), [texts // 2])
        return join(batch, [(part, self.run(take(batch, part), tokens, step)) for part in parts])


def take(batch: Batch, places: Offsets) -> Batch:
    """Return some texts of a batch as one of its own."""
    tokens = batch.tokens.take(places)
    return Batch(tokens, batch.rows[places], int(tokens.lengths.max()))


def join(batch: Batch, parts: Sequence[tuple[Offsets, Raw]]) -> Raw:
    """Put the results of a batch's parts together.

    Args:
        batch: the whole.
        parts: the places in the batch of each part's texts, and what the engine gave for them.
    """
    places = np.concatenate([part for part, _ in parts])
    back = np.argsort(places)
    raws = [raw for _, raw in parts]
    rows = [one for raw in raws if raw.colbert is not None for one in raw.colbert]
    weights = joined([raw.weights for raw in raws if raw.weights is not None])
    if weights is not None:
        starts = offsets(batch.tokens.lengths[places])
        weights = Ragged(weights, starts).take(back).values
    return Raw(
        dense=ordered([raw.dense for raw in raws if raw.dense is not None], back),
        weights=weights,
        colbert=[rows[i] for i in back] if rows else None,
        scores=ordered([raw.scores for raw in raws if raw.scores is not None], back),
        finite=functools.reduce(operator.and_, (raw.finite for raw in raws)),
    )


def ordered(arrays: Sequence[NDArray[S]], back: Offsets) -> NDArray[S] | None:
    """Put rows of texts end to end, in an order."""
    found = joined(arrays)
    return None if found is None else found[back]


def joined(arrays: Sequence[NDArray[S]]) -> NDArray[S] | None:
    """Put arrays end to end."""
    return np.concatenate(arrays) if arrays else None
