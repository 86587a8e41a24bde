"""Puts 8 bits in the place of float32 weights, in the form that each engine computes fastest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from m3rt.export import calibrate
from m3rt.export.mixed import release
from m3rt.export.passes import UnexpectedGraphError, operand
from m3rt.export.scales import Scale, quantized
from m3rt.harm import WORDS
from m3rt.types import Floats

POSITIONS = "embeddings.position_embeddings.weight"
FLOAT = ir.DataType.FLOAT
BLOCK = 1 << 14  # rows of a table


def rewrite(
    model: ir.Model,
    form: str,
    scales: Mapping[str, Scale],
    kept: Collection[str],
    progress: Callable[[], None],
) -> None:
    """Put int8, or fp8 if the scales are its, in the place of the float32 weights.

    Args:
        model: the graph in the form of one engine; changed in place.
        form: packed (ONNX Runtime), grouped (OpenVINO) or portable (for TensorRT).
        scales: of each site.
        kept: sites whose weights become float16 instead, which computes as before; in the portable
            form they are left alone.
        progress: called after each site.
    """
    graph = Rewriter(model.graph)
    for site in calibrate.sites(model):
        readers = calibrate.readers(model.graph, site)
        if site.name not in kept:
            write = graph.integers if form == "packed" else graph.fake
            write(site.name, readers, scales[site.name])
        elif form != "portable":
            for node in readers:
                graph.half(node)
        if form == "portable":
            for name in site.weights:
                release(model.graph.initializers[name].const_value)
        progress()
    if form == "portable":
        if WORDS not in kept:
            graph.table()
        return
    graph.embeddings(kept)
    # shapes noted by the exporter make ONNX Runtime fuse what it then cannot quantise
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    used = {str(value.name) for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]
    if form == "packed":
        model.opset_imports["com.microsoft"] = 1


class Rewriter:
    """Replaces linear layers and embeddings of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def initializer(self, name: str, array: Any) -> ir.Value:
        """Add a constant with a name, which the weights' file shows."""
        if name in self.graph.initializers:  # layers with equal weights share one, and its name
            name = f"{name}.{len(self.graph.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(np.shape(array)),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.initializers[name] = value
        return value

    def put(self, place: ir.Node, kind: str, inputs: Any, domain: str = "", **options: Any) -> Any:
        """Insert a node before another; return its output."""
        node = ir.node(kind, inputs, options, domain=domain)
        self.graph.insert_before(place, node)
        return node.outputs[0]

    def smoothed(self, name: str, place: ir.Node, x: ir.Value, scale: Scale) -> ir.Value:
        """Divide the channels of an activation, where that was found to help."""
        if scale.smooth is None:
            return x
        factor = self.initializer(f"{name}.smooth", (1 / scale.smooth).astype(np.float32))
        product: ir.Value = self.put(place, "Mul", [x, factor])
        return product

    def weight(self, node: ir.Node, scale: Scale) -> tuple[str, ir.Value, ir.Value]:
        """Return the name, the levels and the steps of a layer's weight."""
        value = operand(node, 1)
        assert value.const_value is not None
        array: Floats = value.const_value.numpy()
        if scale.smooth is not None:
            array = array * scale.smooth[:, None]
        levels, step = quantized(array, scale.grid)
        name = str(value.name)
        return (
            name,
            self.initializer(f"{name}.{levels.dtype}", levels),
            self.initializer(f"{name}.step", step),
        )

    def integers(self, name: str, readers: list[ir.Node], scale: Scale) -> None:
        """As ONNX Runtime computes it fastest: uint8 by int8 to float32, bias included."""
        first = readers[0]
        x = self.smoothed(name, first, operand(first, 0), scale)
        step = self.initializer(f"{name}.input_step", scale.step)
        zero = self.initializer(f"{name}.input_zero", scale.zero_point)
        levels = self.put(first, "QuantizeLinear", [x, step, zero])
        for node in readers:
            _, weight, weight_step = self.weight(node, scale)
            users = [user for user, _ in node.outputs[0].uses()]
            if len(users) != 1 or users[0].op_type != "Add":
                raise UnexpectedGraphError(f"expected a bias after {node}, found {users}")
            bias = next(v for v in users[0].inputs if v is not None and v.is_initializer())
            product = self.put(
                node,
                "MatMulIntegerToFloat",
                [levels, weight, step, weight_step, zero, None, bias],
                domain="com.microsoft",
            )
            ir.convenience.replace_all_uses_with(users[0].outputs[0], product)
            self.graph.remove([users[0], node], safe=True)

    def fake(self, name: str, readers: list[ir.Node], scale: Scale) -> None:
        """As OpenVINO and TensorRT read it: quantised and dequantised again, on both sides."""
        first = readers[0]
        x = self.smoothed(name, first, operand(first, 0), scale)
        pair = [
            self.initializer(f"{name}.input_step", scale.step),
            self.initializer(f"{name}.input_zero", scale.zero_point),
        ]
        rounded = self.put(
            first, "DequantizeLinear", [self.put(first, "QuantizeLinear", [x, *pair]), *pair]
        )
        for node in readers:
            weight_name, weight, step = self.weight(node, scale)
            assert weight.shape is not None
            levels = weight.const_value
            assert levels is not None
            zeros = np.zeros(levels.shape.numpy()[1], levels.dtype.numpy())
            zero = self.initializer(f"{weight_name}.zero", zeros)
            node.replace_input_with(0, rounded)
            dequantized = self.put(node, "DequantizeLinear", [weight, step, zero], axis=1)
            node.replace_input_with(1, dequantized)

    def half(self, node: ir.Node) -> None:
        """Store a kept layer's weight in float16; engines turn it back once, when they load."""
        value = operand(node, 1)
        assert value.const_value is not None
        stored = self.initializer(
            f"{value.name}.half", value.const_value.numpy().astype(np.float16)
        )
        node.replace_input_with(1, self.put(node, "Cast", [stored], to=int(FLOAT)))

    def table(self) -> None:
        """Store words as int8 with a scale a row; TensorRT gathers first, and dequantises then."""
        for node in [n for n in self.graph if n.op_type == "Gather"]:
            if operand(node, 0).name == WORDS:
                levels, step = rows(operand(node, 0))
                zero = self.initializer(f"{WORDS}.zero", np.zeros(len(step), np.int8))
                words = self.initializer(f"{WORDS}.int8", levels)
                steps = self.initializer(f"{WORDS}.step", step)
                whole = self.put(node, "DequantizeLinear", [words, steps, zero], axis=0)
                node.replace_input_with(0, whole)

    def embeddings(self, kept: Collection[str]) -> None:
        """Store words as int8 with a scale a row, unless they are kept; positions as float16."""
        for node in [n for n in self.graph if n.op_type == "Gather"]:
            table, place = operand(node, 0), operand(node, 1)
            if table.const_value is None or table.name not in (WORDS, POSITIONS):
                continue
            if table.name == POSITIONS or WORDS in kept:
                half = table.const_value.numpy().astype(np.float16)
                stored = self.initializer(f"{table.name}.half", half)
                found = self.put(node, "Gather", [stored, place])
                new = self.put(node, "Cast", [found], to=int(FLOAT))
            else:
                levels, step = rows(table)
                words = self.initializer(f"{WORDS}.int8", levels)
                steps = self.initializer(f"{WORDS}.step", step[:, None])
                found = self.put(node, "Gather", [words, place])
                as_float = self.put(node, "Cast", [found], to=int(FLOAT))
                new = self.put(node, "Mul", [as_float, self.put(node, "Gather", [steps, place])])
            ir.convenience.replace_all_uses_with(node.outputs[0], new)
            self.graph.remove(node, safe=True)


def rows(table: ir.Value) -> tuple[np.ndarray[Any, Any], Floats]:
    """Return a table (n, h) as int8 levels, and the step of each row (n,).

    In blocks, for the words of BGE-M3 are a gigabyte.
    """
    assert table.const_value is not None
    array = table.const_value.numpy()
    levels = np.empty(array.shape, np.int8)
    steps = np.empty(len(array), np.float32)
    for at in range(0, len(array), BLOCK):
        part, steps[at : at + BLOCK] = quantized(array[at : at + BLOCK].T)
        levels[at : at + BLOCK] = part.T
    return levels, steps
