"""The graph that TensorRT is given: every type written, weights beside it in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from rich.progress import Progress

from m3rt.artifact import Artifact
from m3rt.export import fusible, mixed
from m3rt.export.quantize import HALVES, Recipe
from m3rt.export.rewriter import rewrite
from m3rt.graph import Graph

LARGE = 1024  # bytes of a constant that stands beside the graph
NOWHERE = "beside"  # the file that the graph names for them


def write(
    artifact: Artifact,
    precision: str,
    recipe: Recipe | None,
    kept: Collection[str],
    bars: Progress,
) -> Graph:
    """Return the graph of a model in one precision.

    Args:
        artifact: the model directory.
        precision: fp16, bf16, int8 or fp8.
        recipe: how to quantise, for int8 and fp8; what is not quantised is then float16.
        kept: sites that stay in half precision.
        bars: gets the bars.

    Raises:
        ParityError: float16 cannot hold a weight.
        UnexpectedGraphError: the exported graph is not of the form that the passes know.
    """
    model = ir.load(artifact.graph("portable"))
    if recipe is not None:
        task = bars.add_task("quantise", total=len(recipe.scales))
        rewrite(model, "portable", recipe.scales, kept, lambda: bars.advance(task))
    mixed.mix(model, HALVES.get(precision, ir.DataType.FLOAT16))
    remove_unused(model)
    return collect(model, bars)


def runnable(graph: Graph) -> Graph:
    """Return the same computation in a form that ONNX Runtime has on CPUs; see mixed.widen."""
    model = ir.serde.deserialize_model(onnx.load_model_from_string(graph.proto))
    mixed.widen(model)
    proto: Any = ir.serde.serialize_model(model)
    return Graph(proto.SerializeToString(), graph.weights, graph.sha256, graph.half)


def remove_unused(model: ir.Model) -> None:
    """Drop constants that nothing reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def collect(model: ir.Model, bars: Progress) -> Graph:
    """Take the large constants out of a model; each is read, and converted, one after the other."""
    weights: dict[str, NDArray[Any]] = {}
    digest = hashlib.sha256()
    values = list(model.graph.initializers.items())
    task = bars.add_task("convert the weights", total=len(values))
    for name, value in values:
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= LARGE:
            weights[name] = np.array(tensor.numpy(), order="C")  # a copy: the file is let go
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                NOWHERE, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
            mixed.release(tensor)
            digest.update(name.encode())
            digest.update(weights[name].view(np.uint8).data)
        bars.advance(task)
    proto: Any = ir.serde.serialize_model(model)
    data = proto.SerializeToString()
    digest.update(data)
    return Graph(data, weights, digest.hexdigest(), tuple(fusible.half_products(model)))
