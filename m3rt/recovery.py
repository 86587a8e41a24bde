"""Raising the precision of an int8 build, layer by layer, until it passes the quality gate.

Layers are taken in the order of the harm that their rounding does to the heads that failed. A
build takes minutes, so their number is doubled until the gate is passed, and then halved in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from m3rt import parity
from m3rt.artifact import Artifact
from m3rt.certificate import Certificate, Failure
from m3rt.harm import layer
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.types import Ragged

ROUNDS = 5  # of measuring speed


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A build that is made, and not yet kept."""

    kept: tuple[str, ...]  # sites in higher precision
    artifact: Artifact  # the model directory as it would be
    files: tuple[str, ...]  # that are new in it
    recipe: Mapping[str, Any]  # how it was made
    parity: Mapping[str, Any] = field(default_factory=dict)  # empty where another gate failed first
    certificate: Certificate | None = None
    failures: tuple[Failure, ...] = ()

    def judged(self, failures: tuple[Failure, ...], **found: Any) -> Attempt:
        """Return it with what a gate found."""
        return replace(self, failures=failures, **found)

    @property
    def bytes(self) -> int:
        """The size of the new files."""
        return sum((self.artifact.path / name).stat().st_size for name in self.files)


def search(count: int, passes: Callable[[int], bool]) -> int | None:
    """Return how few of so many layers, taken from the first, are enough.

    Exact up to 16; beyond that up to an eighth more, for every try is a build.

    Args:
        count: how many there are.
        passes: whether the first so many are enough; none at all are known not to be.

    Returns:
        None if all are not enough.
    """
    low, high = 0, min(1, count)
    while not passes(high):
        if high == count:
            return None
        low, high = high, min(2 * high, count)
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def recover(
    first: Attempt,
    order: Sequence[str],
    attempt: Callable[[tuple[str, ...]], Attempt],
    drop: Callable[[Attempt], None],
) -> tuple[Attempt, int]:
    """Build again with more and more layers in higher precision.

    Args:
        first: the build that failed, with none.
        order: sites, those to raise first in front.
        attempt: builds and judges.
        drop: throws away what is not needed.

    Returns:
        The build with the fewest layers that passes, or the one with all of them, which does not;
        and how many builds it took.
    """
    best = first
    tries = 0

    def passes(count: int) -> bool:
        nonlocal best, tries
        tries += 1
        made = attempt(tuple(order[:count]))
        better = not made.failures or bool(best.failures)
        stale = best if better else made
        best = made if better else best
        if stale is not first:
            drop(stale)
        return not made.failures

    search(len(order), passes)
    return best, tries


def report(first: Attempt, done: Attempt, tries: int, speed: Mapping[str, float]) -> dict[str, Any]:
    """Return what the manifest keeps of a recovery.

    Args:
        first: the build that failed.
        done: the one that passed.
        tries: builds in between.
        speed: tokens a second; see speeds.
    """
    certificate = first.certificate
    assert certificate is not None
    return {
        "raised": {site: layer(site) for site in done.kept},
        "builds": tries,
        "failed": [str(failure) for failure in first.failures],
        "before": {
            "figures": certificate.figures,
            "retrieval": certificate.retrieval,
            "parity": dict(first.parity),
        },
        "tokens_per_second": dict(speed),
        "bytes": {"before": first.bytes, "after": done.bytes},
    }


def speeds(models: Mapping[str, M3 | Reranker], ids: Ragged[np.int32]) -> dict[str, float]:
    """Return the tokens a second of each model, all heads: medians of rounds that alternate.

    The first run of each does not count: an engine may prepare for shapes that it sees first.
    """
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS + 1):
        for name, model in models.items():
            began = time.perf_counter()
            parity.encode(model, ids)
            spent[name].append(time.perf_counter() - began)
    return {name: len(ids.values) / statistics.median(of[1:]) for name, of in spent.items()}
