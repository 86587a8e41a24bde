"""The parts of the portable graph, found by what feeds what: for graphs that are written anew.

Weights are found through the operations that read them, not by name: layers whose weights are equal
share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from m3rt.export.packing import ancestors
from m3rt.export.passes import (
    Attention,
    UnexpectedGraphError,
    array,
    attentions,
    consumer,
    operand,
    producer,
)


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with a weight (in, out), and its bias (out,)."""

    weight: ir.Value
    bias: ir.Value


@dataclass(frozen=True, slots=True)
class Norm:
    """A LayerNormalization over the last axis."""

    gamma: ir.Value
    beta: ir.Value
    epsilon: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer, normalised after each residual."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attended: Norm
    inner: Linear  # before GELU
    outer: Linear
    norm: Norm
    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Three vectors that are added and normalised."""

    words: ir.Value  # (vocabulary, h)
    positions: ir.Value  # (positions, h)
    kind: ir.Value  # (h,) of token type 0
    norm: Norm
    from_pad: bool  # positions count from the padding id, as RoBERTa's; else from 0


@dataclass(frozen=True, slots=True)
class Head:
    """What is made of first tokens' vectors: dense or score."""

    pooled: ir.Value  # (B, h)
    nodes: tuple[ir.Node, ...]  # in order
    out: ir.Value


@dataclass(frozen=True, slots=True)
class Network:
    """All of it. A head that the model lacks is None."""

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    of_text: Head | None  # dense or score
    sparse: Linear | None
    colbert: Linear | None


def read(model: ir.Model) -> Network:
    """Find the parts of the portable graph of a model that pools first tokens.

    Raises:
        UnexpectedGraphError: it is not of that form; says where.
    """
    first = next((node for node in model.graph if node.op_type == "LayerNormalization"), None)
    if first is None:
        raise UnexpectedGraphError("no LayerNormalization found")
    hidden = first.outputs[0]
    layers = []
    for attention in attentions(model):
        layer, hidden = layer_after(hidden, attention)
        layers.append(layer)
    if not layers:
        raise UnexpectedGraphError("no attention found")
    outputs = {str(value.name): value for value in model.graph.outputs}
    of_text = sparse = colbert = None
    if (out := outputs.get("dense", outputs.get("score"))) is not None:
        pooled = first_tokens(hidden)
        wanted = ancestors(out) - ancestors(pooled)
        of_text = Head(pooled, tuple(node for node in model.graph if node in wanted), out)
    if "sparse" in outputs:
        relu = producer(producer(outputs["sparse"], "Squeeze").inputs[0], "Relu")
        sparse = linear(operand(relu, 0), hidden)
    if "colbert" in outputs:
        colbert = linear(operand(producer(outputs["colbert"], "Div"), 0), hidden)
    return Network(embeddings(first), tuple(layers), of_text, sparse, colbert)


def embeddings(node: ir.Node) -> Embeddings:
    """Find what the first LayerNormalization adds up."""
    total = producer(node.inputs[0], "Add")
    named = producer(operand(total, 0), "Add")
    words = producer(operand(named, 0), "Gather")
    places = producer(operand(total, 1), "Gather")
    kind = operand(named, 1)
    for table in (operand(words, 0), operand(places, 0), kind):
        expect_constant(table)
    counted = operand(places, 1)
    if producer(counted, "Add", "Sub").op_type == "Sub":
        return Embeddings(operand(words, 0), operand(places, 0), kind, norm(node), False)
    real = producer(producer(counted, "Add").inputs[0], "Mul")
    producer(producer(producer(real.inputs[1], "Cast").inputs[0], "Not").inputs[0], "Equal")
    return Embeddings(operand(words, 0), operand(places, 0), kind, norm(node), True)


def layer_after(x: ir.Value, found: Attention) -> tuple[Layer, ir.Value]:
    """Return the layer that reads a value, and what it gives."""
    query, key, value = (linear(part, x) for part in (found.query, found.key, found.value))
    output, added = linear_before(found.out)
    attended, middle = norm_of_sum(added, x)
    inner, activated = linear_before(middle)
    gelu = consumer(activated, "Gelu")
    if (how := gelu.attributes.get("approximate")) is not None and how.as_string() != "none":
        raise UnexpectedGraphError(f"expected GELU by erf, found {how.as_string()}")
    outer, out = linear_before(gelu.outputs[0])
    final, hidden = norm_of_sum(out, middle)
    parts = (query, key, value, output, attended, inner, outer, final)
    return Layer(*parts, heads=found.heads, scale=found.scale), hidden


def linear(value: ir.Value, x: ir.Value) -> Linear:
    """Return the linear layer that makes a value from x."""
    add = producer(value, "Add")
    product = producer(add.inputs[0], "MatMul")
    if operand(product, 0) is not x:
        raise UnexpectedGraphError(f"expected {product} to read {x}, found {operand(product, 0)}")
    weight, bias = operand(product, 1), operand(add, 1)
    expect_constant(weight)
    expect_constant(bias)
    return Linear(weight, bias)


def linear_before(x: ir.Value) -> tuple[Linear, ir.Value]:
    """Return the one linear layer that reads a value, and what it gives."""
    products = [node for node, _ in x.uses() if node.op_type == "MatMul"]
    if len(products) != 1:
        raise UnexpectedGraphError(f"expected one MatMul after {x}, found {products}")
    out = consumer(products[0].outputs[0], "Add").outputs[0]
    return linear(out, x), out


def norm_of_sum(value: ir.Value, residual: ir.Value) -> tuple[Norm, ir.Value]:
    """Return what normalises a value after the residual is added, and what it gives."""
    total = consumer(value, "Add")
    if residual not in total.inputs:
        raise UnexpectedGraphError(f"expected {total} to add {residual}, found {total.inputs}")
    node = consumer(total.outputs[0], "LayerNormalization")
    return norm(node), node.outputs[0]


def norm(node: ir.Node) -> Norm:
    """Read a LayerNormalization."""
    gamma, beta = operand(node, 1), operand(node, 2)
    expect_constant(gamma)
    expect_constant(beta)
    return Norm(gamma, beta, node.attributes["epsilon"].as_float())


def first_tokens(hidden: ir.Value) -> ir.Value:
    """Return the vectors of first tokens."""
    for node, _ in hidden.uses():
        if node.op_type == "Gather" and node.attributes["axis"].as_int() == 1:
            if array(operand(node, 1)) != 0:
                raise UnexpectedGraphError(f"expected the first tokens of {hidden}, found {node}")
            return node.outputs[0]
    raise UnexpectedGraphError(f"expected a Gather of first tokens after {hidden}")


def expect_constant(value: ir.Value) -> None:
    """Refuse what is computed.

    Raises:
        UnexpectedGraphError: it is.
    """
    if not value.is_initializer():
        raise UnexpectedGraphError(f"expected a constant, found {value}")
