"""A graph on its way to an engine, without a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An ONNX model whose large constants are beside it, in memory.

    In the model they are marked as external, in a file that does not exist.
    """

    proto: bytes
    weights: Mapping[str, NDArray[Any]]  # by initializer; bfloat16 and float8 are ml_dtypes'
    sha256: str  # of both
    half: tuple[str, ...]  # products with weights of 16 bits
    rectangles: bytes | None = None  # a second model over the same constants; see export.unpadded
    recipe: Mapping[str, object] = field(default_factory=dict)  # for the manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the constants beside it."""
        return sum(array.nbytes for array in self.weights.values())
