"""Results of a request's texts, out of those of the batches that they ran in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from m3rt.heads import merge
from m3rt.server.items import Part, Request
from m3rt.server.work import Spent, Timings
from m3rt.types import Batch, Embeddings, Heads

TEXT = 8.0  # bytes of a number from which on it is written in decimal digits
DIGITS, BYTES = 2e-8, 3e-9  # seconds to write a number


def gathered(request: Request, parts: Sequence[Part]) -> Embeddings:
    """Put the results of all texts of a request into its order."""
    by_batch: dict[int, tuple[Embeddings, list[int], list[int]]] = {}
    for row, part in enumerate(parts):
        _, rows, places = by_batch.setdefault(id(part.found), (part.found, [], []))
        rows.append(row)
        places.append(part.place)
    chosen = [
        (Batch(request.tokens.ids, np.array(rows), 0), only(found, request.heads).take(places))
        for found, rows, places in by_batch.values()
    ]
    if len(chosen) == 1:  # rows come in order
        return dataclasses.replace(
            chosen[0][1],
            n_tokens=request.tokens.ids.lengths,
            truncated=request.tokens.truncated,
        )
    return merge(request.tokens, chosen, chosen[0][1])


def only(found: Embeddings, heads: Heads) -> Embeddings:
    """Return results without the heads that others asked for."""
    return dataclasses.replace(
        found,
        dense=found.dense if Heads.DENSE in heads else None,
        sparse=found.sparse if Heads.SPARSE in heads else None,
        colbert=found.colbert if Heads.COLBERT in heads else None,
    )


def summary(request: Request, characters: int, timings: Timings) -> Spent:
    """Return what is said of a request where texts are not to be seen."""
    tokens = request.tokens
    return Spent(
        len(tokens.ids),
        len(tokens.ids.values),
        characters,
        request.shared,
        int(tokens.truncated.sum()),
        request.heads,
        request.lane,
        timings,
    )


def effort_of(found: Embeddings, written: float) -> float:
    """Return about how many seconds it takes to write an answer.

    Args:
        found: what it holds.
        written: bytes of a number; many are those of decimal digits, which take the longest.
    """
    numbers = 0 if found.dense is None else found.dense.size
    if found.sparse is not None:
        numbers += 2 * found.sparse.weights.values.size
    numbers += sum(rows.size for rows in found.colbert or [])
    return 1e-5 * len(found) + numbers * (DIGITS if written >= TEXT else BYTES)
