"""m3serve's Engine on the checkpoint, each text a request of its own."""

# mypy: disable-error-code="import-not-found"
# the library may be in an environment of its own

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from m3serve import Engine

from benchmarks.peers.worker import Job, Outputs, serve

DEFAULT = 256  # its max_batch_size
SPECIAL = frozenset(range(4))  # it keeps the weights of <s>, <pad>, </s>, <unk>; others do not


class Served:
    """Its pipeline of three threads, which sorts requests by length and forms batches."""

    heads: Sequence[str] = ("dense", "sparse", "colbert")

    def __init__(self, job: Job) -> None:
        fp16 = bool(job.options.get("fp16", True))
        self._loop = asyncio.new_event_loop()
        self._engine = Engine(
            str(job.model), job.options.get("device"), fp16, max_batch_size=DEFAULT
        )
        self._loop.run_until_complete(self._engine.start())

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts with the heads that are wanted."""
        # a size to try: what its constructor sets, without loading the network again
        self._engine._max_batch_size = batch or DEFAULT
        return self._loop.run_until_complete(self._all(texts))

    async def _all(self, texts: list[str]) -> Any:
        wanted = {f"return_{head}": head in self.heads for head in ("sparse", "colbert")}
        requests = (self._engine.embed([text], timeout=600, **wanted) for text in texts)
        return await asyncio.gather(*requests)

    def rest(self) -> None:
        """Free what torch keeps of the device's memory."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def outputs(self, found: Any) -> Outputs:
        """Give every head; lists of an id that comes twice keep the larger weight."""
        sparse = []
        for one in found:
            weights: dict[int, float] = {}
            for key, value in zip(one.sparse_indices[0], one.sparse_weights[0], strict=True):
                if key not in SPECIAL:
                    weights[key] = max(value, weights.get(key, 0.0))
            sparse.append(weights)
        return Outputs(
            dense=np.array([one.dense[0] for one in found], np.float32),
            sparse=sparse,
            colbert=[np.array(one.colbert_vecs[0], np.float32) for one in found],
        )


if __name__ == "__main__":
    serve(Served, ("m3serve", "torch", "transformers", "flash-attn"))
