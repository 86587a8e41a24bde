"""From an engine's output to the three embeddings, as FlagEmbedding defines them.

REFERENCE: FlagEmbedding 1.4.2, inference/embedder/encoder_only/m3.py. Sparse: weights of the
special tokens are dropped, equal ids merge by maximum, only weights above zero stay. ColBERT:
the first token's row is dropped, the closing token's stays; with mcls pooling (m3rt.mcls), those
of the CLS tokens inside a text are dropped likewise, and get no lexical weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3rt import mcls
from m3rt.errors import EngineError
from m3rt.types import (
    Batch,
    Embeddings,
    Floats,
    Heads,
    Offsets,
    Ragged,
    Raw,
    S,
    Sparse,
    Tokens,
    offsets,
)


def finish(
    batch: Batch, raw: Raw, unscored: Sequence[int], cls_interval: int | None = None
) -> Embeddings:
    """Turn token weights into lexical weights, and drop the CLS tokens' ColBERT vectors.

    Args:
        batch: what the engine ran.
        raw: what it returned.
        unscored: ids that get no lexical weight (``<s> <pad> </s> <unk>``).
        cls_interval: where a text has more CLS tokens than its first; see m3rt.mcls.

    Raises:
        EngineError: an output is NaN or Inf; names the head and the texts of the request.
    """
    check_finite(batch, raw)
    return finished(batch, raw, unscored, cls_interval)


def finished(
    batch: Batch, raw: Raw, unscored: Sequence[int], cls_interval: int | None = None
) -> Embeddings:
    """Do what finish does, for those who look for NaN and Inf themselves."""
    return Embeddings(
        dense=raw.dense,
        sparse=None if raw.weights is None else lexical(batch.tokens, raw.weights, unscored),
        colbert=None
        if raw.colbert is None
        else [token_rows(rows, cls_interval) for rows in raw.colbert],
        n_tokens=batch.tokens.lengths,
        truncated=np.zeros(len(batch.rows), np.bool_),
    )


def token_rows(rows: Floats, cls_interval: int | None) -> Floats:
    """Return a text's ColBERT rows without those of CLS tokens; a view where that is one block."""
    return rows[1:] if cls_interval is None else mcls.without(rows, cls_interval)


def check_finite(batch: Batch, raw: Raw) -> None:
    """Refuse NaN and Inf.

    Raises:
        EngineError: names the head and the texts of the request.
    """
    for head, rows in not_finite(batch, raw).items():
        if len(rows):
            texts = ", ".join(map(str, sorted(batch.rows[rows].tolist())[:5]))
            raise EngineError(
                f"the {head} output is NaN or Inf for {len(rows)} text(s): {texts}. The weights "
                "or the engine's precision are at fault: run m3rt verify MODEL, or pass a fallback "
                "engine, such as cpu:fp32, to compute such texts again"
            )


def not_finite(batch: Batch, raw: Raw) -> dict[str, Offsets]:
    """Return the places in the batch of texts with NaN or Inf, ascending, for each head."""
    bad: dict[str, Offsets] = {}
    if raw.dense is not None:
        bad["dense"] = np.flatnonzero(~np.isfinite(raw.dense).all(axis=1))
    if raw.scores is not None:
        bad["score"] = np.flatnonzero(~np.isfinite(raw.scores))
    if raw.weights is not None:
        starts = batch.tokens.starts
        places = np.flatnonzero(~np.isfinite(raw.weights))
        bad["sparse"] = np.unique(np.searchsorted(starts, places, side="right") - 1)
    if raw.colbert is not None and Heads.COLBERT not in raw.finite:
        # one sum per text instead of one test per value: any NaN or Inf survives the sum
        bad["colbert"] = np.flatnonzero(
            [not np.isfinite(rows.sum(dtype=np.float32)) for rows in raw.colbert]
        )
    return bad


def lexical(tokens: Ragged[np.int32], weights: Floats, unscored: Sequence[int]) -> Sparse:
    """Keep the greatest positive weight of each scored id in each text."""
    texts = np.repeat(np.arange(len(tokens)), tokens.lengths)
    kept = (weights > 0) & ~np.isin(tokens.values, unscored)
    keys = texts[kept] << 32 | tokens.values[kept]
    order = np.argsort(keys)  # whichever of equal keys comes first, their maximum is the same
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    unique = keys[first]
    best = np.maximum.reduceat(weights[kept][order], first) if len(first) else weights[:0]
    starts = offsets(np.bincount(unique >> 32, minlength=len(tokens)))
    return Sparse(Ragged((unique & 0xFFFFFFFF).astype(np.int32), starts), Ragged(best, starts))


def merge(
    tokens: Tokens, parts: Sequence[tuple[Batch, Embeddings]], empty: Embeddings
) -> Embeddings:
    """Put the texts of all batches back into the order of the request.

    ``empty`` is the answer to an empty request: which heads there are, and their widths.
    """
    if not parts:
        return empty
    rows = np.concatenate([batch.rows for batch, _ in parts])
    order = np.empty_like(rows)
    order[rows] = np.arange(len(rows))
    dense = [(batch.rows, part.dense) for batch, part in parts if part.dense is not None]
    sparse = [part.sparse for _, part in parts if part.sparse is not None]
    colbert = [rows for _, part in parts if part.colbert is not None for rows in part.colbert]
    return Embeddings(
        dense=scattered(dense, len(rows)) if dense else None,
        sparse=Sparse(
            join([part.ids for part in sparse]), join([part.weights for part in sparse])
        ).take(order)
        if sparse
        else None,
        colbert=[colbert[i] for i in order.tolist()] if colbert else None,
        n_tokens=tokens.ids.lengths,
        truncated=tokens.truncated,
    )


def scattered(parts: Sequence[tuple[Offsets, Floats]], count: int) -> Floats:
    """Return an array of so many rows, from some of them, and where these belong, at a time."""
    _, first = parts[0]
    found = np.empty((count, *first.shape[1:]), first.dtype)
    for rows, values in parts:
        found[rows] = values
    return found


def join(parts: Sequence[Ragged[S]]) -> Ragged[S]:
    """Put ragged arrays end to end."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), offsets(lengths))
