"""Which sites to leave in higher precision: each is quantised alone, and the outputs compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from m3rt.export import calibrate
from m3rt.export.passes import operand
from m3rt.export.scales import Scale
from m3rt.types import Floats, Ragged

SWITCHES = "switches"


def sweep(
    graph: Path,
    scales: Mapping[str, Scale],
    ids: Ragged[np.int32],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Return the harm that rounding each site alone does to the outputs.

    One session does it all: every site gets a rounding that a switch turns on. Weights stay as
    they are, for per channel they lose far less than activations per tensor.

    Args:
        graph: packed.onnx, beside its weights.
        scales: of each site.
        ids: few short texts; they run once for each site.
        progress: told 1 after each site.

    Returns:
        By site, the mean of 1 - cosine over all vectors of the vector heads.
    """
    model = ir.load(graph)
    names = list(scales)
    switchable(model, names, scales)
    opened = calibrate.session(model, graph.parent)
    heads = [o.name for o in opened.get_outputs() if o.name in ("dense", "colbert")]
    fed = [calibrate.feeds(opened, batch) for batch in calibrate.steps(ids)]

    def vectors(switches: Floats) -> list[Floats]:
        return [out for feed in fed for out in opened.run(heads, {**feed, SWITCHES: switches})]

    exact = vectors(np.zeros(len(names), np.float32))
    harm: dict[str, float] = {}
    for i, name in enumerate(names):
        switches = np.zeros(len(names), np.float32)
        switches[i] = 1
        pairs = zip(exact, vectors(switches), strict=True)
        harm[name] = float(np.mean([distance(a, b) for a, b in pairs]))
        progress(1)
    return harm


def distance(a: Floats, b: Floats) -> float:
    """Return the mean of 1 - cosine of unit rows, in float64."""
    return float(np.mean(1 - np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))))


def switchable(model: ir.Model, names: list[str], scales: Mapping[str, Scale]) -> None:
    """Let the input ``switches (sites,)`` choose which sites are rounded."""
    graph = model.graph
    switches = ir.Value(
        name=SWITCHES, shape=ir.Shape([len(names)]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph.inputs.append(switches)
    for site in calibrate.sites(model):
        scale = scales[site.name]
        readers = calibrate.readers(graph, site)
        x = operand(readers[0], 0)

        def put(kind: str, *inputs: Any, place: ir.Node = readers[0]) -> ir.Value:
            """Insert a node before the first reader; arrays become constants."""
            node = ir.node(kind, [constant(graph, place, value) for value in inputs])
            graph.insert_before(place, node)
            return node.outputs[0]

        even = x if scale.smooth is None else put("Mul", x, 1 / scale.smooth)
        levels = put("QuantizeLinear", even, scale.step, scale.zero)
        rounded = put("DequantizeLinear", levels, scale.step, scale.zero)
        back = rounded if scale.smooth is None else put("Mul", rounded, scale.smooth)
        switch = put("Gather", switches, np.array([names.index(site.name)]))
        chosen = put("Add", x, put("Mul", switch, put("Sub", back, x)))
        for reader in readers:
            reader.replace_input_with(0, chosen)


def constant(graph: ir.Graph, place: ir.Node, value: Any) -> ir.Value:
    """Return a value; an array becomes a constant before a node."""
    if isinstance(value, ir.Value):
        return value
    node = ir.node("Constant", [], {"value": ir.tensor(np.asarray(value))})
    graph.insert_before(place, node)
    return node.outputs[0]
