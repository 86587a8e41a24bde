"""m3rt itself, as its users call it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import m3rt
from benchmarks.peers.worker import Job, Outputs, serve
from m3rt.types import Heads


class Ours:
    """An m3rt model on one engine; it plans its own steps."""

    heads: Sequence[str] = Heads.ALL.names
    batch_tokens: int | None = None  # None: the engine's own

    def __init__(self, job: Job) -> None:
        os.environ.update(job.options.get("environment", {}))
        self._model = m3rt.load(job.model, job.options["engine"])

    def encode(self, texts: list[str], batch: int | None) -> m3rt.Embeddings:
        """Embed texts with the heads that are wanted."""
        return self._model.encode(texts, Heads.parse(self.heads), batch_tokens=self.batch_tokens)

    def outputs(self, found: Any) -> Outputs:
        """Give every head that was computed."""
        sparse = found.sparse
        return Outputs(
            dense=found.dense,
            sparse=None if sparse is None else [sparse[i] for i in range(len(sparse))],
            colbert=found.colbert,
        )


if __name__ == "__main__":
    serve(Ours, ("m3rt", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"))
