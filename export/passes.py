"""Passes over the ONNX graph: one function each, in place, on what export.graph traced.

The traced graph is the portable form: rectangles of ids and an additive mask. Engines take
their own form from it, so every form holds the same weights under the same names, in the one
external data file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Attention:
    """One scaled dot-product attention of the portable graph."""

    query: ir.Value  # (B, S, h), bias added, heads not yet split
    key: ir.Value
    value: ir.Value
    out: ir.Value  # (B, S, h), heads joined again
    heads: int
    scale: float


class UnexpectedGraphError(Exception):
    """The graph is not of the form that a pass was written for."""


def producer(value: ir.Value | None, *kinds: str) -> ir.Node:
    """Return the node that makes a value, which must be of one of these kinds."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in kinds:
        found = node.op_type if node is not None else "an input"
        raise UnexpectedGraphError(f"expected {' or '.join(kinds)} before {value}, found {found}")
    return node


def consumer(value: ir.Value, kind: str) -> ir.Node:
    """Return the only node that reads a value, which must be of this kind."""
    users = [node for node, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != kind:
        raise UnexpectedGraphError(f"expected {kind} after {value}, found {users}")
    return users[0]


def operand(node: ir.Node, i: int) -> ir.Value:
    """Return an input that must be there."""
    value = node.inputs[i]
    if value is None:
        raise UnexpectedGraphError(f"input {i} of {node} is absent")
    return value


def array(value: ir.Value | None) -> np.ndarray:
    """Return a constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        raise UnexpectedGraphError(f"{value} is not constant")
    return tensor.numpy()


def name_weights(model: ir.Model) -> None:
    """Name the weight of every linear layer after its module; the exporter numbers them.

    The weight stands transposed, (in, out), as MatMul reads it. Two layers whose weights are
    equal share one, under the name of the last.
    """
    for node in model.graph:
        if node.op_type != "MatMul" or not operand(node, 1).is_initializer():
            continue
        # the modules around the operation, outermost first, then the operation itself
        scopes = ast.literal_eval(node.metadata_props["pkg.torch.onnx.name_scopes"])
        weight = operand(node, 1)
        weight.name = f"{scopes[-2]}.weight"
        if weight.const_value is not None:
            weight.const_value.name = weight.name


def strip_metadata(model: ir.Model) -> None:
    """Drop what the exporter noted: stack traces, with paths of the exporting machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def attentions(model: ir.Model) -> Iterator[Attention]:
    """Find every attention, first layer first.

    Raises:
        UnexpectedGraphError: a Softmax that is not in one.
    """
    for node in [node for node in model.graph if node.op_type == "Softmax"]:
        scaled = operand(producer(node.inputs[0], "Add"), 0)
        scale = producer(scaled, "Mul")
        scores = producer(scale.inputs[0], "MatMul")
        split_query = producer(producer(scores.inputs[0], "Transpose").inputs[0], "Reshape")
        split_key = producer(producer(scores.inputs[1], "Transpose").inputs[0], "Reshape")
        mixed = consumer(node.outputs[0], "MatMul")
        split_value = producer(producer(mixed.inputs[1], "Transpose").inputs[0], "Reshape")
        joined = consumer(consumer(mixed.outputs[0], "Transpose").outputs[0], "Reshape")
        shape = split_query.outputs[0].shape
        if shape is None or not isinstance(shape[2], int):
            raise UnexpectedGraphError(f"the number of heads of {node} is not known: {shape}")
        yield Attention(
            query=operand(split_query, 0),
            key=operand(split_key, 0),
            value=operand(split_value, 0),
            out=joined.outputs[0],
            heads=shape[2],
            scale=float(array(scale.inputs[1])),
        )
