"""The constants of graphs that are written anew, each converted once and shared by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from m3rt.export.mixed import narrowed, release
from m3rt.export.passes import array
from m3rt.export.typed import LARGE, NOWHERE


class Constants:
    """Takes constants from a graph, one after the other; the files that they are in are let go.

    Args:
        dtype: what floats are converted to.
        cure: what to do where float16 cannot hold one.
    """

    def __init__(self, dtype: ir.DataType, cure: str) -> None:
        self.dtype = dtype
        self.arrays: dict[str, NDArray[Any]] = {}
        self._cure = cure

    def converted(self, value: ir.Value) -> str:
        """Take a constant in the type of the graph; return its name.

        Raises:
            ParityError: float16 cannot hold it.
        """
        name = f"{value.name}.{self.dtype.name.lower()}"
        if name not in self.arrays:
            numbers = array(value)
            self.arrays[name] = narrowed(str(value.name), numbers, self.dtype, self._cure)
            del numbers  # or its file could not be let go
            release(value.const_value)
        return name

    def computed(self, name: str, numbers: NDArray[Any], dtype: ir.DataType | None = None) -> str:
        """Take numbers that are in no graph, likewise, or in a type of their own."""
        dtype = dtype or self.dtype
        name = f"{name}.{dtype.name.lower()}"
        if name not in self.arrays:
            self.arrays[name] = narrowed(name, numbers, dtype, self._cure)
        return name

    def kept(self, value: ir.Value) -> str:
        """Take a constant as it is."""
        name = f"{value.name}.exact"
        if name not in self.arrays:
            self.arrays[name] = np.array(array(value), order="C")  # a copy: the file is let go
            release(value.const_value)
        return name

    def initializer(self, name: str) -> ir.Value:
        """Return a constant for a graph; a large one is marked as beside it."""
        numbers = self.arrays[name]
        tensor: ir.TensorProtocol = ir.tensor(numbers, name=name)
        if numbers.nbytes >= LARGE:
            shape = ir.Shape(numbers.shape)
            tensor = ir.ExternalTensor(
                NOWHERE, 0, numbers.nbytes, tensor.dtype, shape=shape, name=name
            )
        return ir.Value(
            name=name,
            shape=ir.Shape(numbers.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )

    @property
    def beside(self) -> dict[str, NDArray[Any]]:
        """The large ones."""
        return {name: a for name, a in self.arrays.items() if a.nbytes >= LARGE}
