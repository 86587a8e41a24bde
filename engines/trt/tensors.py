"""What goes into a TensorRT engine, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m3rt.artifact import Manifest
from m3rt.engines.slots import Place, lay
from m3rt.types import Heads


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


def places(tensors: Sequence[Tensor], texts: int, width: int) -> dict[str, Place]:
    """Lay tensors out for a batch."""
    return lay((tensor.name, tensor.dtype, tensor.shape(texts, width)) for tensor in tensors)
