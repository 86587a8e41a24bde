"""What a result was measured on: processor, versions, and its own matrix-multiply rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from m3rt import __version__
from m3rt.doctor import examine, version

LIBRARIES = (
    *("onnxruntime", "openvino", "torch", "transformers", "tokenizers", "numpy", "FlagEmbedding"),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SHAPES = ((512, 1024), (1024, 4096))


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


def peaks() -> dict[str, float]:
    """Return the rate of each precision, in GFLOP/s; operations of integers for int8."""
    return {name: round(matmul_rate(dtype=dtype), 1) for name, dtype in DTYPES.items()}


def matmul_rate(seconds: float = 3.0, dtype: torch.dtype = torch.float32) -> float:
    """Return the best rate seen, in GFLOP/s, on BGE-M3's largest product.

    (512, 1024) times (1024, 4096), the shape of half of its arithmetic at 512 tokens.
    """
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul
    a, b = (torch.randn(shape).to(dtype) for shape in SHAPES)
    if dtype == torch.int8:
        product = torch._int_mm  # the one product of int8 that torch has; it gives int32
        a, b = (torch.randint(-127, 128, shape, dtype=dtype) for shape in SHAPES)
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        begin = time.perf_counter()
        product(a, b)
        best = min(best, time.perf_counter() - begin)
    return float(2 * 512 * 1024 * 4096 / best / 1e9)
