"""Edits of a graph's nodes, and the types that its values have by its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from m3rt.export.passes import operand

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Types = dict[ir.Value, ir.DataType]


def types(model: ir.Model) -> Types:
    """Return the type of every value of floats, as the operations give it; int64 for the rest."""
    known: Types = {value: value.dtype or FLOAT for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        known[value] = value.dtype or FLOAT
    for node in model.graph:
        for value in node.outputs:
            known[value] = RESULT.get(node.op_type, as_first)(node, known)
    return known


def as_first(node: ir.Node, known: Types) -> ir.DataType:
    """As most operations: the type of the first input; of no input, int64."""
    return known[operand(node, 0)] if node.inputs else ir.DataType.INT64


RESULT: dict[str, Callable[[ir.Node, Types], ir.DataType]] = {
    "Cast": lambda node, known: target(node),
    "DequantizeLinear": lambda node, known: known[operand(node, 1)],  # of its scale
    "QuantizeLinear": lambda node, known: known[operand(node, 2)],  # of its zero point
    "Shape": lambda node, known: ir.DataType.INT64,
    "SimplifiedLayerNormalization": lambda node, known: known[operand(node, 1)],  # of its scale
    **dict.fromkeys(
        ("Equal", "Not", "Less", "And", "Or", "GreaterOrEqual"),
        lambda node, known: ir.DataType.BOOL,
    ),
}


def target(node: ir.Node) -> ir.DataType:
    """Return what a Cast converts to."""
    return ir.DataType(node.attributes["to"].as_int())


def put(place: ir.Node, kind: str, inputs: list[ir.Value], **options: int) -> ir.Value:
    """Insert a node before another; return its output."""
    node = ir.node(kind, inputs, options)
    assert place.graph is not None
    place.graph.insert_before(place, node)
    return node.outputs[0]


def cast(place: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    """Convert a value before a node."""
    return put(place, "Cast", [value], to=int(to))


def rounded(place: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Round a float32 to a type and widen it again, before a node."""
    return cast(place, cast(place, value, dtype), FLOAT)


def convert_after(node: ir.Node, to: ir.DataType) -> None:
    """Convert what a node gives, for all who read it."""
    users = list(node.outputs[0].uses())
    after = ir.node("Cast", [node.outputs[0]], {"to": int(to)})
    assert node.graph is not None
    node.graph.insert_after(node, after)
    replace(users, after.outputs[0])


def replace(users: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    """Let nodes read another value."""
    for user, i in users:
        user.replace_input_with(i, value)


def put_out(model: ir.Model, output: ir.Value, value: ir.Value, dtype: ir.DataType) -> None:
    """Give a value in the place of an output, under its name; that one is still there inside."""
    value.name, value.shape, value.type = output.name, output.shape, ir.TensorType(dtype)
    output.name, output.shape, output.type = f"{output.name}_float", None, None
    model.graph.outputs[model.graph.outputs.index(output)] = value
