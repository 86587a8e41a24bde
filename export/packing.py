"""The packed form of the graph: tokens end to end, no padding, heads on demand.

A pass over the portable form, in functions of ONNX's own textual syntax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from m3rt.export.passes import UnexpectedGraphError, attentions, consumer, operand

INT64 = ir.DataType.INT64
POSITIONS = "embeddings.position_embeddings.weight"

# What stands in for the rectangular parts of the graph when tokens are packed, in ONNX's own
# textual syntax. n texts, t tokens; starts (n + 1,) says where each text begins.
PACKED = (
    """
<domain: "m3rt", opset_import: ["": 20]>
Owner (ids, starts) => (begin, owner) {
    # begin (n,): first token of each text; owner (t,): the text of each token
    zero = Constant <value_ints: ints = [0]> ()
    minus_one = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    begin = Slice (starts, zero, minus_one, zero)
    size = Size (ids)
    places = Range (first, size, one)
    column = Unsqueeze (begin, minus_one)
    begun = LessOrEqual (column, places)
    begun_int = Cast <to: int = 7> (begun)
    count = ReduceSum <keepdims: int = 0> (begun_int, zero)
    owner = Sub (count, one)
}
    """,
    """
<domain: "m3rt", opset_import: ["": 20]>
PositionsFromPad <pad_id: int> (ids, begin, owner) => (positions) {
    # as RoBERTa counts: the padding id takes no position, even as part of a text
    axis = Constant <value_int: int = 0> ()
    pad = Constant <value_int: int = @pad_id> ()
    is_pad = Equal (ids, pad)
    is_real = Not (is_pad)
    real = Cast <to: int = 7> (is_real)
    count = CumSum (real, axis)
    exclusive = Sub (count, real)
    before_text = Gather (exclusive, begin)
    before_token = Gather (before_text, owner)
    within = Sub (count, before_token)
    real_within = Mul (within, real)
    positions = Add (real_within, pad)
}
    """,
    """
<domain: "m3rt", opset_import: ["": 20]>
PositionsFromZero (ids, begin, owner) => (positions) {
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    size = Size (ids)
    places = Range (first, size, one)
    begin_of_token = Gather (begin, owner)
    positions = Sub (places, begin_of_token)
}
    """,
    """
<domain: "m3rt", opset_import: ["": 20, "com.microsoft": 1]>
Attention <heads: int, scale: float> (query, key, value, starts) => (mixed) {
    # text by text, without a mask: (t, h) to (t, h)
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    always = Constant <value: tensor = bool {1}> ()
    none = SequenceEmpty <dtype: int = 1> ()
    n_starts = Size (starts)
    scalar_one = Constant <value_int: int = 1> ()
    texts = Sub (n_starts, scalar_one)
    rows = Loop (texts, always, none) <body = text
        (int64 i, bool go, seq(float) done) => (bool go_on, seq(float) more) {
        go_on = Identity (go)
        at = Unsqueeze (i, zero)
        after = Add (at, one)
        from = Gather (starts, at)
        to = Gather (starts, after)
        q = Slice (query, from, to, zero)
        k = Slice (key, from, to, zero)
        v = Slice (value, from, to, zero)
        q3 = Unsqueeze (q, zero)
        k3 = Unsqueeze (k, zero)
        v3 = Unsqueeze (v, zero)
        m3 = com.microsoft.MultiHeadAttention <num_heads: int = @heads, scale: float = @scale>
            (q3, k3, v3)
        m = Squeeze (m3, zero)
        more = SequenceInsert (done, m)
    }>
    mixed = ConcatFromSequence <axis: int = 0> (rows)
}
    """,
    """
<domain: "m3rt", opset_import: ["": 20]>
Mean (hidden, starts, begin, owner) => (pooled) {
    # the mean of each text's rows: (t, h) to (n, h)
    axis = Constant <value_ints: ints = [1]> ()
    one = Constant <value_int: int = 1> ()
    n_starts = Size (starts)
    texts = Sub (n_starts, one)
    zero = Constant <value_int: int = 0> ()
    numbers = Range (zero, texts, one)
    column = Unsqueeze (numbers, axis)
    own = Equal (column, owner)
    member = Cast <to: int = 1> (own)
    total = MatMul (member, hidden)
    count = ReduceSum <keepdims: int = 1> (member, axis)
    pooled = Div (total, count)
}
    """,
)


def pack(model: ir.Model, *, pooling: str, pad_id: int, from_pad: bool) -> None:
    """Turn the portable graph into one over tokens packed end to end.

    Inputs become ``input_ids (t,)`` and ``starts (n + 1,)``, outputs ``dense (n, h)``,
    ``sparse (t,)`` and ``colbert (t, d)``; see gate_heads for the inputs ``want_...``. Linear
    layers, LayerNorm and heads work on rows and need no change; nothing is computed for padding,
    and no mask is needed: attention runs text by text, which also lets ONNX Runtime take its
    flash kernel on CPUs, and makes a text's result independent of its batch mates.

    Args:
        model: the portable graph; changed in place.
        pooling: cls or mean.
        pad_id: the padding id.
        from_pad: whether positions count from the padding id (RoBERTa) or from 0 (BERT).
    """
    graph = model.graph
    ids, mask = graph.inputs
    found = list(attentions(model))
    hidden = [node for node in graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    pooled = dense_input(hidden, pooling)

    for text in PACKED:
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        model.functions[function.identifier()] = function
    starts = ir.Value(name="starts", shape=ir.Shape(["texts + 1"]), type=ir.TensorType(INT64))
    ids.shape = ir.Shape(["tokens"])
    graph.inputs.append(starts)

    begin, owner = call(graph[0], "Owner", [ids, starts], 2)
    lookup = next(n for n in graph if operand(n, 0).name == POSITIONS)
    places = [ids, begin, owner]
    positions = (
        call(lookup, "PositionsFromPad", places, pad_id=pad_id)
        if from_pad
        else call(lookup, "PositionsFromZero", places)
    )
    lookup.replace_input_with(1, positions[0])
    for attention in found:
        inputs = [attention.query, attention.key, attention.value, starts]
        (mixed,) = call(
            before(attention.out),
            "Attention",
            inputs,
            heads=attention.heads,
            scale=attention.scale,
        )
        replace(attention.out, mixed)
    if pooled is not None:
        if pooling == "cls":
            rows = ir.node("Gather", [hidden, begin])
            graph.insert_before(before(pooled), rows)
            replace(pooled, rows.outputs[0])
        else:
            replace(pooled, call(before(pooled), "Mean", [hidden, starts, begin, owner])[0])

    RemoveUnusedNodesPass()(model)
    InlinePass()(model)
    graph.inputs.remove(mask)
    forget_shapes(model)
    gate_heads(model, hidden)


def gate_heads(model: ir.Model, hidden: ir.Value) -> None:
    """Let the caller choose the heads: an input ``want_<head>``, a scalar bool, for each.

    A head not wanted is not computed and comes out empty. ONNX Runtime runs every node of a
    graph, whichever outputs are fetched, so the choice has to be part of the graph.
    """
    graph = model.graph
    after = descendants(hidden)
    for i, out in enumerate(list(graph.outputs)):
        own = [node for node in graph if node in after & ancestors(out)]
        wanted = ir.Value(
            name=f"want_{out.name}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)
        )
        graph.inputs.append(wanted)
        # as many axes as the head has: empty in the first
        rank = {"dense": (0, 0), "sparse": (0,), "colbert": (0, 0)}[str(out.name)]
        empty = ir.node("Constant", [], {"value": ir.tensor(np.empty(rank, np.float32))})
        empty.outputs[0].name = f"{out.name}_empty"
        chosen = ir.Value(name=out.name, type=out.type)
        out.name = f"{out.name}_wanted"
        graph.outputs[i] = chosen
        graph.remove(own)
        branches = {
            "then_branch": ir.Graph([], [out], nodes=own, name=f"{chosen.name}_then"),
            "else_branch": ir.Graph([], empty.outputs, nodes=[empty], name=f"{chosen.name}_else"),
        }
        graph.append(ir.node("If", [wanted], branches, outputs=[chosen]))


def descendants(value: ir.Value) -> set[ir.Node]:
    """Return every node that depends on a value."""
    found: set[ir.Node] = set()
    queue = [value]
    while queue:
        nodes = {node for node, _ in queue.pop().uses()} - found
        found |= nodes
        queue += [out for node in nodes for out in node.outputs]
    return found


def ancestors(value: ir.Value) -> set[ir.Node]:
    """Return every node that a value depends on."""
    found: set[ir.Node] = set()
    queue = [value]
    while queue:
        node = queue.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            queue += [operand for operand in node.inputs if operand is not None]
    return found


def dense_input(hidden: ir.Value, pooling: str) -> ir.Value | None:
    """Return what the dense head normalises, (B, h), or None if there is no dense head."""
    for node, _ in hidden.uses():
        if pooling == "cls" and node.op_type == "Gather":
            return node.outputs[0]
        if pooling == "mean" and node.op_type == "Mul":
            return consumer(consumer(node.outputs[0], "ReduceSum").outputs[0], "Div").outputs[0]
    return None


def before(value: ir.Value) -> ir.Node:
    """Return the node that makes a value: where its replacement goes."""
    node = value.producer()
    if node is None:
        raise UnexpectedGraphError(f"{value} is an input")
    return node


def call(
    place: ir.Node, name: str, inputs: Sequence[ir.Value], count: int = 1, **options: int | float
) -> Sequence[ir.Value]:
    """Insert a call of one of the functions of PACKED before a node."""
    node = ir.node(name, inputs, options, domain="m3rt", num_outputs=count)
    graph = place.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(place, node)
    return node.outputs


def replace(value: ir.Value, new: ir.Value) -> None:
    """Let every reader of a value read another."""
    ir.convenience.replace_all_uses_with(value, new)


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes noted for values inside the graph, which a pass has made wrong."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
