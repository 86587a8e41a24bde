"""How each site is rounded to int8: its range, and whether its channels are evened out first.

Activations are uint8 with one scale and zero point for the whole tensor, fixed beforehand, so that
a text's result does not depend on its batch mates. Weights are int8, one scale for each output
channel. SmoothQuant (arXiv 2211.10438) divides the channels of an activation by factors that the
weight takes up; the product is the same, and channels far larger than the rest no longer set the
scale of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from m3rt.export.calibrate import Observed
from m3rt.types import Floats

ALPHAS = (0.5, 0.65, 0.8)  # of SmoothQuant: how much of the range moves into the weight
# smoothing costs a multiplication for each value: it is for sites where a channel reaches so many
# times further than the middle one, and has to bring the error down to this share of what it was
UNEVEN, WORTH = 4.0, 0.8
CLIPS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the observed range
LEVELS = 255  # of uint8, beside zero
WEIGHT_LEVELS = 127  # of int8, on either side of zero


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """How the activations of one site are rounded."""

    step: np.float32
    zero: np.uint8
    smooth: Floats | None  # (k,) activations are divided by it, the weights' rows multiplied
    error: float  # of the product, relative, on the sample

    def round(self, x: Floats) -> Floats:
        """Return rows (m, k) as they are after rounding, still divided by ``smooth``."""
        even = x if self.smooth is None else x / self.smooth
        levels = np.clip(np.rint(even / self.step) + self.zero, 0, LEVELS)
        rounded: Floats = ((levels - self.zero) * self.step).astype(np.float32)
        return rounded


def fit(seen: Observed, weight: Floats) -> Scale:
    """Choose range and smoothing for the least error of the product, on the sample.

    Args:
        seen: what flows in, k channels.
        weight: (k, n) of all layers that read it, side by side.
    """
    exact = seen.sample @ weight
    plain = measured(seen, weight, exact, None)
    reach = np.maximum(-seen.low, seen.high)
    if reach.max() <= UNEVEN * np.median(reach):
        return plain
    smoothed = [measured(seen, weight, exact, smooth) for smooth in factors(seen, weight)]
    best = min(smoothed, key=lambda scale: scale.error)
    return best if best.error < WORTH * plain.error else plain


def factors(seen: Observed, weight: Floats) -> Iterator[Floats]:
    """Return SmoothQuant's factors (k,) for each alpha, around one."""
    activation = np.maximum(np.maximum(-seen.low, seen.high), 1e-5)
    rows = np.maximum(np.abs(weight).max(axis=1), 1e-5)
    for alpha in ALPHAS:
        factor = activation**alpha / rows ** (1 - alpha)
        yield (factor / np.exp(np.log(factor).mean())).astype(np.float32)


def measured(seen: Observed, weight: Floats, exact: Floats, smooth: Floats | None) -> Scale:
    """Choose the range for these factors, and measure the error of the product."""
    ones = np.ones_like(seen.low) if smooth is None else smooth
    low, high = min(0.0, float((seen.low / ones).min())), max(0.0, float((seen.high / ones).max()))
    taken = weight if smooth is None else weight * smooth[:, None]
    # what a channel's error costs in the product
    cost = np.einsum("kn,kn->k", taken, taken)
    even = seen.sample / ones

    def loss(clip: float) -> float:
        scale = ranged(low * clip, high * clip, smooth)
        return float(((scale.round(seen.sample) - even) ** 2).sum(axis=0) @ cost)

    clip = min(CLIPS, key=loss)
    scale = ranged(low * clip, high * clip, smooth)
    levels, steps = quantized(taken)
    found = scale.round(seen.sample) @ (levels * steps).astype(np.float32)
    error = np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-12)
    return Scale(scale.step, scale.zero, smooth, float(error))


def ranged(low: float, high: float, smooth: Floats | None) -> Scale:
    """Return the scale of a range that holds zero."""
    step = np.float32(max(high - low, 1e-8) / LEVELS)
    return Scale(step, np.uint8(np.clip(np.rint(-low / step), 0, LEVELS)), smooth, 0.0)


def quantized(weight: Floats) -> tuple[np.ndarray, Floats]:
    """Return int8 levels (k, n) and the step of each output channel (n,)."""
    steps = np.maximum(np.abs(weight).max(axis=0), 1e-12) / WEIGHT_LEVELS
    return np.rint(weight / steps).astype(np.int8), steps.astype(np.float32)
