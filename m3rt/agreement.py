"""How alike two rankings of the same documents are. Letters in shapes: m documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m3rt.types import Floats


def overlap(expected: Floats, found: Floats, k: int) -> float | None:
    """Return which part of the first k documents is also among the first k by other scores.

    Args:
        expected: scores (m,); a document without a positive one is not found at all, and where
            fewer than k are, k is their number.
        found: scores (m,).
        k: documents that are looked at.

    Returns:
        None where no document is found.
    """
    k = min(k, int((expected > 0).sum()))
    if not k:
        return None
    return len(set(first(expected, k)) & set(first(found, k))) / k


def first(scores: Floats, k: int) -> list[int]:
    """Return the k documents of the highest scores; of equal ones, those that come first."""
    places: list[int] = np.argsort(-scores, kind="stable")[:k].tolist()
    return places


def correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's rank correlation of two scores (m,).

    Equal scores share their mean rank. Where all of one side are equal, there is no ranking to
    correlate with: 1 if the same is true of the other side, else 0.
    """
    left, right = (ranks(scores) - (len(scores) + 1) / 2 for scores in (a, b))
    norm = float(np.sqrt((left @ left) * (right @ right)))
    if norm == 0:
        return float(not left.any() and not right.any())
    return float(left @ right) / norm


def ranks(scores: Floats) -> NDArray[np.float64]:
    """Return the rank of each score (m,), from 1; equal ones get the mean of theirs."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean[inverse]
