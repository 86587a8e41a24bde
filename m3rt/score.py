"""How well queries and documents match, from their stored vectors.

REFERENCE: FlagEmbedding 1.4.2, inference/embedder/encoder_only/m3.py. Each score comes in two
forms: every query against every document, (n, m), and query i against document i, (n,). Letters
in shapes: n queries, m documents, h and d widths, t_i rows of text i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.errors import InputError
from m3rt.types import Embeddings, Floats, Heads, Offsets, Sparse, offsets

Vectors = NDArray[np.floating[Any]]  # float16 and float32 alike; scores are computed in float32

BLOCK = 2**24  # similarities of two tokens, or products of two weights, held at once: 64 MiB


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each head counts in the combined score."""

    dense: float = 1.0
    sparse: float = 1.0
    colbert: float = 1.0

    def __post_init__(self) -> None:
        total = self.dense + self.sparse + self.colbert
        if not (math.isfinite(total) and total > 0):
            raise InputError(f"{self} sum to {total}, expected finite ones and more than 0")

    def mean(self, scores: Mapping[str, Floats]) -> Floats:
        """Return the weighted mean of the scores of some heads, given by name.

        Raises:
            InputError: the weights of these heads do not sum to more than 0.
        """
        # in one order whatever that of the scores, or equal sums would round apart
        weights = {head: float(getattr(self, head)) for head in sorted(scores)}
        total = sum(weights.values())
        if not total > 0:
            raise InputError(
                f"the weights of {', '.join(scores)} sum to {total}, expected more than 0: give a "
                "weight to a head that queries and documents both have"
            )
        combined = sum(weights[head] * scores[head] for head in weights) / total
        return np.asarray(combined, np.float32)


EQUAL = Weights()


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores by head, (n, m) or (n,). A head that one side lacks is None."""

    dense: Floats | None
    sparse: Floats | None
    colbert: Floats | None
    combined: Floats  # weighted mean of the others


def matrix(queries: Embeddings, documents: Embeddings, weights: Weights = EQUAL) -> Scores:
    """Score every query against every document, (n, m) each.

    Raises:
        InputError: no head in common, no weight on it, or widths that differ.
    """
    return _scores(queries, documents, weights, dense, lexical, maxsim)


def pairs(queries: Embeddings, documents: Embeddings, weights: Weights = EQUAL) -> Scores:
    """Score query i against document i, (n,) each.

    Raises:
        InputError: counts or widths that differ, no head in common, or no weight on it.
    """
    return _scores(queries, documents, weights, dense_pairs, lexical_pairs, maxsim_pairs)


def dense(queries: Vectors, documents: Vectors) -> Floats:
    """Return the dot products of (n, h) and (m, h) unit vectors: cosines, (n, m).

    Raises:
        InputError: not matrices, or widths that differ.
    """
    left, right = _single(queries), _single(documents)
    _check_widths([left, right])
    scores: Floats = left @ right.T
    return scores


def dense_pairs(queries: Vectors, documents: Vectors) -> Floats:
    """Return the dot product of row i with row i, (n,).

    Raises:
        InputError: not matrices, or counts or widths that differ.
    """
    left, right = _single(queries), _single(documents)
    _check_widths([left, right])
    _check_pairs(len(left), len(right))
    scores: Floats = np.einsum("nh,nh->n", left, right)
    return scores


def lexical(queries: Sparse, documents: Sparse) -> Floats:
    """Return the sums of products of the weights of shared ids, (n, m)."""
    # an inverted index of the documents: their entries, sorted by id
    order = np.argsort(documents.ids.values, kind="stable")
    ids, weights = documents.ids.values[order], documents.weights.values[order]
    column = _owners(documents)[order]
    first = np.searchsorted(ids, queries.ids.values, "left")
    hits = np.searchsorted(ids, queries.ids.values, "right") - first
    row, starts = _owners(queries), offsets(hits)
    scores = np.zeros((len(queries), len(documents)), np.float32)
    for some in runs(np.diff(starts[queries.ids.starts]) + len(documents), BLOCK // 8):
        begin, end = queries.ids.starts[[some.start, some.stop]]
        # every entry of these queries beside each document entry of the same id
        entry = np.repeat(np.arange(begin, end), hits[begin:end])
        match = np.arange(starts[begin], starts[end]) - starts[entry] + first[entry]
        cell = (row[entry] - some.start) * len(documents) + column[match]
        products = queries.weights.values[entry] * weights[match]
        block = scores[some]
        block[:] = np.bincount(cell, products, block.size).reshape(block.shape)
    return scores


def lexical_pairs(queries: Sparse, documents: Sparse) -> Floats:
    """Return the sum of products of the weights of the ids query i shares with document i, (n,).

    Raises:
        InputError: counts that differ.
    """
    _check_pairs(len(queries), len(documents))
    left, right = (_owners(texts) << 32 | texts.ids.values for texts in (queries, documents))
    shared, i, j = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    products = queries.weights.values[i] * documents.weights.values[j]
    return np.bincount(shared >> 32, products, len(queries)).astype(np.float32)


def maxsim(queries: Sequence[Vectors], documents: Sequence[Vectors]) -> Floats:
    """Return the mean over a query's rows of the best dot product with a document's row, (n, m).

    Args:
        queries: n matrices (t_i, d) of unit vectors.
        documents: m matrices (t_j, d).

    Raises:
        InputError: a text without rows, not matrices, or widths that differ.
    """
    _check_texts(queries, documents)
    # a square block, unless one document is longer than its side; then fewer query rows
    longest = max([math.isqrt(BLOCK), *map(len, documents)])
    height = max(1, BLOCK // longest)
    pieces = [rows[i : i + height] for rows in queries for i in range(0, len(rows), height)]
    owner = np.repeat(np.arange(len(queries)), [-(-len(rows) // height) for rows in queries])
    totals = np.zeros((len(queries), len(documents)))
    for some in runs(_lengths(documents), longest):
        right, ends = _join(documents[some])
        for few in runs(_lengths(pieces), height):
            left, starts = _join(pieces[few])
            best = np.maximum.reduceat(left @ right.T, ends[:-1], axis=1)
            sums = np.add.reduceat(best, starts[:-1], axis=0, dtype=np.float64)
            np.add.at(totals[:, some], owner[few], sums)  # a long query has several pieces
    return (totals / _lengths(queries)[:, None]).astype(np.float32)


def maxsim_pairs(queries: Sequence[Vectors], documents: Sequence[Vectors]) -> Floats:
    """Return the MaxSim of query i with document i, (n,).

    Raises:
        InputError: counts or widths that differ, a text without rows, or not matrices.
    """
    _check_pairs(len(queries), len(documents))
    _check_texts(queries, documents)
    both = zip(queries, documents, strict=True)
    return np.array([maxsim([query], [document])[0, 0] for query, document in both], np.float32)


def runs(lengths: Offsets, most: int) -> Iterator[slice]:
    """Cut into runs whose lengths sum to at most ``most``, of at least one item each."""
    ends = np.cumsum(lengths)
    start = done = 0
    while start < len(lengths):
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def _scores(
    queries: Embeddings,
    documents: Embeddings,
    weights: Weights,
    *scorers: Callable[[Any, Any], Floats],
) -> Scores:
    found = {
        head: score(left, right)
        for head, score in zip(Heads.ALL.names, scorers, strict=True)
        if (left := getattr(queries, head)) is not None
        and (right := getattr(documents, head)) is not None
    }
    if not found:
        raise InputError("queries and documents have no head in common: encode both with one head")
    dense, sparse, colbert = map(found.get, Heads.ALL.names)
    return Scores(dense, sparse, colbert, combined=weights.mean(found))


def _join(parts: Sequence[Vectors]) -> tuple[Floats, Offsets]:
    """Put matrices end to end, in single precision; also return where each starts."""
    return _single(np.concatenate(parts)), offsets(_lengths(parts))


def _owners(texts: Sparse) -> Offsets:
    """Return which text each entry is of, (t,)."""
    return np.repeat(np.arange(len(texts)), texts.ids.lengths)


def _single(vectors: Vectors) -> Floats:
    return np.asarray(vectors, np.float32)


def _lengths(texts: Sequence[Vectors]) -> Offsets:
    return np.array([len(rows) for rows in texts], np.int64)


def _check_pairs(n: int, m: int) -> None:
    if n != m:
        raise InputError(f"{n} queries and {m} documents are no pairs: expected as many of each")


def _check_widths(arrays: Sequence[Vectors]) -> None:
    for array in arrays:
        if array.ndim != 2:
            raise InputError(f"vectors have the shape {array.shape}, expected (rows, width)")
    if len(widths := sorted({array.shape[1] for array in arrays})) > 1:
        raise InputError(f"vectors are {widths} wide, expected one width: use one model for all")


def _check_texts(queries: Sequence[Vectors], documents: Sequence[Vectors]) -> None:
    _check_widths([*queries, *documents])
    for kind, texts in (("query", queries), ("document", documents)):
        if len(empty := np.flatnonzero(_lengths(texts) == 0)):
            raise InputError(f"{kind} {empty[0]} has no ColBERT vectors, expected at least one")
