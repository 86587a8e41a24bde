"""Scores of pairs of texts, each text encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from m3rt import score
from m3rt.runtime import M3

Pair = Sequence[str]  # query, passage

HELD = 2**19  # tokens whose ColBERT vectors are held at once: 2 GiB for BGE-M3


def scores(
    model: M3,
    pairs: Sequence[Pair],
    query_length: int,
    passage_length: int,
    weights: score.Weights = score.EQUAL,
) -> Iterator[score.Scores]:
    """Score query i against passage i, block by block of pairs, in order.

    A text is encoded once per block and length, however many pairs it is in. Blocks are such
    that memory stays bounded.

    Raises:
        InputError: not text.
        EngineError: the engine failed, or gave NaN or Inf.
    """
    lengths = (query_length, passage_length)
    for block in blocks(pairs, HELD // max(1, *lengths)):
        sides = [[pair[side] for pair in block] for side in (0, 1)]
        # per length, each text's place among those to encode
        places: dict[int, dict[str, int]] = {length: {} for length in lengths}
        for texts, length in zip(sides, lengths, strict=True):
            for text in texts:
                places[length].setdefault(text, len(places[length]))
        found = {
            length: model.encode(list(texts), max_length=length) for length, texts in places.items()
        }
        queries, passages = (
            found[length].take([places[length][text] for text in texts])
            for texts, length in zip(sides, lengths, strict=True)
        )
        yield score.pairs(queries, passages, weights)


def blocks(pairs: Sequence[Pair], most: int) -> Iterator[Sequence[Pair]]:
    """Cut into runs of pairs with at most ``most`` texts between them, of one pair at least."""
    start, texts = 0, set[str]()
    for i, pair in enumerate(pairs):
        if i > start and len(texts) + len(set(pair) - texts) > most:
            yield pairs[start:i]
            start, texts = i, set()
        texts.update(pair)
    yield pairs[start:]
