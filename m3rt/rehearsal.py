"""An engine whose device is not here, as the graph it is built from, on ONNX Runtime.

It computes in the same types and rounds at the same places; how a device adds up, it cannot show.
"""

from __future__ import annotations

from importlib import import_module

from m3rt.api import with_engine
from m3rt.artifact import Artifact
from m3rt.engines import Choice
from m3rt.graph import Graph
from m3rt.reranker import Reranker
from m3rt.runtime import M3

# the modules that make a graph runnable on a CPU, and that run it
TYPED = ("m3rt.export.typed", "m3rt.engines.ort")
UNPADDED = ("m3rt.export.emulation", "m3rt.engines.unpadded.rehearsal")

LONGEST = 2048  # tokens of a text: without fused attention, memory grows with their square


def rehearse(
    model: Artifact, choice: Choice, graph: Graph, longest: int = LONGEST
) -> M3 | Reranker:
    """Open a graph that is made for GPUs, as ``export.typed`` or ``export.unpadded`` writes it.

    Args:
        model: what it was made from.
        choice: the engine it is for.
        graph: the graph.
        longest: tokens that are kept of a text.
    """
    emulated, opens = TYPED if graph.rectangles is None else UNPADDED
    runnable: Graph = import_module(emulated).runnable(graph)
    name = f"{choice} as its graph on ONNX Runtime"
    engine = import_module(opens).from_memory(runnable, name, model.manifest, longest)
    return with_engine(model, engine)
