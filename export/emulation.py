"""The unpadded graphs in operations that ONNX Runtime has on CPUs, rounded where a GPU rounds.

What ONNX Runtime's kernels for NVIDIA GPUs do in float16, as their sources tell: a product adds up
in float32 and rounds once; BiasGelu rounds the sum, the normal distribution's value and the
product; SkipLayerNormalization rounds after each of its two sums and adds up statistics in float32;
attention adds up in float32. Not shown: in which order a GPU adds up, and that attention rounds
probabilities before it mixes values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from m3rt.export import functions, mixed
from m3rt.export.edits import FLOAT, replace, types
from m3rt.graph import Graph

OPSET = 20

# Texts of no tokens give no rows, and are left out: the operation in the loop would refuse them.
PACKED = """
PackedMultiHeadAttention <num_heads: int, scale: float, dtype: int>
    (query, key, value, bias, token_offset, cu_seqlens) => (mixed) {
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    always = Constant <value: tensor = bool {1}> ()
    minus_one = Constant <value_ints: ints = [-1]> ()
    far = Constant <value_ints: ints = [9223372036854775807]> ()
    wide_query = Cast <to: int = 1> (query)
    wide_key = Cast <to: int = 1> (key)
    wide_value = Cast <to: int = 1> (value)
    starts = Cast <to: int = 7> (cu_seqlens)
    begin = Slice (starts, zero, minus_one, zero)
    end = Slice (starts, one, far, zero)
    some = Less (begin, end)
    from_all = Compress <axis: int = 0> (begin, some)
    to_all = Compress <axis: int = 0> (end, some)
    texts = Size (from_all)
    none = SequenceEmpty <dtype: int = 1> ()
    rows = Loop (texts, always, none) <body = text
        (int64 i, bool go, seq(float) done) => (bool go_on, seq(float) more) {
        go_on = Identity (go)
        at = Unsqueeze (i, zero)
        from = Gather (from_all, at)
        to = Gather (to_all, at)
        q = Slice (wide_query, from, to, zero)
        k = Slice (wide_key, from, to, zero)
        v = Slice (wide_value, from, to, zero)
        q3 = Unsqueeze (q, zero)
        k3 = Unsqueeze (k, zero)
        v3 = Unsqueeze (v, zero)
        m3 = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            (q3, k3, v3)
        m = Squeeze (m3, zero)
        more = SequenceInsert (done, m)
    }>
    wide_mixed = ConcatFromSequence <axis: int = 0> (rows)
    mixed = Cast <to: int = @dtype> (wide_mixed)
}
"""

SKIP_LAYER_NORMALIZATION = """
SkipLayerNormalization <epsilon: float, dtype: int> (x, skip, gamma, beta, bias) => (out) {
    wide_x = Cast <to: int = 1> (x)
    wide_bias = Cast <to: int = 1> (bias)
    wide_skip = Cast <to: int = 1> (skip)
    wide_gamma = Cast <to: int = 1> (gamma)
    wide_beta = Cast <to: int = 1> (beta)
    sum = Add (wide_x, wide_bias)
    rounded_sum = Cast <to: int = @dtype> (sum)
    wide_sum = Cast <to: int = 1> (rounded_sum)
    total = Add (wide_sum, wide_skip)
    rounded_total = Cast <to: int = @dtype> (total)
    wide_total = Cast <to: int = 1> (rounded_total)
    normal = LayerNormalization <axis: int = -1, epsilon: float = @epsilon>
        (wide_total, wide_gamma, wide_beta)
    out = Cast <to: int = @dtype> (normal)
}
"""

BIAS_GELU = """
BiasGelu <dtype: int> (x, bias) => (out) {
    wide_x = Cast <to: int = 1> (x)
    wide_bias = Cast <to: int = 1> (bias)
    sum = Add (wide_x, wide_bias)
    rounded_sum = Cast <to: int = @dtype> (sum)
    wide_sum = Cast <to: int = 1> (rounded_sum)
    half = Constant <value_float: float = 0.5> ()
    one = Constant <value_float: float = 1.0> ()
    root = Constant <value_float: float = 0.7071067811865476> ()
    scaled = Mul (wide_sum, root)
    error = Erf (scaled)
    above = Add (error, one)
    normal = Mul (above, half)
    rounded_normal = Cast <to: int = @dtype> (normal)
    wide_normal = Cast <to: int = 1> (rounded_normal)
    product = Mul (wide_sum, wide_normal)
    out = Cast <to: int = @dtype> (product)
}
"""

OWN = ("PackedMultiHeadAttention", "SkipLayerNormalization", "BiasGelu")


def runnable(graph: Graph) -> Graph:
    """Return the same computation in operations that ONNX Runtime has on CPUs.

    Args:
        graph: as export.unpadded writes it, or as it is read from a model directory.
    """
    weights = dict(graph.weights)
    halves = {name for name, array in weights.items() if array.dtype == np.float16}
    protos = [widened(proto, halves) for proto in (graph.proto, graph.rectangles) if proto]
    for name in halves:
        weights[name] = weights[name].astype(np.float32)
    return Graph(protos[0], weights, graph.sha256, graph.half, protos[1], graph.recipe)


def widened(proto: bytes, halves: set[str]) -> bytes:
    """Return a model whose large constants in float16, ``halves``, are given in float32."""
    model = ir.serde.deserialize_model(onnx.load_model_from_string(proto))
    for text in (PACKED, SKIP_LAYER_NORMALIZATION, BIAS_GELU):
        function = functions.parse(text, OPSET)
        model.functions[function.identifier()] = function
    model.opset_imports["m3rt"] = 1
    known = types(model)
    for node in [node for node in model.graph if node.op_type in OWN]:
        own = [*node.attributes.values(), ir.AttrInt64("dtype", int(known[node.outputs[0]]))]
        call = ir.node(node.op_type, node.inputs, domain="m3rt", name=node.name)
        call.attributes.update({attribute.name: attribute for attribute in own})
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [call], node.outputs, call.outputs
        )
    InlinePass()(model)
    model.opset_imports.pop("m3rt", None)
    mixed.widen(model)
    for name in halves & model.graph.initializers.keys():
        give_wide(model.graph.initializers[name])
    made: Any = ir.serde.serialize_model(model)
    data: bytes = made.SerializeToString()
    return data


def give_wide(value: ir.Value) -> None:
    """Take a constant in float32 that was float16, without its conversions."""
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    for node, _ in list(value.uses()):
        assert node.op_type == "Cast", node  # nothing else reads float16 here
        replace(list(node.outputs[0].uses()), value)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    value.type = ir.TensorType(FLOAT)
    value.const_value = ir.ExternalTensor(
        tensor.location,
        0,
        2 * tensor.nbytes,
        FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(value.name),
    )
