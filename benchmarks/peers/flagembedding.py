"""FlagEmbedding's BGEM3FlagModel on the checkpoint."""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from FlagEmbedding import BGEM3FlagModel

from benchmarks.peers.worker import Job, Outputs, serve


class Flag:
    """The reference implementation, three heads."""

    heads: Sequence[str] = ("dense", "sparse", "colbert")

    def __init__(self, job: Job) -> None:
        bf16, fp16 = (bool(job.options.get(name)) for name in ("bf16", "fp16"))
        device = job.options.get("device", "cpu")
        self._model = BGEM3FlagModel(str(job.model), use_fp16=fp16, use_bf16=bf16, devices=device)
        if bf16:
            self.encode(["which precision does it run in?"], 1)
            if next(self._model.model.parameters()).dtype != torch.bfloat16:
                # a row under a name that it does not deserve would be worse than none
                raise NotImplementedError("on a CPU it runs in float32, with use_bf16=True too")

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts with the heads that are wanted, as long as they are."""
        return self._model.encode(
            texts,
            batch,
            8192,
            return_dense="dense" in self.heads,
            return_sparse="sparse" in self.heads,
            return_colbert_vecs="colbert" in self.heads,
        )

    def rest(self) -> None:
        """Free what torch keeps of the device's memory."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def outputs(self, found: Any) -> Outputs:
        """Give every head; its keys are ids as text."""
        return Outputs(
            dense=found["dense_vecs"],
            sparse=[{int(k): float(w) for k, w in d.items()} for d in found["lexical_weights"]],
            colbert=found["colbert_vecs"],
        )


if __name__ == "__main__":
    serve(Flag, ("FlagEmbedding", "torch", "transformers"))
