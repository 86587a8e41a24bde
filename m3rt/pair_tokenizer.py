"""Pairs of texts to token ids, as FlagEmbedding's reranker makes them.

REFERENCE: FlagEmbedding 1.4.2, inference/reranker/encoder_only/base.py, which calls
prepare_for_model of transformers 4.57. Each text is tokenised and cut by itself, then joined:
``<s> query </s> </s> document </s>``; what is still too long loses the end of the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from m3rt.errors import InputError
from m3rt.tokenizer import Tokenizer, check_unicode, pieces
from m3rt.types import Ints, Tokens, ragged

Pair = Sequence[str]  # query, document

SIDES = ("query", "document")


class PairTokenizer:
    """Joins and cuts ids itself: the tokenizers library keeps truncation off, see Tokenizer.

    One case differs from the reference. A query that fills max_length leaves no room for the
    document; there, nothing is cut and the pair is longer than max_length. Here the query is cut
    until one token of the document fits.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._opening, self._between, self._closing = tokenizer.around_pairs()

    @property
    def specials(self) -> int:
        """Number of special tokens of a pair."""
        return len(self._opening) + len(self._between) + len(self._closing)

    @property
    def min_length(self) -> int:
        """Fewest tokens a pair can be cut to: the special ones, and one of each text."""
        return self.specials + 2

    def __call__(self, pairs: Sequence[Pair], max_length: int, query_max_length: int) -> Tokens:
        """Return the ids of each pair, special tokens included, at most max_length each.

        A text that is in many pairs is tokenised once.

        Args:
            pairs: query and document each.
            max_length: tokens of a pair, at least min_length.
            query_max_length: tokens of a query, special tokens aside, at least 1.

        Raises:
            InputError: an item is not a pair of str, or holds a lone surrogate.
        """
        check_pairs(pairs)
        return self._joined(pairs, max_length, query_max_length)

    def chunks(
        self, pairs: Sequence[Pair], max_length: int, query_max_length: int, characters: int
    ) -> Iterator[Tokens]:
        """Tokenise some pairs at a time, and give what a call gives for them, in order.

        Args:
            pairs: of which check_pairs has found nothing to refuse.
            max_length: see a call.
            query_max_length: see a call.
            characters: of some pairs, with two for each; one pair may be longer.

        Raises:
            InputError: a text holds a lone surrogate; names its pair's place among all.
        """
        for some in pieces([sum(map(len, pair)) for pair in pairs], characters):
            yield self._joined(pairs[some], max_length, query_max_length, some.start)

    def _joined(
        self, pairs: Sequence[Pair], max_length: int, query_max_length: int, before: int = 0
    ) -> Tokens:
        sides = [list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1)]
        try:
            queries, documents = (
                dict(zip(texts, self._tokenizer.bare(texts, most), strict=True))
                for texts, most in zip(sides, (query_max_length, max_length), strict=True)
            )
        except InputError:  # counts texts, where the caller counts pairs
            for i, pair in enumerate(pairs, before):
                for name, text in zip(SIDES, pair, strict=True):
                    check_unicode(text, f"the {name} of pair {i}")
            raise
        room = max_length - self.specials
        rows: list[Ints] = []
        cut: list[bool] = []
        for query, document in pairs:
            first, first_cut = queries[query]
            second, second_cut = documents[document]
            excess = len(first) + len(second) > room
            if excess:
                first_cut |= len(first) > room - min(1, len(second))
                first = first[: room - min(1, len(second))]
                second = second[: room - len(first)]
            parts = (self._opening, first, self._between, second, self._closing)
            rows.append(np.concatenate(parts))
            cut.append(first_cut or second_cut or excess)
        return Tokens(ragged(rows, np.int32), np.array(cut, np.bool_))


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Refuse what is not a sequence of pairs of str.

    Raises:
        InputError: with the place and the type found.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InputError(
            f"expected a list of (query, document), found {type(pairs).__name__}: pass "
            "[(query, document)]"
        )
    for i, pair in enumerate(pairs):
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence):
            raise InputError(
                f"pair {i} is {type(pair).__name__}, expected (query, document); for one pair "
                "pass [(query, document)]"
            )
        if len(pair) != 2:
            raise InputError(f"pair {i} has {len(pair)} items, expected a query and a document")
        for name, text in zip(SIDES, pair, strict=True):
            if not isinstance(text, str):
                raise InputError(f"the {name} of pair {i} is {type(text).__name__}, expected str")
