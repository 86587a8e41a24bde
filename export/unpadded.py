"""The graphs for ONNX Runtime on NVIDIA GPUs: texts end to end, in its own operations.

Written anew from the parts of the portable graph, in two forms that share every weight by name:

varlen        attention over texts of any length: PackedMultiHeadAttention
rectangles    attention over rectangles, with the texts' lengths: MultiHeadAttention

All else works on rows, in one type. A bias of keys moves all scores of a query alike, which Softmax
does not see, so it is left out; a bias of values passes through attention as it is, for what a
query gives to the texts' tokens adds up to 1, so it goes into the bias of the output. What the
inputs are, says m3rt.engines.unpadded.feed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.progress import Progress

from m3rt.artifact import Artifact
from m3rt.errors import InputError
from m3rt.export import anatomy, faults
from m3rt.export.anatomy import Head, Layer, Linear, Network, Norm
from m3rt.export.constants import Constants
from m3rt.export.edits import FLOAT, HALF
from m3rt.export.packing import size_of
from m3rt.export.passes import array
from m3rt.graph import Graph
from m3rt.types import Pooling

FORMS = ("varlen", "rectangles")
MICROSOFT = "com.microsoft"
CURE = "build for another engine: tensorrt in bf16, openvino, or cpu"
INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64

# of the mean of squares; the square of the least length that the portable graph divides by
TINY = 1e-24

FOLDED = {
    "key bias": "left out: Softmax does not see it",
    "value bias": "into the output bias, through the output weight, in float64",
    "scale of scores": "into attention",
    "token type": "the bias of the first sum",
}


def write(artifact: Artifact, bars: Progress, dtype: ir.DataType = HALF) -> Graph:
    """Return both forms of the graph of a model, and the weights that they share.

    Args:
        artifact: the model directory.
        bars: gets the bars.
        dtype: of weights and rows: float16, or float32 to show that the form is exact.

    Raises:
        InputError: the model pools otherwise than by its first token.
        ParityError: float16 cannot hold a weight.
        UnexpectedGraphError: the exported graph is not of the form that is known.
    """
    manifest = artifact.manifest
    if Pooling(manifest.pooling) is not Pooling.CLS:
        raise InputError(
            f"{artifact.path} pools by {manifest.pooling}; the graphs without padding for cuda "
            f"know cls alone: {CURE}"
        )
    network = anatomy.read(ir.load(artifact.graph("portable")))
    constants = Constants(dtype, CURE)
    digest, protos = hashlib.sha256(), []
    task = bars.add_task("convert the weights", total=len(FORMS) * (len(network.layers) + 2))
    for form in FORMS:
        model = Writer(network, form, constants).model(lambda: bars.advance(task))
        faults.check(model, form, dtype, manifest.layers)
        proto: Any = ir.serde.serialize_model(model)
        protos.append(proto.SerializeToString())
        digest.update(protos[-1])
    for name, numbers in constants.beside.items():
        digest.update(name.encode())
        digest.update(numbers.view(np.uint8).data)
    positions = {
        "from_pad": network.embeddings.from_pad,
        "pad_id": manifest.pad_id,
        "last": size_of(network.embeddings.positions, 0) - 1,
    }
    half = tuple(
        name.partition(".weight")[0]
        for name, numbers in constants.beside.items()
        if numbers.dtype == np.float16 and ".weight" in name
    )
    recipe = {"positions": positions, "folded": FOLDED}
    return Graph(protos[0], constants.beside, digest.hexdigest(), half, protos[1], recipe)


class Writer:
    """Writes one form.

    Args:
        network: the parts of the portable graph.
        form: varlen or rectangles.
        constants: gets the weights; those that are there already are shared.
    """

    def __init__(self, network: Network, form: str, constants: Constants) -> None:
        self._network = network
        self._form = form
        self._constants = constants
        self._used: dict[str, ir.Value] = {}
        self._inputs: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    def model(self, advance: Callable[[], None]) -> ir.Model:
        """Return the graph; ``advance`` is called after every layer, and before and after all."""
        network = self._network
        x = self._embeddings()
        advance()
        for i, layer in enumerate(network.layers):
            x = self._layer(x, layer, i)
            advance()
        outputs = self._heads(x)
        advance()
        graph = ir.Graph(
            list(self._inputs.values()),
            outputs,
            nodes=self._nodes,
            initializers=list(self._used.values()),
            opset_imports={"": 20, MICROSOFT: 1},
            name=f"m3rt_{self._form}",
        )
        return ir.Model(graph, ir_version=10, producer_name="m3rt")

    def _embeddings(self) -> ir.Value:
        """Look up and add words, positions and the token type, and normalise."""
        parts = self._network.embeddings
        ids = self._input("input_ids", [self._axis])
        positions = self._input("positions", [self._axis])
        words = self._op("Gather", [self._weight(parts.words), ids], axis=0)
        places = self._op("Gather", [self._weight(parts.positions), positions], axis=0)
        if self._form == "varlen":
            self._input("cu_seqlens", ["texts + 1"])
            self._input("token_offset", ["texts", "width"])
        else:
            self._input("lengths", ["texts"])
            self._input("grid", [3], INT64)
        self._input("rows", ["rows"])
        return self._sum(words, places, parts.norm, self._weight(parts.kind), "embeddings")

    def _layer(self, x: ir.Value, layer: Layer, i: int) -> ir.Value:
        """Attention and its residual, GELU and its residual; the last layer on fewer rows."""
        query = self._linear(x, layer.query, f"layer.{i}.query")
        key, value = (
            self._op("MatMul", [x, self._weight(part.weight)], name=f"layer.{i}.{name}")
            for name, part in (("key", layer.key), ("value", layer.value))
        )
        mixed = self._attention(query, key, value, layer, f"layer.{i}.attention")
        if i == len(self._network.layers) - 1:
            rows = self._inputs["rows"]
            mixed, x = (self._op("Gather", [part, rows], axis=0) for part in (mixed, x))
        out = self._op("MatMul", [mixed, self._weight(layer.output.weight)], name=f"layer.{i}.out")
        bias = self._constants.computed(f"layer.{i}.out.bias", folded(layer))
        x = self._sum(out, x, layer.attended, self._use(bias), f"layer.{i}.attended")
        inner = self._op("MatMul", [x, self._weight(layer.inner.weight)], name=f"layer.{i}.inner")
        inner = self._op("BiasGelu", [inner, self._weight(layer.inner.bias)], MICROSOFT)
        outer = self._op("MatMul", [inner, self._weight(layer.outer.weight)], name=f"layer.{i}.ffn")
        return self._sum(outer, x, layer.norm, self._weight(layer.outer.bias), f"layer.{i}.norm")

    def _attention(
        self, query: ir.Value, key: ir.Value, value: ir.Value, layer: Layer, name: str
    ) -> ir.Value:
        """Rows (t, h) each to rows (t, h)."""
        how = {"num_heads": layer.heads, "scale": layer.scale}
        if self._form == "varlen":
            texts = [self._inputs["token_offset"], self._inputs["cu_seqlens"]]
            inputs = [query, key, value, None, *texts]
            return self._op("PackedMultiHeadAttention", inputs, MICROSOFT, name, **how)
        grid, lengths = self._inputs["grid"], self._inputs["lengths"]
        split = [self._op("Reshape", [part, grid]) for part in (query, key, value)]
        mixed = self._op("MultiHeadAttention", [*split, None, lengths], MICROSOFT, name, **how)
        return self._op(
            "Reshape", [mixed, self._small("flat", [-1, size_of(layer.query.weight, 1)])]
        )

    def _heads(self, x: ir.Value) -> list[ir.Value]:
        """Return the outputs, in the order of m3rt.types.Heads."""
        network, found = self._network, []
        if network.of_text is not None:
            first = self._op("Gather", [x, self._input("first", ["texts"])], axis=0)
            # in float32, as exported: a row for each text costs nothing
            pooled = self._op("Cast", [first], to=int(FLOAT))
            found.append(self._copied(network.of_text, pooled))
        if network.sparse is not None:
            chosen = self._op("Gather", [x, self._input("sparse_rows", ["weights"])], axis=0)
            weight = self._op("Relu", [self._linear(chosen, network.sparse, "sparse")])
            flat = self._op("Reshape", [weight, self._small("line", [-1])])
            wide = self._op("Cast", [flat], to=int(FLOAT))
            found.append(declared(wide, "sparse", FLOAT, ["weights"]))
        if network.colbert is not None:
            chosen = self._op("Gather", [x, self._input("colbert_rows", ["vectors"])], axis=0)
            vectors = self._linear(chosen, network.colbert, "colbert")
            width = size_of(network.colbert.weight, 1)
            unit = self._unit(vectors, width)
            found.append(declared(unit, "colbert", self._constants.dtype, ["vectors", width]))
        return found

    def _copied(self, head: Head, pooled: ir.Value) -> ir.Value:
        """Make dense or score of first tokens (n, h), by the operations of the portable graph."""
        new: dict[ir.Value | None, ir.Value | None] = {None: None, head.pooled: pooled}
        for node in head.nodes:
            for value in node.inputs:
                if value not in new:
                    assert value is not None
                    new[value] = self._use(self._constants.kept(value))
            copy = ir.node(node.op_type, [new[v] for v in node.inputs], node.attributes)
            self._nodes.append(copy)
            new |= dict(zip(node.outputs, copy.outputs, strict=True))
        out = new[head.out]
        assert out is not None
        axes = range(1, len(head.out.shape or ()))
        shape: list[str | int] = ["texts", *(size_of(head.out, axis) for axis in axes)]
        return declared(out, str(head.out.name), FLOAT, shape)

    def _unit(self, vectors: ir.Value, width: int) -> ir.Value:
        """Divide rows by their length, in one operation.

        It divides by the root of the mean of squares, which is the length by the root of the width.
        What it multiplies by has to be exact. Where it is not in float16, it is given in float32,
        in which the result then comes.
        """
        gamma = np.full(width, 1 / math.sqrt(width))
        dtype = self._constants.dtype
        exact = bool((gamma.astype(dtype.numpy()) == gamma).all()) or dtype == FLOAT
        name = self._constants.computed("unit", gamma, dtype if exact else FLOAT)
        out = self._op(
            "SimplifiedLayerNormalization",
            [vectors, self._use(name)],
            axis=-1,
            epsilon=TINY,
            stash_type=1,
        )
        return out if exact else self._op("Cast", [out], to=int(dtype))

    def _sum(
        self, x: ir.Value, residual: ir.Value, norm: Norm, bias: ir.Value, name: str
    ) -> ir.Value:
        """Add three and normalise."""
        inputs = [x, residual, self._weight(norm.gamma), self._weight(norm.beta), bias]
        return self._op("SkipLayerNormalization", inputs, MICROSOFT, name, epsilon=norm.epsilon)

    def _linear(self, x: ir.Value, layer: Linear, name: str) -> ir.Value:
        """Multiply by a weight, and add its bias."""
        product = self._op("MatMul", [x, self._weight(layer.weight)], name=name)
        return self._op("Add", [product, self._weight(layer.bias)])

    def _op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        domain: str = "",
        name: str | None = None,
        **options: float,
    ) -> ir.Value:
        """Append a node; return its output."""
        node = ir.node(kind, inputs, options, domain=domain, name=name)
        self._nodes.append(node)
        return node.outputs[0]

    def _input(self, name: str, axes: Sequence[str | int], dtype: ir.DataType = INT32) -> ir.Value:
        """Declare an input."""
        value = ir.Value(name=name, shape=ir.Shape(axes), type=ir.TensorType(dtype))
        self._inputs[name] = value
        return value

    def _weight(self, value: ir.Value) -> ir.Value:
        """Return a constant of the portable graph, in the type of this one."""
        return self._use(self._constants.converted(value))

    def _small(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """Return numbers that are given."""
        return self._use(self._constants.computed(name, np.array(numbers), INT64))

    def _use(self, name: str) -> ir.Value:
        """Return a constant, one for all who read it."""
        if name not in self._used:
            self._used[name] = self._constants.initializer(name)
        return self._used[name]

    @property
    def _axis(self) -> str:
        return "tokens" if self._form == "varlen" else "cells"


def folded(layer: Layer) -> NDArray[np.float64]:
    """Return the bias of attention's output, with what the bias of values comes to in it."""
    weight, bias, values = (
        array(value).astype(np.float64)
        for value in (layer.output.weight, layer.output.bias, layer.value.bias)
    )
    total: NDArray[np.float64] = bias + values @ weight
    return total


def declared(value: ir.Value, name: str, dtype: ir.DataType, axes: Sequence[str | int]) -> ir.Value:
    """Make a value an output."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(axes)
    return value
