"""Engines with profiles: any batch becomes rectangles that a profile holds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.engines.padding import unpad
from m3rt.engines.parts import Shrinking
from m3rt.engines.trt.profiles import Profile, limits
from m3rt.errors import EngineError
from m3rt.halves import widen
from m3rt.types import Batch, Bools, Heads, Offsets, Ragged, Raw, offsets


class Rectangles(ABC):
    """An engine with profiles. It takes any batch: what does not fit runs in parts."""

    def __init__(
        self, name: str, profiles: Sequence[Profile], longest: int, pad_id: int, parallel: int
    ) -> None:
        self.name = name
        self.limits = limits(profiles, longest, parallel)
        self._profiles = tuple(profiles)
        self._rows = dict(zip(self.limits.widths, self.limits.rows, strict=True))
        self._pad_id = pad_id
        self._shrinking = Shrinking()

    @abstractmethod
    def _step(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch that a profile holds, padded to its width.

        Raises:
            OutOfMemoryError: it does not fit.
        """

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""

        def tokens(part: Batch) -> float:
            texts, width = len(part.rows), self._width(int(part.tokens.lengths.max()))
            return texts * width if texts <= self._rows[width] else math.inf

        def step(part: Batch) -> Raw:
            width = self._width(int(part.tokens.lengths.max()))
            return self._step(Batch(part.tokens, part.rows, width), heads)

        return self._shrinking.run(batch, tokens, step)

    def warm_up(self) -> None:
        """Run each profile once, at the shape it is best at: the first run loads its kernels."""
        for profile in self._profiles:
            texts, width = profile.best
            width = min(width, self.limits.max_length)
            if not profile.holds(texts, width):
                continue  # for longer texts than the model takes
            ids = np.full(texts * width, self._pad_id, np.int32)
            tokens = Ragged(ids, offsets([width] * texts))
            self.run(Batch(tokens, np.arange(texts), width), Heads(0))

    def _width(self, longest: int) -> int:
        """Return the width to pad to."""
        if (place := bisect_left(self.limits.widths, longest)) < len(self.limits.widths):
            return self.limits.widths[place]
        raise EngineError(
            f"a text of {longest} tokens, and no profile of {self.name} takes more than "
            f"{self.limits.max_length}: encode with a max_length of at most that"
        )

    def _profile(self, texts: int, width: int) -> int:
        """Return the profile whose bounds are closest."""
        able = [i for i, profile in enumerate(self._profiles) if profile.holds(texts, width)]
        return min(able, key=lambda i: int(np.prod(self._profiles[i].most)))


def unpadded(outputs: Mapping[str, NDArray[Any]], starts: Offsets, mask: Bools) -> Raw:
    """Return outputs without padding, as copies.

    Args:
        outputs: by head, (n, ...) or (n, width, ...); ColBERT vectors in float16.
        starts: (n + 1,) where each text's tokens begin, without padding.
        mask: (n, width) which places are tokens.
    """
    dense, weights = outputs.get("dense"), outputs.get("sparse")
    colbert, scores = outputs.get("colbert"), outputs.get("score")
    rows, finite = None, Heads(0)
    if colbert is not None:
        # float16 to float32 for real tokens alone
        values = np.empty((int(starts[-1]), colbert.shape[-1]), np.float32)
        if widen(colbert.reshape(-1, colbert.shape[-1]), values, np.flatnonzero(mask)):
            finite = Heads.COLBERT
        rows = np.split(values, starts[1:-1])
    return Raw(
        dense=None if dense is None else dense.copy(),
        # Copied to the host for padding, too: 4 bytes a token are nothing next to the 2048 of
        # ColBERT vectors, and alone not worth a kernel that leaves padding out.
        weights=None if weights is None else unpad(weights, mask),
        colbert=rows,
        scores=None if scores is None else scores.copy(),
        finite=finite,
    )
