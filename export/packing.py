"""The packed forms of the graph: tokens end to end, no padding, heads on demand.

Passes over the portable form. Linear layers, LayerNorm and heads work on rows and need no change;
what does change is in export.functions.

packed    attention text by text in a loop: ONNX Runtime
grouped   attention over rectangles that are gathered for it alone: OpenVINO
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from m3rt.export import functions
from m3rt.export.passes import (
    Attention,
    UnexpectedGraphError,
    attentions,
    consumer,
    operand,
    producer,
)
from m3rt.types import Pooling

INT64 = ir.DataType.INT64
POSITIONS = "embeddings.position_embeddings.weight"

OF_TEXT = ("dense", "score")  # heads that give a row for each text; a model has one of them

# form to the version of ONNX's operators, and what is of that form alone
FORMS = {
    "packed": (20, (functions.ATTENTION_LOOP, functions.MEAN_LOOP)),
    # 23 has Attention
    "grouped": (23, (functions.GRID, functions.ATTENTION_GRID, functions.MEAN_GRID)),
}


def pack(
    model: ir.Model,
    form: str,
    *,
    pooling: str,
    cls_interval: int | None,
    pad_id: int,
    from_pad: bool,
) -> None:
    """Turn the portable graph into one over tokens packed end to end.

    Inputs become ``input_ids (t,)``, ``starts (n + 1,)`` and, for each head, a scalar bool
    ``want_<head>``; outputs ``dense (n, h)``, ``sparse (t,)`` and ``colbert (t, d)``, or a
    reranker's ``score (n,)``. A head not wanted comes out with no rows, and nothing is computed
    for it; where only the CLS tokens' vectors are wanted, the last layer computes no others. No
    branches: the number of rows says it all, which every runtime understands.

    Args:
        model: the portable graph; changed in place.
        form: packed or grouped.
        pooling: cls, mean or mcls.
        cls_interval: for mcls, the tokens from one CLS token to the next.
        pad_id: the padding id.
        from_pad: whether positions count from the padding id (RoBERTa) or from 0 (BERT).
    """
    graph = model.graph
    ids, mask = graph.inputs
    found = list(attentions(model))
    hidden = [node for node in graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    width = size_of(found[-1].out, -1)
    pooled = dense_input(hidden, pooling)

    opset, own = FORMS[form]
    model.opset_imports[""] = opset
    for text in (*functions.COMMON, *own):
        function = functions.parse(text, opset)
        model.functions[function.identifier()] = function
    starts = ir.Value(name="starts", shape=ir.Shape(["texts + 1"]), type=ir.TensorType(INT64))
    ids.shape = ir.Shape(["tokens"])
    graph.inputs.append(starts)
    wanted = {str(out.name): count_of(graph, str(out.name)) for out in graph.outputs}

    top = graph[len(wanted)]
    (size,) = insert(top, "Size", [ids])
    begin, owner = call(top, "Owner", [size, starts], 2)
    lookup = next(n for n in graph if operand(n, 0).name == POSITIONS)
    (positions,) = call(
        lookup,
        "PositionsFromPad" if from_pad else "PositionsFromZero",
        [ids, begin, owner],
        pad_id=pad_id,
        last=size_of(operand(lookup, 0), 0) - 1,
    )
    lookup.replace_input_with(1, positions)

    # what attention is told of the texts, for queries and for keys
    start = before(found[0].out)
    texts = (
        [starts, starts]
        if form == "packed"
        else grids(start, (starts, begin, owner), (starts, begin, owner))
    )
    last_texts = texts
    if pooling != Pooling.MEAN:
        places, place_starts = cls_places(start, starts, begin, cls_interval)
        every = any_wanted(start, wanted)
        rows, row_starts, chosen = call(
            start, "Rows", [size, starts, places, place_starts, every], 3
        )
        (row_count,) = insert(start, "Size", [rows])
        row_begin, row_owner = call(start, "Owner", [row_count, row_starts], 2)
        narrow(found[-1], rows)
        last_texts = (
            [row_starts, starts]
            if form == "packed"
            else grids(start, (row_starts, row_begin, row_owner), (starts, begin, owner))
        )
    for attention in found:
        inputs = [attention.query, attention.key, attention.value]
        (mixed,) = call(
            before(attention.out),
            "Attention",
            [*inputs, *(last_texts if attention is found[-1] else texts)],
            heads=attention.heads,
            scale=attention.scale,
            hidden=[-1, width],
        )
        replace(attention.out, mixed)
    if pooled is not None:
        place = before(pooled)
        (n,) = insert(place, "Size", [begin])
        (of_text,) = (wanted[head] for head in OF_TEXT if head in wanted)
        (count,) = insert(place, "Mul", [n, of_text])
        if pooling == Pooling.CLS:
            few = first(place, chosen, count)
            replace(pooled, insert(place, "Gather", [hidden, few])[0])
        elif pooling == Pooling.MCLS:
            (vectors,) = insert(place, "Gather", [hidden, chosen])
            mean = call(place, "Mean", [vectors, place_starts, count], hidden=[width])
            replace(pooled, mean[0])
        else:
            replace(pooled, call(place, "Mean", [hidden, starts, count], hidden=[width])[0])

    for out in graph.outputs:
        if out.name in ("sparse", "colbert"):
            limit(out, hidden, wanted[out.name])
    RemoveUnusedNodesPass()(model)
    InlinePass()(model)
    model.opset_imports.pop("m3rt", None)
    graph.inputs.remove(mask)
    forget_shapes(model)


def count_of(graph: ir.Graph, head: str) -> ir.Value:
    """Add the input ``want_<head>``; return it as a scalar 0 or 1."""
    want = ir.Value(name=f"want_{head}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(want)
    return insert(graph[0], "Cast", [want], to=int(INT64))[0]


def cls_places(
    place: ir.Node, starts: ir.Value, begin: ir.Value, interval: int | None
) -> tuple[ir.Value, ir.Value]:
    """Return where the CLS tokens are, and where each text's begin among them."""
    if interval is None:  # one each
        zero, one = constant(place, np.array(0)), constant(place, np.array(1))
        (size,) = insert(place, "Size", [starts])
        return begin, insert(place, "Range", [zero, size, one])[0]
    step = interval + 1
    total, place_starts = call(place, "ClsCounts", [starts, begin], 2, step=step)
    place_begin, place_owner = call(place, "Owner", [total, place_starts], 2)
    inputs = [total, begin, place_begin, place_owner]
    return call(place, "ClsPlaces", inputs, step=step)[0], place_starts


def any_wanted(place: ir.Node, wanted: dict[str, ir.Value]) -> ir.Value:
    """Return whether a head that needs every token is wanted, as 0 or 1."""
    tokenwise = [wanted[name] for name in ("sparse", "colbert") if name in wanted]
    every = tokenwise[0] if tokenwise else constant(place, np.array(0))
    for other in tokenwise[1:]:
        (every,) = insert(place, "Max", [every, other])
    return every


def narrow(attention: Attention, rows: ir.Value) -> None:
    """Let the queries and the residual of a layer see these rows of its input only."""
    projected = producer(attention.query, "Add")
    product = next(
        node
        for value in projected.inputs
        if value is not None and (node := value.producer()) is not None
    )
    x = operand(product, 0)
    users = [(node, i) for node, i in x.uses() if node is product or node.op_type == "Add"]
    if len(users) != 2:
        raise UnexpectedGraphError(f"expected a query and a residual that read {x}, found {users}")
    (chosen,) = insert(product, "Gather", [x, rows])
    for node, i in users:
        node.replace_input_with(i, chosen)


def grids(place: ir.Node, rows: Sequence[ir.Value], tokens: Sequence[ir.Value]) -> list[ir.Value]:
    """Return the rectangles of queries, and those of keys with their mask."""
    grid, back, mask = call(place, "Grid", tokens, 3)
    if list(rows) != list(tokens):
        row_grid, row_back, _ = call(place, "Grid", rows, 3)
        return [row_grid, row_back, grid, mask]
    return [grid, back, grid, mask]


def limit(out: ir.Value, hidden: ir.Value, wanted: ir.Value) -> None:
    """Let a token head see all rows of the encoder's output if it is wanted, else none."""
    own = ancestors(out)
    readers = [(node, i) for node, i in hidden.uses() if node in own]
    place = readers[0][0]
    (shape,) = insert(place, "Shape", [hidden], start=0, end=1)
    (count,) = insert(place, "Mul", [shape, wanted])
    chosen = first(place, hidden, count, known=True)
    for node, i in readers:
        node.replace_input_with(i, chosen)


def first(place: ir.Node, rows: ir.Value, count: ir.Value, known: bool = False) -> ir.Value:
    """Return the first rows of a value; ``known``: count has an axis already."""
    zero = constant(place, np.array([0]))
    if not known:
        (count,) = insert(place, "Unsqueeze", [count, zero])
    return insert(place, "Slice", [rows, zero, count, zero])[0]


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
    """Return what the head of whole texts reads, (B, h), or None if there is none."""
    for node, _ in hidden.uses():
        if pooling == Pooling.CLS and node.op_type == "Gather":
            return node.outputs[0]
        if pooling != Pooling.CLS and node.op_type == "Mul":
            return consumer(consumer(node.outputs[0], "ReduceSum").outputs[0], "Div").outputs[0]
    return None


def before(value: ir.Value) -> ir.Node:
    """Return the node that makes a value: where its replacement goes."""
    node = value.producer()
    if node is None:
        raise UnexpectedGraphError(f"{value} is an input")
    return node


def insert(
    place: ir.Node, kind: str, inputs: Sequence[ir.Value], **options: int
) -> Sequence[ir.Value]:
    """Insert a node before another; return its outputs."""
    return add(place, ir.node(kind, inputs, options))


def call(
    place: ir.Node,
    name: str,
    inputs: Sequence[ir.Value],
    count: int = 1,
    **options: int | float | Sequence[int],
) -> Sequence[ir.Value]:
    """Insert a call of one of export.functions before a node; return its outputs."""
    return add(place, ir.node(name, inputs, options, domain="m3rt", num_outputs=count))


def constant(place: ir.Node, value: np.ndarray) -> ir.Value:
    """Insert a constant before a node."""
    return add(place, ir.node("Constant", [], {"value": ir.tensor(value)}))[0]


def add(place: ir.Node, node: ir.Node) -> Sequence[ir.Value]:
    """Insert a node before another; return its outputs."""
    graph = place.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(place, node)
    return node.outputs


def replace(value: ir.Value, new: ir.Value) -> None:
    """Let every reader of a value read another."""
    ir.convenience.replace_all_uses_with(value, new)


def size_of(value: ir.Value, axis: int) -> int:
    """Return the size of an axis that is known."""
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise UnexpectedGraphError(f"the size of axis {axis} of {value} is not known")
    return size


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes noted for values inside the graph, which a pass has made wrong."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
