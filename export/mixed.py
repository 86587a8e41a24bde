"""Mixed precision: products in float16 or bfloat16, all that adds up in float32.

Passes over the portable graph, for engines that compute in the types that are written (TensorRT,
strongly typed). Linear layers and attention multiply in half precision; the residual stream,
LayerNorm, GELU, Softmax and norms stay in float32, which costs TensorRT no further kernel. Linear
layers that are quantised are left as they are, in float32 around their roundings.

Each pass says what it expects, and raises UnexpectedGraphError where it does not find it;
export.fusible holds the result to what TensorRT fuses.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from m3rt.errors import ParityError
from m3rt.export.edits import (
    FLOAT,
    HALF,
    HALVES,
    cast,
    convert_after,
    put,
    put_out,
    replace,
    rounded,
    target,
    types,
)
from m3rt.export.fusible import check
from m3rt.export.passes import (
    Attention,
    UnexpectedGraphError,
    array,
    attentions,
    consumer,
    operand,
    producer,
)

TABLES = ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight")
# Linear layers with a row for every token. A reranker's classifier has one for each text: too few
# to gain, and its scores are close to each other.
PER_TOKEN = ("encoder.", "sparse_linear.", "colbert_linear.")
LARGEST = 65504.0  # of float16


def mix(model: ir.Model, dtype: ir.DataType) -> None:
    """Do all of it, in place.

    Args:
        model: the portable graph, or one that export.rewriter has quantised.
        dtype: float16 or bfloat16, for what is not quantised.
    """
    name_products(model)
    narrow_inputs(model)
    halve_linears(model, dtype)
    halve_attention(model, dtype)
    halve_tables(model, dtype)
    halve_colbert(model)
    join_casts(model)
    forget_types(model)
    check(model, dtype)


def name_products(model: ir.Model) -> None:
    """Name products after their weights, so that TensorRT's own reports can be read."""
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        weight = operand(node, 1)
        up = weight.producer()
        if up is not None and up.op_type == "DequantizeLinear":
            weight = operand(up, 0)
        if weight.is_initializer():
            node.name = str(weight.name).partition(".weight")[0]
    for i, found in enumerate(attentions(model)):
        scores, *_, mixing = chain(found)
        scores.name, mixing.name = f"attention.{i}.scores", f"attention.{i}.mixing"


def narrow_inputs(model: ir.Model) -> None:
    """Take ids and mask as int32: half the bytes to copy to a device."""
    for value in model.graph.inputs:
        if value.dtype != ir.DataType.INT64:
            raise UnexpectedGraphError(f"expected the input {value} as int64")
        users = list(value.uses())
        value.type = ir.TensorType(ir.DataType.INT32)
        wide = ir.node("Cast", [value], {"to": int(ir.DataType.INT64)})
        model.graph.insert_before(model.graph[0], wide)
        replace(users, wide.outputs[0])


def halve_linears(model: ir.Model, dtype: ir.DataType) -> None:
    """Multiply by constant weights, and add the bias, in half precision."""
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        weight = operand(node, 1)
        if not (weight.is_initializer() and str(weight.name).startswith(PER_TOKEN)):
            continue
        add = consumer(node.outputs[0], "Add")
        bias = next(i for i, v in enumerate(add.inputs) if v is not None and v.is_initializer())
        node.replace_input_with(0, cast(node, operand(node, 0), dtype))
        node.replace_input_with(1, constant(weight, dtype))
        add.replace_input_with(bias, constant(operand(add, bias), dtype))
        convert_after(add, FLOAT)


def halve_attention(model: ir.Model, dtype: ir.DataType) -> None:
    """Round what enters and leaves the products of attention, and add them up in float32.

    TensorRT fuses this form, with accumulators in float32. Both roundings between the products are
    needed: without either it does not fuse, and holds the scores of all pairs of tokens. The scale
    moves to the queries, as NVIDIA advises.
    """
    for found in list(attentions(model)):
        scores, scale, mask, softmax, mixed = chain(found)
        query, key, value = operand(scores, 0), operand(scores, 1), operand(mixed, 1)
        for split in (query, key, value):
            reshape = producer(producer(split, "Transpose").inputs[0], "Reshape")
            reshape.replace_input_with(0, cast(reshape, operand(reshape, 0), dtype))
        scaled = put(scores, "Mul", [query, constant(operand(scale, 1), dtype)])
        scores.replace_input_with(0, cast(scores, scaled, FLOAT))
        scores.replace_input_with(1, cast(scores, key, FLOAT))
        mask.replace_input_with(0, rounded(mask, scores.outputs[0], dtype))
        model.graph.remove(scale, safe=True)
        mixed.replace_input_with(0, rounded(mixed, softmax.outputs[0], dtype))
        mixed.replace_input_with(1, cast(mixed, value, FLOAT))
        transpose = consumer(mixed.outputs[0], "Transpose")
        transpose.replace_input_with(0, cast(transpose, mixed.outputs[0], dtype))
        convert_after(consumer(transpose.outputs[0], "Reshape"), FLOAT)


def halve_tables(model: ir.Model, dtype: ir.DataType) -> None:
    """Store the embeddings in half precision; their sum and LayerNorm are float32."""
    for node in [n for n in model.graph if n.op_type == "Gather"]:
        if operand(node, 0).name in TABLES:
            node.replace_input_with(0, constant(operand(node, 0), dtype))
            convert_after(node, FLOAT)


def halve_colbert(model: ir.Model) -> None:
    """Give ColBERT vectors as float16, whatever the layers are: half the bytes to copy back."""
    for output in [output for output in model.graph.outputs if output.name == "colbert"]:
        last = output.producer()
        assert last is not None
        node = ir.node("Cast", [output], {"to": int(HALF)})
        model.graph.insert_after(last, node)
        put_out(model, output, node.outputs[0], HALF)


def join_casts(model: ir.Model) -> None:
    """Drop conversions that change nothing, and make each one once.

    Up and down again is exact, so it goes; down and up again rounds, so it stays.
    """
    known = types(model)
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    kept = set(model.graph.outputs)
    for node in [n for n in model.graph if n.op_type == "Cast" and n.outputs[0] not in kept]:
        source, to = operand(node, 0), target(node)
        up = source.producer()
        if known[source] == to:
            same = source
        elif up is not None and up.op_type == "Cast" and known[operand(up, 0)] == to in HALVES:
            same = operand(up, 0)
        else:
            same = made.setdefault((source, to), node.outputs[0])
        if same is not node.outputs[0]:
            ir.convenience.replace_all_uses_with(node.outputs[0], same)
            model.graph.remove(node, safe=True)
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value in kept for value in node.outputs):
            model.graph.remove(node, safe=True)


def forget_types(model: ir.Model) -> None:
    """Drop noted types and shapes inside the graph, which are no longer true."""
    kept = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in kept:
                value.type = value.shape = None


def widen(model: ir.Model) -> None:
    """Let every operation compute in float32, and round what it gives to the type it had.

    ONNX Runtime has no half precision on CPUs; of this graph it computes the same as a GPU that
    adds up in float32.
    """
    known, outputs = types(model), set(model.graph.outputs)
    for node in list(model.graph):
        if node.op_type in ("Cast", "DequantizeLinear", "QuantizeLinear"):
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and known[value] in HALVES:
                node.replace_input_with(i, cast(node, value, FLOAT))
        for value in node.outputs:
            if known[value] in HALVES:
                users = list(value.uses())
                down = ir.node("Cast", [value], {"to": int(known[value])})
                model.graph.insert_after(node, down)
                known[down.outputs[0]] = known[value]
                replace(users, down.outputs[0])
                if value in outputs:
                    put_out(model, value, down.outputs[0], known[value])


def chain(found: Attention) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node, ir.Node]:
    """Return scores, scale, mask, softmax and mixing of an attention of the portable graph."""
    reshape = consumer(found.query, "Reshape")
    scores = consumer(consumer(reshape.outputs[0], "Transpose").outputs[0], "MatMul")
    scale = consumer(scores.outputs[0], "Mul")
    mask = consumer(scale.outputs[0], "Add")
    softmax = consumer(mask.outputs[0], "Softmax")
    return scores, scale, mask, softmax, consumer(softmax.outputs[0], "MatMul")


def constant(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return a constant in half precision, one for all who read it; converted when it is read."""
    graph = value.graph
    assert graph is not None
    assert value.shape is not None
    name = f"{value.name}.{dtype.name.lower()}"
    if name not in graph.initializers:
        tensor = ir.LazyTensor(lambda: convert(value, dtype), dtype, value.shape, name=name)
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        graph.initializers[name] = made
    return graph.initializers[name]


def convert(value: ir.Value, dtype: ir.DataType) -> ir.TensorProtocol:
    """Convert the numbers of a constant.

    Raises:
        ParityError: float16 cannot hold one of them.
    """
    half = narrowed(str(value.name), array(value), dtype, "build with --precision bf16")
    release(value.const_value)
    return ir.Tensor(half, dtype=dtype, name=value.name)


def narrowed(name: str, numbers: np.ndarray, dtype: ir.DataType, cure: str) -> np.ndarray:
    """Round numbers to a type.

    Raises:
        ParityError: float16 cannot hold one of them; ends with the cure.
    """
    reach = max(float(numbers.max(initial=0)), -float(numbers.min(initial=0)))
    if dtype == HALF and not reach <= LARGEST:
        raise ParityError(f"{name} reaches {reach:g}, float16 only {LARGEST:g}: {cure}")
    return numbers.astype(dtype.numpy())


def release(tensor: object) -> None:
    """Let go of the file that a constant was read from, for its pages count as memory."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
