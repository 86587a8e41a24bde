"""A worker that is quick, and broken on demand: python -m tests.quick_worker.

It imports little, so that starting it takes no time.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.peers.worker import Job, Outputs, serve


class Fake:
    """A runtime without a model."""

    heads: Any = ("dense", "sparse", "colbert")

    def __init__(self, job: Job) -> None:
        self._options = job.options
        self._calls = 0
        if job.options.get("breaks") == "load":
            raise ValueError(f"no weights in {job.model}/weights.bin")

    def encode(self, given: list[str], batch: int | None) -> list[str]:
        self._calls += 1
        breaks = self._options.get("breaks") if self._calls > 1 else None  # not in the warm-up
        if breaks == "encode":
            raise RuntimeError("out of tokens")
        if breaks == "exit":
            sys.stderr.write("a library said its last\n")
            os._exit(3)
        if breaks == "hang":
            time.sleep(60)
        time.sleep(self._options.get("seconds", 0.01) + (0.02 if batch == 16 else 0.0))
        return given

    def outputs(self, found: list[str]) -> Outputs:
        vectors = [np.array([len(one), 1 + self._options.get("noise", 0)]) for one in found]
        return Outputs(np.stack(vectors), [{5: 0.5}] * len(found), [v[None] for v in vectors])


if __name__ == "__main__":
    serve(Fake)
