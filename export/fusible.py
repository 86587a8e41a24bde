"""What a graph in mixed precision must be for TensorRT to fuse its attention and lose nothing."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from m3rt.export.edits import FLOAT, HALVES, Types, types
from m3rt.export.passes import UnexpectedGraphError, array, consumer, operand, producer


def check(model: ir.Model, dtype: ir.DataType) -> None:
    """Hold a graph to what it must be for TensorRT to fuse its attention and lose no precision.

    Raises:
        UnexpectedGraphError: names the node, and what was expected there.
    """
    known = types(model)
    masks = set()
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        mask = producer(operand(softmax, 0), "Add")
        scores = producer(round_trip(operand(mask, 0), known, dtype), "MatMul")
        mixed = consumer_of_round_trip(softmax.outputs[0], known, dtype)
        for product in (scores, mixed):
            for i in range(2):
                before = producer(operand(product, i), "Cast")
                expect(known[operand(before, 0)] == dtype, product, f"inputs that were {dtype}")
        expect(known[consumer(mixed.outputs[0], "Cast").outputs[0]] == dtype, mixed, f"{dtype} out")
        scale = producer(operand(producer(operand(scores, 0), "Cast"), 0), "Mul")
        producer(operand(scale, 0), "Transpose")
        masks.add(operand(mask, 1))
    if not masks:
        raise UnexpectedGraphError("no attention found")
    if len(masks) > 1:
        raise UnexpectedGraphError(f"{len(masks)} masks, expected one for all layers")
    check_mask(masks.pop())
    for node in model.graph:
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceSum", "ReduceMean", "Gelu"):
            expect(known[operand(node, 0)] not in HALVES, node, "float32")
        if node.op_type in ("MatMul", "Add", "Mul", "Div", "Sub"):
            left, right = (known[operand(node, i)] for i in range(2))
            expect(left == right, node, f"inputs of one type, found {left} and {right}")


def check_mask(mask: ir.Value) -> None:
    """Require the additive mask (B, 1, 1, S), made of attention_mask by four operations.

    One for each pair of tokens, (B, 1, S, S), would be held in memory before any fusion.
    """
    shift = producer(producer(mask, "Mul").inputs[0], "Sub")
    axes = producer(operand(producer(operand(shift, 1), "Cast"), 0), "Unsqueeze")
    expect(array(operand(axes, 1)).tolist() == [1, 2], axes, "axes 1 and 2")


def round_trip(value: ir.Value, known: Types, dtype: ir.DataType) -> ir.Value:
    """Return what was rounded to a type and widened again to give a value."""
    up = producer(value, "Cast")
    down = producer(operand(up, 0), "Cast")
    expect(known[down.outputs[0]] == dtype, down, f"a rounding to {dtype}")
    expect(known[value] == FLOAT, up, "float32 after the rounding")
    return operand(down, 0)


def consumer_of_round_trip(value: ir.Value, known: Types, dtype: ir.DataType) -> ir.Node:
    """Return the product that reads a value after it was rounded to a type and widened again."""
    product = consumer(consumer(consumer(value, "Cast").outputs[0], "Cast").outputs[0], "MatMul")
    round_trip(operand(product, 0), known, dtype)
    return product


def expect(right: bool, node: ir.Node, what: str) -> None:
    """Refuse a node.

    Raises:
        UnexpectedGraphError: it is not right.
    """
    if not right:
        raise UnexpectedGraphError(f"{node.op_type} {node.name}: expected {what}")


def half_products(model: ir.Model) -> Iterator[str]:
    """Give the names of the linear layers whose weights are in half precision."""
    for node in model.graph:
        if node.op_type == "MatMul" and operand(node, 1).dtype in HALVES:
            yield str(node.name)
