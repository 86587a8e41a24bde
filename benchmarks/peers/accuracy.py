"""How far what one worker saved is from what another did, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt import parity
from m3rt.types import Ragged, Sparse

Arrays = Mapping[str, NDArray[Any]]


def read(path: Path) -> Arrays:
    """Read what worker.save wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def compare(expected: Arrays, found: Arrays) -> dict[str, Any]:
    """Return the figures of every head that both have."""
    figures: dict[str, Any] = {}
    if "dense" in expected and "dense" in found:
        figures["dense"] = parity.cosines(expected["dense"], found["dense"])
    if "sparse_ids" in expected and "sparse_ids" in found:
        figures["sparse"] = parity.sparse_figures(sparse(expected), sparse(found))
    if "colbert" in expected and "colbert" in found:
        figures["colbert"] = colbert(expected, found)
    return figures


def sparse(arrays: Arrays) -> Sparse:
    """Return lexical weights."""
    starts = arrays["sparse_starts"]
    return Sparse(Ragged(arrays["sparse_ids"], starts), Ragged(arrays["sparse_weights"], starts))


def colbert(expected: Arrays, found: Arrays) -> dict[str, Any]:
    """Compare row by row; a text that was cut into other tokens has no such rows, and is counted.

    Which tokens those are is not known here, only how many: equal numbers count as equal tokens.
    """
    ours = Ragged(expected["colbert"], expected["colbert_starts"])
    theirs = Ragged(found["colbert"], found["colbert_starts"])
    same = np.flatnonzero(ours.lengths == theirs.lengths)
    figures: dict[str, Any] = {"other_tokens": len(ours) - len(same)}
    if len(same):
        figures |= parity.cosines(ours.take(same).values, theirs.take(same).values)
    return figures
