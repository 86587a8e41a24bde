"""How each site is rounded to 8 bits: its range, and whether its channels are evened out first.

Activations have one scale for the whole tensor, fixed beforehand, so that a text's result does not
depend on its batch mates; weights one for each output channel. SmoothQuant (arXiv 2211.10438)
divides the channels of an activation by factors that the weight takes up; the product is the same,
and channels far larger than the rest no longer set the scale of all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from m3rt.export.calibrate import Observed
from m3rt.types import Floats

ALPHAS = (0.5, 0.65, 0.8)  # of SmoothQuant: how much of the range moves into the weight
# smoothing costs a multiplication for each value: it is for sites where a channel reaches so many
# times further than the middle one, and has to bring the error down to this share of what it was
UNEVEN, WORTH = 4.0, 0.8
CLIPS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the observed range
WEIGHT_LEVELS = 127  # of int8, on either side of zero


class Grid(enum.Enum):
    """The numbers that activations are rounded to, before they are multiplied by the step."""

    UINT8 = "uint8"  # 0 to 255, with a zero point: what processors multiply by int8
    INT8 = "int8"  # -128 to 127 around zero: what GPUs multiply by int8
    E4M3 = "fp8"  # float8 of 4 bits exponent and 3 bits fraction, up to 448, by weights of the same

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy names it, with ml_dtypes."""
        found: np.dtype[Any] = np.dtype(
            ml_dtypes.float8_e4m3fn if self is Grid.E4M3 else self.value
        )
        return found

    @property
    def top(self) -> float:
        """The largest number."""
        return {Grid.UINT8: 255.0, Grid.INT8: 127.0, Grid.E4M3: 448.0}[self]

    def round(self, x: Floats, zero: float = 0.0) -> Floats:
        """Return the nearest numbers of the grid, as floats; what is beyond it becomes its end."""
        if self is Grid.E4M3:  # a plain conversion makes NaN of what is beyond
            kept = np.clip(x, -self.top, self.top)
            nearest: Floats = kept.astype(self.dtype).astype(np.float32)
            return nearest
        low = 0.0 if self is Grid.UINT8 else -128.0
        levels: Floats = (np.clip(np.rint(x) + zero, low, self.top) - zero).astype(np.float32)
        return levels


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """How the activations of one site are rounded."""

    grid: Grid
    step: np.float32
    zero: int  # 0 but for uint8
    smooth: Floats | None  # (k,) activations are divided by it, the weights' rows multiplied
    error: float  # of the product, relative, on the sample

    @property
    def zero_point(self) -> NDArray[Any]:
        """The zero as an array () of the grid's type, which tells engines what the grid is."""
        return np.asarray(self.zero).astype(self.grid.dtype)

    def round(self, x: Floats) -> Floats:
        """Return rows (m, k) as they are after rounding, still divided by ``smooth``."""
        even = x if self.smooth is None else x / self.smooth
        rounded: Floats = (self.grid.round(even / self.step, self.zero) * self.step).astype(
            np.float32
        )
        return rounded


def fit(seen: Observed, weight: Floats, grid: Grid) -> Scale:
    """Choose range and smoothing for the least error of the product, on the sample.

    Args:
        seen: what flows in, k channels.
        weight: (k, n) of all layers that read it, side by side.
        grid: what to round to.
    """
    exact = seen.sample @ weight
    plain = measured(seen, weight, exact, grid, None)
    reach = np.maximum(-seen.low, seen.high)
    if reach.max() <= UNEVEN * np.median(reach):
        return plain
    smoothed = [measured(seen, weight, exact, grid, smooth) for smooth in factors(seen, weight)]
    best = min(smoothed, key=lambda scale: scale.error)
    return best if best.error < WORTH * plain.error else plain


def factors(seen: Observed, weight: Floats) -> Iterator[Floats]:
    """Return SmoothQuant's factors (k,) for each alpha, around one."""
    activation = np.maximum(np.maximum(-seen.low, seen.high), 1e-5)
    rows = np.maximum(np.abs(weight).max(axis=1), 1e-5)
    for alpha in ALPHAS:
        factor = activation**alpha / rows ** (1 - alpha)
        yield (factor / np.exp(np.log(factor).mean())).astype(np.float32)


def measured(
    seen: Observed, weight: Floats, exact: Floats, grid: Grid, smooth: Floats | None
) -> Scale:
    """Choose the range for these factors, and measure the error of the product."""
    ones = np.ones_like(seen.low) if smooth is None else smooth
    low, high = min(0.0, float((seen.low / ones).min())), max(0.0, float((seen.high / ones).max()))
    taken = weight if smooth is None else weight * smooth[:, None]
    # what a channel's error costs in the product
    cost = np.einsum("kn,kn->k", taken, taken)
    even = seen.sample / ones

    def loss(clip: float) -> float:
        scale = ranged(low * clip, high * clip, grid, smooth)
        return float(((scale.round(seen.sample) - even) ** 2).sum(axis=0) @ cost)

    clip = min(CLIPS, key=loss)
    scale = ranged(low * clip, high * clip, grid, smooth)
    levels, steps = quantized(taken, grid)
    found = scale.round(seen.sample) @ (levels.astype(np.float32) * steps)
    error = np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-12)
    return replace(scale, error=float(error))


def ranged(low: float, high: float, grid: Grid, smooth: Floats | None) -> Scale:
    """Return the scale of a range that holds zero."""
    span = high - low if grid is Grid.UINT8 else max(-low, high)
    step = np.float32(max(span, 1e-8) / grid.top)
    zero = int(np.clip(np.rint(-low / step), 0, grid.top)) if grid is Grid.UINT8 else 0
    return Scale(grid, step, zero, smooth, 0.0)


def quantized(weight: Floats, grid: Grid = Grid.INT8) -> tuple[NDArray[Any], Floats]:
    """Return levels (k, n), int8 or float8, and the step of each output channel (n,)."""
    kind = Grid.E4M3 if grid is Grid.E4M3 else Grid.INT8  # uint8 goes with int8
    steps = (np.maximum(np.abs(weight).max(axis=0), 1e-12) / kind.top).astype(np.float32)
    return kind.round(weight / steps).astype(kind.dtype), steps
