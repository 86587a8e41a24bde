"""The unpadded graphs on a GPU: texts end to end, long ones in rectangles where that is faster."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m3rt.artifact import Manifest
from m3rt.engines.catalog import AHEAD
from m3rt.engines.cuda import OutOfMemoryError
from m3rt.engines.parts import Shrinking, join, take
from m3rt.engines.pipeline import Step
from m3rt.engines.slots import lay
from m3rt.engines.unpadded import ladder
from m3rt.engines.unpadded.feed import Feed, Positions, own, rectangles, varlen
from m3rt.engines.unpadded.files import FORMS
from m3rt.engines.unpadded.session import Session
from m3rt.types import Batch, Heads, Limits, Offsets, Ragged, Raw, offsets

VARLEN, RECTANGLES = FORMS

# Attention in rectangles: their widths are multiples of so many tokens, and at most so many of
# their places stand for each token, the rest being padding.
WIDTH = 256
PLACES = 1.125

TYPICAL = 512  # tokens of a text, of a step to warm up with
ROOM = 1.25  # of a slot, for each byte that such a step takes: one of short texts tells of more


@dataclass(frozen=True, slots=True)
class Kept:
    """What an engine keeps to; nothing here changes a result but in its last digits."""

    tokens: int  # of one step
    long: int | None  # tokens of a text from which on attention runs in rectangles; None: never


class Unpadded:
    """An engine without padding. It takes any batch: what does not fit runs in parts."""

    def __init__(
        self, name: str, session: Session, manifest: Manifest, positions: Positions, kept: Kept
    ) -> None:
        self.name = name
        self.limits = Limits(
            kept.tokens,
            manifest.max_length,
            pads=False,
            # attention keeps a number for each place of a rectangle of texts, and is told of each
            slack=8,
            parallel=len(session.slots),
            ahead=AHEAD * kept.tokens,
        )
        self._session = session
        self._manifest = manifest
        self._heads = manifest.head_flags
        self._positions = positions
        self._kept = kept
        self._shrinking = Shrinking()
        self._close = weakref.finalize(self, session.close)  # at exit at the latest

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        parts = list(self._parts(batch.tokens.lengths))
        if len(parts) == 1:
            return self._run(batch, heads, parts[0][0])
        found = [(places, self._run(take(batch, places), heads, form)) for form, places in parts]
        return join(batch, found)

    def warm_up(self) -> None:
        """Run a full step, for the device to give what that takes, and capture those of queries."""
        longest, full = self.limits.max_length, self.limits.max_tokens
        short = min(TYPICAL, longest)
        large = [self._batch(lengths) for lengths in ([short] * (full // short), [longest])]
        steps = [self._made(batch, self._heads, VARLEN) for batch in large]
        room = max(place.end for step in steps for place in step.layout.values())
        with contextlib.suppress(OutOfMemoryError):  # then slots grow, or batches are halved
            self._session.reserve(int(ROOM * room))
        for batch in large:
            self.run(batch, self._heads)
        for rung in ladder.QUERIES:
            for _ in range(2):  # a graph is captured when a shape comes again
                self.run(self._batch([rung]), self._heads)

    def _batch(self, lengths: Sequence[int]) -> Batch:
        """Return texts of so many padding ids."""
        ids = np.full(sum(lengths), self._positions.pad_id, np.int32)
        return Batch(Ragged(ids, offsets(lengths)), np.arange(len(lengths)), max(lengths))

    def close(self) -> None:
        """Give back the device's memory; the engine runs no more."""
        self._close()

    def _parts(self, lengths: Offsets) -> Iterator[tuple[str, Offsets]]:
        """Give the texts that run together, by their places in the batch, and in which form."""
        places = np.argsort(-lengths, kind="stable")
        count = 0 if self._kept.long is None else int((lengths >= self._kept.long).sum())
        while count:
            width = ladder.width(int(lengths[places[0]]), WIDTH)
            taken = np.cumsum(lengths[places[:count]])
            needed = width * np.arange(1, count + 1)
            fits = (needed <= PLACES * taken) & (needed <= self.limits.max_tokens)
            together = max(1, int(fits.sum()))  # texts get shorter: once too empty, it stays so
            yield RECTANGLES, np.sort(places[:together])
            places, count = places[together:], count - together
        if len(places):
            yield VARLEN, np.sort(places)

    def _run(self, batch: Batch, heads: Heads, form: str) -> Raw:
        """Run texts in one form."""
        return self._shrinking.run(
            batch, lambda part: len(part.tokens.values), lambda part: self._step(part, heads, form)
        )

    def _step(self, batch: Batch, heads: Heads, form: str) -> Raw:
        """Run texts at once."""
        step, wanted = self._made(batch, heads, form), heads & self._heads
        with self._session.lend() as slot:
            self._session.send(slot, step, wanted.names)
            slot.downloaded.wait()  # while others send
            found = {name: slot.array(step.layout[name]) for name in wanted.names}
            return own(found, batch)  # copies: it will be written again

    def _made(self, batch: Batch, heads: Heads, form: str) -> Step:
        """Return the step that runs texts at once."""
        feed = self._feed(batch, heads, form)
        inputs = {name: array for name, array in feed.arrays.items() if name != "grid"}
        host = {name: array for name, array in feed.arrays.items() if name == "grid"}
        given = [(name, array.dtype, array.shape) for name, array in inputs.items()]
        layout = lay([*given, *outputs(feed, self._manifest)])
        shapes = [size for array in inputs.values() for size in array.shape]
        return Step((FORMS.index(form), *shapes), len(inputs["input_ids"]), layout, inputs, host)

    def _feed(self, batch: Batch, heads: Heads, form: str) -> Feed:
        given = (batch, heads, self._heads, self._positions)
        if form == RECTANGLES:
            return rectangles(*given, width=ladder.width(batch.width, WIDTH))
        if (tokens := ladder.tokens(len(batch.tokens.values))) is None:
            return varlen(*given)
        return varlen(*given, tokens=tokens, texts=ladder.texts(len(batch.rows)))


def outputs(feed: Feed, manifest: Manifest) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Give name, type and shape of every output.

    ColBERT vectors come last, for they take nearly all the room: pinned memory ends before them
    where they are not wanted.
    """
    heads, single = manifest.head_flags, np.dtype(np.float32)
    if Heads.DENSE in heads:
        yield "dense", single, (feed.texts, manifest.hidden)
    if Heads.SCORE in heads:
        yield "score", single, (feed.texts,)
    if Heads.SPARSE in heads:
        yield "sparse", single, (feed.sparse,)
    if Heads.COLBERT in heads:
        yield "colbert", np.dtype(np.float16), (feed.colbert, manifest.colbert_dim or 0)
