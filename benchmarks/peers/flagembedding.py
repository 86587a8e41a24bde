"""FlagEmbedding's BGEM3FlagModel on the checkpoint."""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

from typing import Any

import torch
from FlagEmbedding import BGEM3FlagModel

from benchmarks.peers.worker import Job, Outputs, serve


class Flag:
    """The reference implementation, three heads."""

    def __init__(self, job: Job) -> None:
        bf16 = bool(job.options.get("bf16"))
        self._model = BGEM3FlagModel(str(job.model), use_fp16=False, use_bf16=bf16, devices="cpu")
        if bf16:
            self.encode(["which precision does it run in?"], 1)
            if next(self._model.model.parameters()).dtype != torch.bfloat16:
                # a row under a name that it does not deserve would be worse than none
                raise NotImplementedError("on a CPU it runs in float32, with use_bf16=True too")

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts with every head, as long as they are."""
        return self._model.encode(
            texts, batch, 8192, return_dense=True, return_sparse=True, return_colbert_vecs=True
        )

    def outputs(self, found: Any) -> Outputs:
        """Give every head; its keys are ids as text."""
        return Outputs(
            dense=found["dense_vecs"],
            sparse=[{int(k): float(w) for k, w in d.items()} for d in found["lexical_weights"]],
            colbert=found["colbert_vecs"],
        )


if __name__ == "__main__":
    serve(Flag, ("FlagEmbedding", "torch", "transformers"))
