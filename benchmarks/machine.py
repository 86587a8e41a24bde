"""What a result was measured on: processor, versions, and its own matrix-multiply rate."""

from __future__ import annotations

import time
from typing import Any

import torch

from m3rt import __version__
from m3rt.doctor import examine, version

LIBRARIES = ("onnxruntime", "torch", "transformers", "tokenizers", "numpy", "FlagEmbedding")


def describe() -> dict[str, Any]:
    """Return processor, cores, memory and versions."""
    report = examine()
    return {
        "cpu": report.cpu.model,
        "cores": report.cpu.cores,
        "features": list(report.cpu.flags),
        "memory_bytes": report.memory,
        "versions": {"m3rt": __version__} | {name: version(name) for name in LIBRARIES},
    }


def matmul_rate(seconds: float = 3.0) -> float:
    """Return the best float32 rate seen, in GFLOP/s, on BGE-M3's largest product.

    (512, 1024) times (1024, 4096), the shape of half of its arithmetic at 512 tokens.
    """
    a, b = torch.randn(512, 1024), torch.randn(1024, 4096)
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return float(2 * 512 * 1024 * 4096 / best / 1e9)
