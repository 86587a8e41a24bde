"""m3rt itself, as its users call it."""

from __future__ import annotations

from typing import Any

import m3rt
from benchmarks.peers.worker import Job, Outputs, serve


class Ours:
    """An m3rt model on one engine; it plans its own steps."""

    def __init__(self, job: Job) -> None:
        self._model = m3rt.load(job.model, job.options["engine"])

    def encode(self, texts: list[str], batch: int | None) -> m3rt.Embeddings:
        """Embed texts with every head."""
        return self._model.encode(texts)

    def outputs(self, found: Any) -> Outputs:
        """Give every head."""
        return Outputs(
            dense=found.dense,
            sparse=[found.sparse[i] for i in range(len(found.sparse))],
            colbert=found.colbert,
        )


if __name__ == "__main__":
    serve(Ours, ("m3rt", "onnxruntime", "openvino"))
