"""What rounding costs: each site is rounded alone, and the outputs of every head are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from m3rt.export import calibrate
from m3rt.export.passes import UnexpectedGraphError, operand
from m3rt.export.scales import WEIGHT_LEVELS, Scale
from m3rt.harm import WORDS
from m3rt.types import Floats, Ragged

SWITCHES = "switches"

# Inserts nodes by kind and inputs; arrays become constants.
Put = Callable[..., ir.Value]
# From a value to the same as rounding leaves it.
Rounding = Callable[[Put, ir.Value], ir.Value]


def sweep(
    graph: Path,
    roundings: Mapping[str, Rounding],
    ids: Ragged[np.int32],
    progress: Callable[[int], None],
) -> dict[str, dict[str, float]]:
    """Return the harm that rounding each site alone does to each head.

    One session does it all: every site gets a rounding that a switch turns on. Weights of linear
    layers stay as they are, for per channel they lose far less than activations per tensor.

    Args:
        graph: packed.onnx, beside its weights.
        roundings: of each site.
        ids: few short texts; they run once for each site.
        progress: told 1 after each site.

    Returns:
        By site and head: for dense and colbert the mean of 1 - cosine over all vectors, for sparse
        the squared error of the weights, as part of their squared sum; for a reranker's score the
        mean squared error, as part of the variance of the scores.
    """
    model = ir.load(graph)
    names = list(roundings)
    switchable(model, names, roundings)
    opened = calibrate.session(model, graph.parent)
    heads = [output.name for output in opened.get_outputs()]
    fed = [calibrate.feeds(opened, batch) for batch in calibrate.steps(ids)]

    def outputs(switches: Floats) -> dict[str, Floats]:
        runs = [opened.run(heads, {**feed, SWITCHES: switches}) for feed in fed]
        return {head: np.concatenate([run[i] for run in runs]) for i, head in enumerate(heads)}

    exact = outputs(np.zeros(len(names), np.float32))
    harm: dict[str, dict[str, float]] = {}
    for i, name in enumerate(names):
        switches = np.zeros(len(names), np.float32)
        switches[i] = 1
        found = outputs(switches)
        harm[name] = {head: MEASURES[head](exact[head], found[head]) for head in heads}
        progress(1)
    return harm


def distance(a: Floats, b: Floats) -> float:
    """Return the mean of 1 - cosine of rows, in float64, or 1e-8 would round to nothing.

    Unit rows are of length 1 but for a rounding of float32, which is more than bf16 does to a row
    at one site: so lengths are divided out.
    """
    left, right = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean(1 - np.einsum("ij,ij->i", left, right) / np.maximum(lengths, 1e-12)))


def error(a: Floats, b: Floats) -> float:
    """Return the squared error of b as part of the squared sum of a."""
    return float(np.sum((a - b) ** 2) / max(float(np.sum(a**2)), 1e-12))


def unrest(a: Floats, b: Floats) -> float:
    """Return the mean squared error of b as part of the variance of a, in float64.

    Of scores only the differences rank documents: a level that all have in common is no measure.
    """
    exact = a.astype(np.float64)
    return float(np.mean((exact - b) ** 2) / max(float(exact.var()), 1e-12))


MEASURES = {"dense": distance, "colbert": distance, "sparse": error, "score": unrest}


def to_grid(scale: Scale) -> Rounding:
    """Round activations as a layer of 8 bits does."""

    def rounded(put: Put, x: ir.Value) -> ir.Value:
        even = x if scale.smooth is None else put("Mul", x, 1 / scale.smooth)
        levels = put("QuantizeLinear", even, scale.step, scale.zero_point)
        back = put("DequantizeLinear", levels, scale.step, scale.zero_point)
        return back if scale.smooth is None else put("Mul", back, scale.smooth)

    return rounded


def rows_to_int8(put: Put, x: ir.Value) -> ir.Value:
    """Round rows as a table of int8 with a scale for each row does."""
    reach = put("ReduceMax", put("Abs", x), np.array([-1]), keepdims=1)
    step = put("Div", put("Max", reach, np.float32(1e-12)), np.float32(WEIGHT_LEVELS))
    return put("Mul", put("Round", put("Div", x, step)), step)


def to_half(dtype: ir.DataType) -> Rounding:
    """Round to bfloat16 or float16."""

    def rounded(put: Put, x: ir.Value) -> ir.Value:
        return put("Cast", put("Cast", x, to=int(dtype)), to=int(ir.DataType.FLOAT))

    return rounded


def switchable(model: ir.Model, names: list[str], roundings: Mapping[str, Rounding]) -> None:
    """Let the input ``switches (sites,)`` choose which sites are rounded."""
    graph = model.graph
    switches = ir.Value(
        name=SWITCHES, shape=ir.Shape([len(names)]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph.inputs.append(switches)
    found = places(model)
    for name in names:
        x, readers = found[name]

        def put(kind: str, *given: Any, place: ir.Node = readers[0], **options: int) -> ir.Value:
            """Insert a node before the first reader; arrays become constants."""
            node = ir.node(kind, [constant(graph, place, value) for value in given], options)
            graph.insert_before(place, node)
            return node.outputs[0]

        rounded = roundings[name](put, x)
        switch = put("Gather", switches, np.array([names.index(name)]))
        chosen = put("Add", x, put("Mul", switch, put("Sub", rounded, x)))
        for reader in readers:
            reader.replace_input_with(reader.inputs.index(x), chosen)


def places(model: ir.Model) -> dict[str, tuple[ir.Value, list[ir.Node]]]:
    """Return the value of each site, and the nodes that read it, in the order of the graph."""
    graph = model.graph
    found = {}
    for site in calibrate.sites(model):
        readers = calibrate.readers(graph, site)
        found[site.name] = (operand(readers[0], 0), readers)
    lookups = [n for n in graph if n.op_type == "Gather" and operand(n, 0).name == WORDS]
    if len(lookups) != 1:
        raise UnexpectedGraphError(f"expected one Gather from {WORDS}, found {lookups}")
    words = lookups[0].outputs[0]
    users = {node for node, _ in words.uses()}
    found[WORDS] = (words, [node for node in graph if node in users])
    return found


def constant(graph: ir.Graph, place: ir.Node, value: Any) -> ir.Value:
    """Return a value; an array becomes a constant before a node."""
    if isinstance(value, ir.Value):
        return value
    node = ir.node("Constant", [], {"value": ir.tensor(np.asarray(value))})
    graph.insert_before(place, node)
    return node.outputs[0]
