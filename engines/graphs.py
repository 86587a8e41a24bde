"""CUDA graphs of small steps, whose kernels take longer to start one by one than to run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from m3rt.engines.cuda import Graph

TOKENS = 1024  # of the largest step that a graph is worth its memory for
KEPT = 256  # each takes some memory on the device


class Graphs:
    """Graphs by all that their addresses depend on; those not used for longest go first."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self._kept: OrderedDict[Hashable, Graph | None] = OrderedDict()  # None: it ran once

    def find(self, key: Hashable) -> Graph | None:
        """Return the graph of a step."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def due(self, key: Hashable) -> bool:
        """Whether to capture a step: the first time, the library still allocates and chooses."""
        return self.on and key in self._kept

    def keep(self, key: Hashable, tokens: int, graph: Graph | None) -> None:
        """Remember that a step of so many tokens ran, or its graph."""
        if not self.on or tokens > TOKENS:
            return
        self._kept[key] = graph
        if len(self._kept) > KEPT:
            _, oldest = self._kept.popitem(last=False)
            if oldest is not None:
                oldest.release()

    def clear(self) -> None:
        """Forget all, for memory that they use moves."""
        for graph in self._kept.values():
            if graph is not None:
                graph.release()
        self._kept.clear()

    def stop(self) -> None:
        """Do without from now on."""
        self.clear()
        self.on = False
