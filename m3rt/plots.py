"""Plots as SVG, drawn by hand: an engine is told by its colour, its marker and its name.

Colours are CSS variables of the page (``--s0`` to ``--s7``, ``--line``), so that a plot follows its
light and dark mode. Coordinates are pixels of a picture WIDTH by HEIGHT, which scales with the
page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 92, 24, 14, 52  # margins
MARKERS = (
    'circle r="4.5"',
    'rect x="-4" y="-4" width="8" height="8"',
    'path d="M0-6 5.5 4h-11z"',
    'path d="M0-6 6 0 0 6-6 0z"',
    'path d="M0 6-5.5-4h11z"',
    'path d="M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z"',
    'rect x="-6" y="-2.5" width="12" height="5"',
    'rect x="-2.5" y="-6" width="5" height="12"',
)
SERIES = len(MARKERS)  # and colours
LABEL = 15  # height of a line of text


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one engine, each with what a pointer is told about it."""

    name: str
    points: tuple[tuple[float, float, str], ...]  # x, y, title


@dataclass(frozen=True, slots=True)
class Axis:
    """A title, and where to put numbers; their first and last are the ends."""

    title: str
    ticks: tuple[float, ...]
    log: bool

    def place(self, value: float) -> float:
        """Return where a value stands between the ends: 0 to 1."""
        low, high = self._scale(self.ticks[0]), self._scale(self.ticks[-1])
        return (self._scale(value) - low) / (high - low) if high > low else 0.5

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


def linear(title: str, values: Sequence[float]) -> Axis:
    """Return an axis from zero, with about five round numbers."""
    most = max(values, default=0.0) or 1.0
    raw = most / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return Axis(title, tuple(step * i for i in range(math.ceil(most / step - 1e-9) + 1)), log=False)


def around(title: str, values: Sequence[float]) -> Axis:
    """Return an axis of round numbers just around the values; not from zero."""
    least, most = min(values, default=0.0), max(values, default=1.0)
    raw = max(most - least, 1e-3 * max(abs(most), 1e-3)) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(least / step + 1e-9)
    last = max(first + 1, math.ceil(most / step - 1e-9))
    return Axis(title, tuple(step * i for i in range(first, last + 1)), log=False)


def decades(title: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis of powers of ten, or of a few between where there is but one."""
    least, most = min(values, default=1.0), max(values, default=1.0)
    low = math.floor(math.log10(least))
    high = max(low + 1, math.ceil(math.log10(most) - 1e-9))
    step = math.ceil((high - low) / 8)  # not too many to read
    between = (1, 2, 5) if high - low <= 2 else (1,)
    powers = range(low, high, step)
    ticks = [m * 10.0**power for power in powers for m in between] + [10.0 ** (powers[-1] + step)]
    first = max((i for i, tick in enumerate(ticks) if tick <= least), default=0)
    last = min(i for i, tick in enumerate(ticks) if i > first and tick >= most * (1 - 1e-9))
    return Axis(title, tuple(ticks[first : last + 1]), log=True)


def points(title: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis with the measured numbers themselves."""
    return Axis(title, tuple(sorted(set(values))) or (1.0,), log=True)


def lines(label: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Draw a line for each series.

    Args:
        label: what a screen reader says of the picture.
        x: from left to right.
        y: from the bottom up.
        series: their order decides colours and markers.
    """
    drawn = []
    for i, one in enumerate(series):
        places = [f"{across(x, px):.1f},{up(y, py):.1f}" for px, py, _ in one.points]
        drawn.append(
            f'<g class="s{i % SERIES}"><polyline points="{" ".join(places)}" fill="none" '
            f'stroke="currentColor" stroke-width="2"/>{markers(i, x, y, one)}</g>'
        )
    return picture(label, x, y, "".join(drawn))


def scatter(label: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Draw the points of each series, with its name beside the last one; see lines."""
    drawn, taken = [], list[tuple[float, float]]()
    for i, one in enumerate(series):
        if not one.points:
            continue
        px, py, _ = one.points[-1]
        left, top = across(x, px), up(y, py) + 4
        right = left > WIDTH * 0.7
        # names of near points go below each other
        while any(abs(left - a) < 140 and abs(top - b) < LABEL for a, b in taken):
            top += LABEL if top < HEIGHT / 2 else -LABEL
        taken.append((left, top))
        anchor = f'x="{left - 11:.1f}" text-anchor="end"' if right else f'x="{left + 11:.1f}"'
        drawn.append(
            f'<g class="s{i % SERIES}">{markers(i, x, y, one)}'
            f'<text {anchor} y="{top:.1f}" fill="currentColor">{escape(one.name)}</text></g>'
        )
    return picture(label, x, y, "".join(drawn))


def picture(label: str, x: Axis, y: Axis, inside: str) -> str:
    """Return an SVG with axes around what is inside."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y.ticks:
        at = up(y, tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    for tick in x.ticks:
        at = across(x, tick)
        parts.append(
            f'<line class="tick" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 5}"/>'
            f'<text x="{at:.1f}" y="{bottom + 19}" text-anchor="middle">{short(tick)}</text>'
        )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x.title)}</text>"
        f'<text class="axis" x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">{escape(y.title)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}{inside}</svg>'
    )


def across(axis: Axis, value: float) -> float:
    """Return the horizontal place of a value."""
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def up(axis: Axis, value: float) -> float:
    """Return the vertical place of a value."""
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def markers(i: int, x: Axis, y: Axis, series: Series) -> str:
    """Draw the points of a series."""
    return "".join(
        f'<g transform="translate({across(x, px):.1f} {up(y, py):.1f})">{marker(i)}'
        f"<title>{escape(title)}</title></g>"
        for px, py, title in series.points
    )


def marker(i: int) -> str:
    """Return the shape of a series, around (0, 0)."""
    return f'<{MARKERS[i % SERIES]} fill="currentColor"/>'


def key(series: Sequence[Series]) -> str:
    """Return the legend of what has points."""
    return "".join(
        f'<span class="s{i % SERIES}"><svg viewBox="-8 -8 16 16" width="16" height="16" '
        f'aria-hidden="true" xmlns="http://www.w3.org/2000/svg">{marker(i)}</svg>'
        f"{escape(one.name)}</span>"
        for i, one in enumerate(series)
        if one.points
    )


def short(value: float) -> str:
    """Write a number on an axis."""
    if value and abs(value) < 0.01:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.10g}"
