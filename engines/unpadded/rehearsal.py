"""The unpadded graphs on a CPU, fed as on a GPU: for the certificate of a build where none is."""

from __future__ import annotations

from m3rt.artifact import Manifest
from m3rt.engines.ort import CPU_TOKENS, sessions
from m3rt.engines.unpadded import feed
from m3rt.engines.unpadded.feed import Feed, Positions
from m3rt.errors import EngineError
from m3rt.graph import Graph
from m3rt.types import Batch, Engine, Heads, Limits, Raw

# A text of so many tokens goes through rectangles, so that a certificate is of both forms. Longer
# ones would hold the scores of all pairs of tokens.
LONG, LONGEST = 1024, 2048
GRAIN = 64  # tokens by which shapes grow, where there are to be few


class Rehearsal:
    """Both forms of the graph, on ONNX Runtime for CPUs."""

    def __init__(self, name: str, graph: Graph, manifest: Manifest, longest: int) -> None:
        self.name = name
        self.limits = Limits(CPU_TOKENS, longest, pads=False)
        self._heads = manifest.head_flags
        self._positions = Positions.read(graph.recipe)
        assert graph.rectangles is not None
        self._varlen, self._rectangles = sessions((graph.proto, graph.rectangles), graph.weights)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        session, fed = self._varlen, self._feed(batch, heads)
        if "grid" in fed.arrays:
            session = self._rectangles
        try:
            outputs = session.run(list(heads.names), dict(fed.arrays))
        except Exception as error:  # the binding has no common class for its errors
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return feed.own(dict(zip(heads.names, outputs, strict=True)), batch)

    def _feed(self, batch: Batch, heads: Heads) -> Feed:
        """Feed each kind of batch in another of the ways that there are."""
        rule = (heads, self._heads, self._positions)
        tokens, texts = len(batch.tokens.values), len(batch.rows)
        up = -(-(tokens + 1) // GRAIN) * GRAIN
        if texts > 1:
            return feed.varlen(batch, *rule)
        if LONG <= tokens < LONGEST:
            return feed.rectangles(batch, *rule, width=up)
        return feed.varlen(batch, *rule, tokens=up, texts=texts + 1)


def from_memory(graph: Graph, name: str, manifest: Manifest, longest: int) -> Engine:
    """Open a graph in operations of CPUs, as ``export.emulation`` gives it.

    Args:
        graph: both forms.
        name: of the engine.
        manifest: of the model.
        longest: most tokens of a text.

    Raises:
        EngineError: ONNX Runtime does not take it.
    """
    return Rehearsal(name, graph, manifest, min(manifest.max_length, longest))
