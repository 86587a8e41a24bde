"""Results of short texts, kept for when they come again."""

from __future__ import annotations

from collections import OrderedDict

from m3rt.types import Embeddings, Heads

LONGEST = 512  # tokens of a text that is kept: queries, not documents

Key = tuple[bytes, Heads]


class Cache:
    """Least recently used results, up to so many bytes. Used from one thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._kept: OrderedDict[Key, tuple[Embeddings, int]] = OrderedDict()

    def find(self, key: bytes, heads: Heads) -> Embeddings | None:
        """Return one text's results, if they are kept, with these heads exactly."""
        found = self._kept.get((key, heads))
        if found is None:
            return None
        self._kept.move_to_end((key, heads))
        return found[0]

    def keep(self, key: bytes, heads: Heads, found: Embeddings, place: int) -> None:
        """Keep a copy of one text's results out of a batch's."""
        size = len(key) // 4
        if not self.most or size > LONGEST or (key, heads) in self._kept:
            return
        one = copied(found, place)
        size = bytes_of(one) + len(key) + 512
        if size > self.most:
            return
        self._kept[key, heads] = one, size
        self.held += size
        while self.held > self.most:
            _, (_, freed) = self._kept.popitem(last=False)
            self.held -= freed


def copied(found: Embeddings, place: int) -> Embeddings:
    """Return one text's results, free of the batch's arrays."""
    one = found.take([place])
    if one.colbert is not None:
        one.colbert[0] = one.colbert[0].copy()
    return one


def bytes_of(one: Embeddings) -> int:
    """Return the bytes of one text's results."""
    size = 0 if one.dense is None else one.dense.nbytes
    if one.sparse is not None:
        size += one.sparse.ids.values.nbytes + one.sparse.weights.values.nbytes
    return size + sum(rows.nbytes for rows in one.colbert or [])
