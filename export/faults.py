"""What a graph without padding must be for ONNX Runtime's fastest kernels to run all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from m3rt.export.edits import FLOAT, Types, types
from m3rt.export.packing import ancestors
from m3rt.export.passes import UnexpectedGraphError, operand

ATTENTIONS = {"varlen": "PackedMultiHeadAttention", "rectangles": "MultiHeadAttention"}
# each form's attention: the inputs after query, key and value, by place
TEXTS = {"varlen": {4: "token_offset", 5: "cu_seqlens"}, "rectangles": {4: "lengths"}}
NORM = "SkipLayerNormalization"


def check(model: ir.Model, form: str, dtype: ir.DataType, layers: int) -> None:
    """Hold a graph to what it must be.

    Args:
        model: what export.unpadded wrote.
        form: varlen or rectangles.
        dtype: of weights and rows.
        layers: that the model has.

    Raises:
        UnexpectedGraphError: names the faults.
    """
    if found := list(faults(model, form, dtype, layers)):
        raise UnexpectedGraphError(f"the {form} graph: {'; '.join(found[:3])}")


def faults(model: ir.Model, form: str, dtype: ir.DataType, layers: int) -> Iterator[str]:
    """Say what is slower or less exact than it should be."""
    known = types(model)
    norms = [node for node in model.graph if node.op_type == NORM]
    if not norms:
        yield f"no {NORM}"
        return
    encoder = ancestors(norms[-1].outputs[0])
    counts = Counter(node.op_type for node in encoder)
    expected = {
        "Gather": 4,  # words, positions, and the rows of attention and residual at the end
        "MatMul": 6 * layers,
        "Add": layers,  # the bias of queries
        ATTENTIONS[form]: layers,
        NORM: 2 * layers + 1,
        "BiasGelu": layers,
    } | ({"Reshape": 4 * layers} if form == "rectangles" else {})
    for kind in sorted(counts.keys() | expected.keys()):
        if counts[kind] != expected.get(kind, 0):
            yield f"{counts[kind]} {kind} in the encoder, expected {expected.get(kind, 0)}"
    for node in [node for node in model.graph if node in encoder]:
        for i, value in enumerate(node.inputs):
            if value is not None and known[value].is_floating_point() and known[value] != dtype:
                yield f"{named(node)} is given {known[value]} as input {i}, expected {dtype}"
        if node.op_type == ATTENTIONS[form]:
            yield from attention_faults(node, form)
        if node.op_type == NORM and not (
            len(node.inputs) == 5
            and all(v is not None and v.is_initializer() for v in node.inputs[2:])
        ):
            yield f"{named(node)} lacks gamma, beta or the bias before it"
    yield from row_faults(encoder)
    yield from output_faults(model, known, dtype)


def attention_faults(node: ir.Node, form: str) -> Iterator[str]:
    """Say what would keep attention from its flash kernel."""
    places = TEXTS[form]
    for i, value in enumerate(node.inputs):
        wanted = places.get(i)
        if i < 3:
            if value is None or value.is_initializer():
                yield f"{named(node)} lacks query, key or value"
        elif wanted is None:
            if value is not None:
                yield f"{named(node)} has {value.name} as input {i}, which its kernel knows not"
        elif value is None or value.name != wanted or not value.is_graph_input():
            yield f"{named(node)} lacks {wanted} as input {i}"
    if len(node.inputs) != max(places) + 1:
        yield f"{named(node)} has {len(node.inputs)} inputs, expected {max(places) + 1}"
    if not {"num_heads", "scale"} <= node.attributes.keys():
        yield f"{named(node)} lacks num_heads or scale"


def row_faults(encoder: set[ir.Node]) -> Iterator[str]:
    """Say whether the last layer goes on with more rows than are wanted."""
    by_rows = [
        node for node in encoder if node.op_type == "Gather" and operand(node, 1).name == "rows"
    ]
    if len(by_rows) != 2:
        yield f"{len(by_rows)} values are cut to the wanted rows, expected 2"


def output_faults(model: ir.Model, known: Types, dtype: ir.DataType) -> Iterator[str]:
    """Say which output is of another type than it should be."""
    for value in model.graph.outputs:
        wanted = dtype if value.name == "colbert" else FLOAT
        if known[value] != wanted:
            yield f"{value.name} is {known[value]}, expected {wanted}"


def named(node: ir.Node) -> str:
    """Name a node."""
    return f"{node.op_type} {node.name}".strip()
