"""Searches a whole collection with all heads, exactly, and without keeping its vectors.

The collection passes by once, chunk by chunk. A chunk is encoded, scored against every query, and
let go; what stays are the best documents of each query. ColBERT vectors are scored while their
chunk is there, for the documents that dense has just put among a query's candidates: what ends
among the candidates was among them when it passed, so no document is encoded twice, and no vector
is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from m3rt import protocol as modes
from m3rt import score
from m3rt.errors import EngineError
from m3rt.protocol import Protocol
from m3rt.ranking import NOTHING, Best, Ranking
from m3rt.rows import Texts
from m3rt.runtime import M3, Progress
from m3rt.types import Bools, Embeddings, Floats, Tokens

TOKENS = 2**16  # of a chunk: its ColBERT vectors take 256 MiB where they are 1024 wide
TEXTS = 1024  # of a chunk at most


@dataclass(frozen=True, slots=True)
class Effort:
    """What was encoded."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0  # texts that were longer than what was encoded

    @classmethod
    def of(cls, found: Embeddings) -> Effort:
        """Count."""
        return cls(len(found), int(found.n_tokens.sum()), int(found.truncated.sum()))

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.truncated + other.truncated,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The rankings of every mode, and what they took."""

    rankings: Mapping[str, Ranking]
    queries: Effort
    documents: Effort
    encode_seconds: float
    search_seconds: float


class Search:
    """Queries that a collection passes by."""

    def __init__(self, queries: Embeddings, protocol: Protocol, documents: int) -> None:
        self.queries = queries
        self.protocol = protocol
        wanted = set(protocol.modes or modes.MODES)
        hits, depth = min(protocol.hits, documents), min(protocol.depth, documents)
        whole = [mode for mode in (modes.DENSE, modes.SPARSE, modes.BOTH) if mode in wanted]
        self.best = {mode: Best(len(queries), hits) for mode in whole}
        self.again = [mode for mode in (modes.COLBERT, modes.ALL) if mode in wanted]
        further = ("colbert", "sparse") if modes.ALL in wanted else ("colbert",)
        self.candidates = Best(len(queries), depth, further) if self.again else None

    def add(self, documents: Embeddings, first: int, excluded: Bools | None = None) -> None:
        """Score documents that follow all others.

        Args:
            documents: m of them.
            first: place of the first one in the collection.
            excluded: which documents are no result for which query, (n, m).
        """
        scores = self._scores(documents)
        for mode, best in self.best.items():
            # a text that shares no token is not found by its tokens
            kept = scores[mode]
            if mode == modes.SPARSE:
                kept = np.where(kept > 0, kept, np.float32(NOTHING))
            best.add(without(kept, excluded), first)
        if self.candidates is not None:
            dense = without(scores[modes.DENSE], excluded)
            entering = self.candidates.enter(dense)
            further = scores | {"colbert": self._maxsim(documents, entering)}
            self.candidates.add(dense, first, further)

    def rankings(self) -> dict[str, Ranking]:
        """Return what was found, by mode, in the order of MODES."""
        found = {mode: best.ranking for mode, best in self.best.items()}
        if self.candidates is not None:
            ranking = self.candidates.ranking
            scores = {"dense": ranking.scores} | self.candidates.further
            # places without a document have no scores; any number does
            known = {head: np.where(ranking.found, scores[head], 0) for head in scores}
            found[modes.COLBERT] = ranking.reordered(known["colbert"])
            if modes.ALL in self.again:
                found[modes.ALL] = ranking.reordered(self.protocol.mixture.all.mean(known))
        return {mode: found[mode] for mode in modes.MODES if mode in (self.protocol.modes or found)}

    def _scores(self, documents: Embeddings) -> dict[str, Floats]:
        """Return the scores of every query with every document, (n, m) each."""
        found: dict[str, Floats] = {}
        if self.queries.dense is not None and documents.dense is not None:
            found[modes.DENSE] = score.dense(self.queries.dense, documents.dense)
        if self.queries.sparse is not None and documents.sparse is not None:
            found[modes.SPARSE] = score.lexical(self.queries.sparse, documents.sparse)
        if modes.BOTH in self.best:
            both = {head: found[head] for head in (modes.DENSE, modes.SPARSE)}
            found[modes.BOTH] = self.protocol.mixture.both.mean(both)
        return found

    def _maxsim(self, documents: Embeddings, wanted: Bools) -> Floats:
        """Return the MaxSim of the wanted pairs, (n, m); NaN for the others."""
        assert self.queries.colbert is not None
        assert documents.colbert is not None
        found = np.full(wanted.shape, np.nan, np.float32)
        for j, rows in enumerate(documents.colbert):
            some = np.flatnonzero(wanted[:, j])
            if len(some):
                found[some, j] = score.maxsim([self.queries.colbert[i] for i in some], [rows])[:, 0]
        return found


def run(
    model: M3,
    documents: Texts,
    queries: Texts,
    protocol: Protocol,
    *,
    exclude_same_id: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Search a collection.

    Args:
        model: encodes both sides.
        documents: the collection.
        queries: n of them.
        protocol: how; its modes are those of the model's heads.
        exclude_same_id: a document that has a query's id is no result for it.
        progress: called with the number of texts, queries and documents alike, just encoded.

    Raises:
        InputError: a mode needs a head that the model lacks, or a length does not fit.
        EngineError: the engine failed, or gave NaN or Inf.
    """
    protocol = protocol.fitted(model)
    began = perf_counter()
    asked = model.encode(
        queries.texts, protocol.heads, max_length=protocol.query_max_length, progress=progress
    )
    encoding, searching = perf_counter() - began, 0.0
    search = Search(asked, protocol, len(documents))
    own = {identity: i for i, identity in enumerate(queries.ids)} if exclude_same_id else {}
    read = Effort()
    began = perf_counter()
    for first, part in encoded(model, documents, protocol, progress):
        here = perf_counter()
        search.add(part, first, excluded(own, documents.ids[first : first + len(part)]))
        read += Effort.of(part)
        encoding, searching = encoding + here - began, searching + perf_counter() - here
        began = perf_counter()
    rankings = search.rankings()
    searching += perf_counter() - began
    return Found(rankings, Effort.of(asked), read, encoding, searching)


def encoded(
    model: M3, documents: Texts, protocol: Protocol, progress: Progress | None
) -> Iterator[tuple[int, Embeddings]]:
    """Encode a collection in chunks; give the place of each one's first text, and embeddings."""
    report = None if progress is None else lambda batch: progress(len(batch.rows))
    for begin in range(0, len(documents), TEXTS):
        texts = documents.texts[begin : begin + TEXTS]
        tokens = model.tokenize(texts, max_length=protocol.max_length)
        for some in score.runs(tokens.ids.lengths, TOKENS):
            rows = np.arange(some.start, some.stop)
            part = Tokens(tokens.ids.take(rows), tokens.truncated[rows])
            first = begin + some.start
            with placed(documents.ids[first : first + len(rows)]):
                found = model.encode_tokens(part, protocol.heads, progress=report)
            yield first, found


@contextlib.contextmanager
def placed(ids: Sequence[str]) -> Iterator[None]:
    """Add to an error, which counts the texts of a chunk, where the chunk is."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"counting from document {ids[0]!r} as 0: {error}") from error


def excluded(own: Mapping[str, int], ids: Sequence[str]) -> Bools | None:
    """Return which documents have the id of which query, (n, m); None where none has."""
    same = [(own[identity], j) for j, identity in enumerate(ids) if identity in own]
    if not same:
        return None
    found = np.zeros((len(own), len(ids)), np.bool_)
    found[tuple(np.array(same).T)] = True
    return found


def without(scores: Floats, excluded: Bools | None) -> Floats:
    """Take pairs out."""
    return scores if excluded is None else np.where(excluded, np.float32(NOTHING), scores)
