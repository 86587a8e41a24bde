"""Pairs of texts to scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m3rt import steps
from m3rt.artifact import Manifest
from m3rt.errors import InputError
from m3rt.heads import check_finite
from m3rt.pair_tokenizer import Pair, PairTokenizer, check_pairs
from m3rt.tokenizer import CHARACTERS, Tokenizer, check_texts, together
from m3rt.types import Batch, Bools, Engine, Floats, Heads, Offsets, Tokens
from m3rt.windows import alone, exceeds, noted, windows


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """The scores of n pairs, in the order of the pairs."""

    scores: Floats  # (n,) not bounded; from 0 to 1 if normalised
    n_tokens: Offsets  # (n,) tokens that were run, special tokens included
    truncated: Bools  # (n,) the pair had more tokens than n_tokens

    def __len__(self) -> int:
        return len(self.n_tokens)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document in its place."""

    index: int  # among the documents that were given
    score: float
    truncated: bool  # the pair was longer than what was run


class Reranker:
    """A tokenizer and an engine that score pairs. Safe to share between threads."""

    def __init__(
        self, manifest: Manifest, tokenizer: Tokenizer, engine: Engine, why: str = ""
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.engine = engine
        self.why = why  # it is this engine
        self._pairs = PairTokenizer(tokenizer)

    @property
    def recomputed(self) -> int:
        """The pairs so far that the fallback computed again; see m3rt.load."""
        return steps.recomputed(self.engine)

    @property
    def max_length(self) -> int:
        """Most tokens of one pair, special tokens included."""
        return min(self.manifest.max_length, self.engine.limits.max_length)

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        normalize: bool = False,
        max_length: int | None = None,
        query_max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
        batch_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Relevance:
        """Score pairs of a query and a document.

        Args:
            pairs: n pairs; an empty list gives a Relevance of length 0.
            normalize: apply the sigmoid, which gives scores from 0 to 1 in the same order.
            max_length: tokens kept of a pair, special tokens included; the model's own by default.
            query_max_length: tokens kept of a query; three quarters of max_length by default.
            on_long: ``truncate`` cuts the query to query_max_length and the document to what is
                left, and says so in ``Relevance.truncated``; ``error`` refuses the request.
            batch_tokens: aim for the tokens of one step, instead of the engine's own.
            progress: called after each step with the number of pairs it finished.

        Raises:
            InputError: not pairs of text, or too long with ``on_long="error"``.
            EngineError: the engine failed, or gave NaN or Inf.
        """
        windows = self.windows(
            pairs, max_length=max_length, query_max_length=query_max_length, on_long=on_long
        )
        report = None if progress is None else lambda batch: progress(len(batch.rows))
        return self._score(windows, normalize, batch_tokens, report)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top: int | None = None,
        *,
        normalize: bool = False,
        max_length: int | None = None,
        query_max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> list[Ranked]:
        """Put documents in the order of their scores for a query, best first; see score.

        Documents of equal scores stay in the order in which they were given.

        Args:
            query: what they are scored against.
            documents: n texts.
            top: how many to return; None is all.
            normalize: see score, as for the other arguments.
            max_length: see score.
            query_max_length: see score.
            on_long: see score.
        """
        check_texts(documents)
        if not isinstance(query, str):
            raise InputError(f"the query is {type(query).__name__}, expected str")
        found = self.score(
            [(query, document) for document in documents],
            normalize=normalize,
            max_length=max_length,
            query_max_length=query_max_length,
            on_long=on_long,
        )
        return [
            Ranked(i, float(found.scores[i]), bool(found.truncated[i]))
            for i in best(found.scores, top).tolist()
        ]

    def tokenize(
        self,
        pairs: Sequence[Pair],
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> Tokens:
        """Return the token ids that score would run.

        Raises:
            InputError: not pairs of text, too long with ``on_long="error"``, or a bad length.
        """
        kept, of_query = self._kept(max_length, query_max_length, on_long)
        tokens = self._pairs(pairs, kept, of_query)
        if on_long == "error" and tokens.truncated.any():
            rows = np.flatnonzero(tokens.truncated).tolist()
            raise InputError(
                f"{len(rows)} pair(s) are longer than {kept} tokens, or their queries than "
                f"{of_query}: number {', '.join(map(str, rows[:5]))}. Split the documents, or pass "
                "on_long='truncate'"
            )
        return tokens

    def windows(
        self,
        pairs: Sequence[Pair],
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> Generator[Tokens]:
        """Tokenise pairs while others run, for a fast engine; see M3.windows.

        A text that is in many pairs is then tokenised once in each part of a window.

        Raises:
            InputError: as tokenize does.
        """
        kept, of_query = self._kept(max_length, query_max_length, on_long)
        check_pairs(pairs)
        ahead = self.engine.limits.ahead
        if not ahead or on_long == "error" or not exceeds(map("".join, pairs), ahead):
            found = self.tokenize(
                pairs, max_length=max_length, query_max_length=query_max_length, on_long=on_long
            )
            return alone(found)
        return windows(self._pairs.chunks(pairs, kept, of_query, min(CHARACTERS, ahead)), ahead)

    def score_tokens(
        self,
        tokens: Tokens,
        *,
        normalize: bool = False,
        batch_tokens: int | None = None,
        progress: Callable[[Batch], None] | None = None,
    ) -> Relevance:
        """Score token ids, as tokenize gives them; see score."""
        return self._score(alone(tokens), normalize, batch_tokens, progress)

    def _score(
        self,
        windows: Generator[Tokens],
        normalize: bool,
        batch_tokens: int | None,
        progress: Callable[[Batch], None] | None,
    ) -> Relevance:
        seen: list[Tokens] = []
        rows, parts = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        with (
            contextlib.closing(windows),
            contextlib.closing(
                steps.run(self.engine, noted(windows, seen), Heads.SCORE, batch_tokens)
            ) as found,
        ):
            for batch, raw in found:
                check_finite(batch, raw)
                assert raw.scores is not None
                rows.append(batch.rows)
                parts.append(raw.scores)
                if progress:
                    progress(batch)
        tokens = together(seen)
        scores = np.empty(len(tokens.ids), np.float32)
        scores[np.concatenate(rows)] = np.concatenate(parts)
        if normalize:
            scores = sigmoid(scores)
        return Relevance(scores, tokens.ids.lengths, tokens.truncated)

    def _kept(
        self, max_length: int | None, query_max_length: int | None, on_long: str
    ) -> tuple[int, int]:
        """Return the tokens to keep of a pair, and of its query."""
        kept = self.max_length if max_length is None else max_length
        least = self._pairs.min_length
        if not least <= kept <= self.max_length:
            raise InputError(
                f"max_length is {kept}, expected {least} to {self.max_length} for this model"
            )
        of_query = kept * 3 // 4 if query_max_length is None else query_max_length
        if of_query < 1:
            raise InputError(f"query_max_length is {of_query}, expected at least 1")
        if on_long not in ("truncate", "error"):
            raise InputError(f"on_long is {on_long!r}, expected 'truncate' or 'error'")
        return kept, of_query


def best(scores: Floats, top: int | None = None) -> Offsets:
    """Return the places of the greatest scores, greatest first; None is all of them.

    Raises:
        InputError: top is less than 1.
    """
    if top is not None and top < 1:
        raise InputError(f"top is {top}, expected at least 1")
    order: Offsets = np.argsort(-scores, kind="stable")
    return order[:top]


def sigmoid(scores: Floats) -> Floats:
    """Return 1 / (1 + e^-x), computed in float64."""
    with np.errstate(over="ignore"):  # e^-x may be infinite, where the result is 0
        found: Floats = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    return found
