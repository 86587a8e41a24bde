"""Slots: the buffers of one batch on its way to the device and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.engines.cuda import Cuda, Event, Memory

ALIGNMENT = 256  # bytes; what CUDA aligns its own allocations to


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of a certain shape stands in a buffer."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # bytes

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.bytes


Layout = Mapping[str, Place]


def lay(arrays: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> dict[str, Place]:
    """Lay arrays, each of a name, a type and a shape, out one behind the other."""
    found: dict[str, Place] = {}
    start = 0
    for name, dtype, shape in arrays:
        found[name] = place = Place(dtype, shape, start)
        start = -(-place.end // ALIGNMENT) * ALIGNMENT
    return found


class Slot:
    """A device buffer with all inputs and outputs of a batch, and its likeness in pinned memory.

    It is lent to one caller at a time, who waits for ``downloaded`` before the next may have it.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.device = Memory(cuda)
        self.host = Memory(cuda, pinned=True)
        self.uploaded = Event(cuda)
        self.computed = Event(cuda)
        self.downloaded = Event(cuda)

    def array(self, place: Place) -> NDArray[Any]:
        """Return an array's pinned memory; it dies with the slot, and is written again."""
        return self.host.view(place.start, place.end).view(place.dtype).reshape(place.shape)

    def addresses(self, layout: Layout) -> dict[str, int]:
        """Return where each array stands on the device."""
        return {name: self.device.address + place.start for name, place in layout.items()}

    def release(self) -> None:
        """Give all of it back."""
        for part in (self.uploaded, self.computed, self.downloaded, self.device, self.host):
            part.release()
