"""The best documents of each query, kept while a collection passes by.

Ties: of two documents with the same score, the one that comes first in the collection comes first.
Letters in shapes: n queries, k places, m documents of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3rt.types import Bools, Floats, Offsets, S

NOTHING = -np.inf  # the score of no document
ROWS = 2**22  # scores sorted at once: some 64 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Documents by score, best first. Places after a query's last document hold -1 and -inf."""

    documents: Offsets  # (n, k) places in the collection
    scores: Floats  # (n, k)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def found(self) -> Bools:
        """Whether there is a document, (n, k)."""
        return self.documents >= 0

    def reordered(self, scores: Floats) -> Ranking:
        """Rank the same documents by other scores, (n, k)."""
        known = np.where(self.found, scores, NOTHING).astype(np.float32)
        # by place in the collection first, so that ties stand in its order
        order = np.argsort(np.where(self.found, self.documents, np.iinfo(np.int64).max), axis=1)
        better = np.argsort(-np.take_along_axis(known, order, 1), axis=1, kind="stable")
        order = np.take_along_axis(order, better, 1)
        return Ranking(
            np.take_along_axis(self.documents, order, 1), np.take_along_axis(known, order, 1)
        )


class Best:
    """Keeps the k best documents of n queries, and further scores of these alone."""

    def __init__(self, n: int, k: int, further: tuple[str, ...] = ()) -> None:
        self.documents = np.full((n, k), -1, np.int64)
        self.scores = np.full((n, k), NOTHING, np.float32)
        self.further = {name: np.full((n, k), np.nan, np.float32) for name in further}

    @property
    def ranking(self) -> Ranking:
        """What is best so far."""
        return Ranking(self.documents, self.scores)

    def enter(self, scores: Floats) -> Bools:
        """Return which of a block's documents would be among the best, (n, m)."""
        k = self.scores.shape[1]
        entering = np.zeros(scores.shape, np.bool_)
        for some in self._changed(scores):
            order = self._order(some, scores)
            rows, places = np.nonzero(order >= k)
            entering[some[rows], order[rows, places] - k] = True
        return entering & (scores > NOTHING)

    def add(self, scores: Floats, first: int, further: Mapping[str, Floats] | None = None) -> None:
        """Take in a block of documents that follow all others.

        Args:
            scores: (n, m); -inf is not taken in.
            first: place of the block's first document in the collection.
            further: (n, m) each, by name.
        """
        for some in self._changed(scores):
            order = self._order(some, scores)
            new = np.arange(first, first + scores.shape[1])
            documents = np.where(scores[some] > NOTHING, new, -1)
            self.documents[some] = self._merged(self.documents[some], documents, order)
            self.scores[some] = self._merged(self.scores[some], scores[some], order)
            for name, kept in self.further.items():
                kept[some] = self._merged(kept[some], (further or {})[name][some], order)

    def _changed(self, scores: Floats) -> list[Offsets]:
        """Return the queries for which a block has something better, in groups of bounded size."""
        if not scores.shape[1]:
            return []
        rows = np.flatnonzero(scores.max(axis=1) > self.scores[:, -1])
        width = self.scores.shape[1] + scores.shape[1]
        return [
            rows[i : i + max(1, ROWS // width)] for i in range(0, len(rows), max(1, ROWS // width))
        ]

    def _order(self, rows: Offsets, scores: Floats) -> Offsets:
        """Return the best of what is kept, numbered from 0, and of a block, which follows."""
        both = np.concatenate([self.scores[rows], scores[rows]], axis=1)
        # stable: what is kept comes from before the block, and stands before it where scores tie
        order: Offsets = np.argsort(-both, axis=1, kind="stable")[:, : self.scores.shape[1]]
        return order

    @staticmethod
    def _merged(kept: NDArray[S], new: NDArray[S], order: Offsets) -> NDArray[S]:
        return np.take_along_axis(np.concatenate([kept, new], axis=1), order, axis=1)
