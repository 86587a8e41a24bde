"""Slots: the buffers of one batch on its way to the device and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.artifact import Manifest
from m3rt.engines.cuda import Cuda, Event, Memory
from m3rt.types import Heads

ALIGNMENT = 256  # bytes; what CUDA aligns its own allocations to


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of an engine, (texts, *row) or (texts, width, *row)."""

    name: str
    dtype: np.dtype[Any]
    per_token: bool
    row: tuple[int, ...] = ()

    def shape(self, texts: int, width: int) -> tuple[int, ...]:
        """Return its shape for a batch."""
        return (texts, width, *self.row) if self.per_token else (texts, *self.row)


INPUTS = (
    Tensor("input_ids", np.dtype(np.int32), per_token=True),
    Tensor("attention_mask", np.dtype(np.int32), per_token=True),
)


def outputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """Return the outputs of a model.

    ColBERT vectors come last, for they take nearly all the room: pinned memory ends before them
    where they are not wanted.
    """
    single = np.dtype(np.float32)
    every = (
        (Heads.DENSE, Tensor("dense", single, False, (manifest.hidden,))),
        (Heads.SPARSE, Tensor("sparse", single, True)),
        (Heads.SCORE, Tensor("score", single, False)),
        (
            Heads.COLBERT,
            Tensor("colbert", np.dtype(np.float16), True, (manifest.colbert_dim or 0,)),
        ),
    )
    return tuple(tensor for head, tensor in every if head in manifest.head_flags)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a certain shape stands in a buffer."""

    tensor: Tensor
    shape: tuple[int, ...]
    start: int  # bytes

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.tensor.dtype.itemsize

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.bytes


def places(tensors: Iterable[Tensor], texts: int, width: int) -> dict[str, Place]:
    """Lay tensors out for a batch, one behind the other."""
    found: dict[str, Place] = {}
    start = 0
    for tensor in tensors:
        place = Place(tensor, tensor.shape(texts, width), start)
        found[tensor.name] = place
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
        """Return a tensor's pinned memory; it dies with the slot, and is written again."""
        flat = self.host.view(place.start, place.end)
        return flat.view(place.tensor.dtype).reshape(place.shape)

    def addresses(self, layout: Mapping[str, Place]) -> dict[str, int]:
        """Return where each tensor stands on the device."""
        return {name: self.device.address + place.start for name, place in layout.items()}

    def release(self) -> None:
        """Give all of it back."""
        for part in (self.uploaded, self.computed, self.downloaded, self.device, self.host):
            part.release()
