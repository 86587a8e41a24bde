"""How long the engine takes: learned from what it took."""

from __future__ import annotations

import math
from bisect import bisect_left

KNEE = 0.9  # of the most tokens a second: what a batch must reach to be large enough
FORGET = 0.2  # weight of the newest batch: what counts is how the machine runs now
GUESS = 1e-4  # seconds per token, before anything has run


class Pace:
    """Seconds of a batch by its tokens, those of padding included.

    Points are means of like batches, between which seconds are taken to grow in straight lines:
    a batch of few tokens costs nearly as much as one of some more, as all weights are read for it.
    Not thread-safe: its owner locks.
    """

    def __init__(self, full: int) -> None:
        """Know nothing yet.

        Args:
            full: tokens of a batch that keeps the engine fully busy, as Limits.max_tokens.
        """
        self._full = full
        self.knee = full  # tokens of a batch beyond which more of them hardly come cheaper
        self._points: dict[int, tuple[float, float]] = {}  # by log2 of tokens: tokens, seconds
        self._tokens: list[float] = []
        self._seconds: list[float] = []

    def learn(self, tokens: int, seconds: float) -> None:
        """Note what a batch took."""
        key = round(2 * math.log2(max(1, tokens)))
        old = self._points.get(key)
        new = (float(tokens), seconds)
        if old is not None:
            new = tuple(was + FORGET * (now - was) for was, now in zip(old, new, strict=True))  # type: ignore[assignment]
        self._points[key] = new
        points = sorted(self._points.values())
        self._tokens = [point[0] for point in points]
        most = 0.0
        self._seconds = [most := max(most, point[1]) for point in points]
        self.knee = self._knee()

    def batch(self, tokens: int) -> float:
        """Return the seconds that a batch of so many tokens takes."""
        if not self._tokens:
            return tokens * GUESS
        place = bisect_left(self._tokens, tokens)
        if place == 0:
            return self._seconds[0]
        if place == len(self._tokens):
            return self._seconds[-1] * tokens / self._tokens[-1]
        left, right = self._tokens[place - 1], self._tokens[place]
        share = (tokens - left) / (right - left)
        return self._seconds[place - 1] * (1 - share) + self._seconds[place] * share

    def text(self, tokens: int) -> float:
        """Return the seconds that a text adds when the engine is busy with many like it."""
        together = max(1, self.knee // max(1, tokens))
        return self.batch(together * tokens) / together

    def _knee(self) -> int:
        """Return the tokens of the smallest batch that has nearly the best speed."""
        pairs = zip(self._tokens, self._seconds, strict=True)
        rates = {n: n / max(seconds, 1e-9) for n, seconds in pairs if n <= self._full}
        if not rates:
            return self._full
        enough = KNEE * max(rates.values())
        return int(next(n for n, rate in rates.items() if rate >= enough))
