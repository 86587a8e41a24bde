"""What a result was measured on: the GPU, its clocks, and its own rates.

    python -m benchmarks.gpu.machine [--tiny]

prints JSON, from a process of its own, so that the driver of the benchmark never holds the device.
100% is what torch's matrix products and copies reach on this very device, not a data sheet.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.nvml import open_nvml
from m3rt.doctor import version

SIZE, BYTES, TIMES = 8192, 2 << 30, 20  # of a product's sides; of a copy; measurements
LIBRARIES = (
    *("torch", "triton", "transformers", "sentence-transformers", "FlagEmbedding", "m3serve"),
    *("flash-attn", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy"),
)


def seconds(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the median seconds of a call on the device, after three that do not count."""
    for _ in range(3):
        call()
    event: Any = torch.cuda.Event
    found: list[float] = []
    for _ in range(times):
        if device.type == "cuda":
            begin, end = (event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            before = time.perf_counter()
            call()
            found.append(time.perf_counter() - before)
    return median(found)


def products(device: torch.device, size: int, times: int) -> dict[str, float]:
    """Return the rates of products of two square matrices of random numbers, FLOP/s."""
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        spent = seconds(partial(torch.matmul, a, b, out=out), device, times)
        found[name] = 2 * size**3 / spent
    return found


def copies(device: torch.device, size: int, times: int) -> dict[str, float]:
    """Return the rates of copies, bytes/s; on the device what is read and what is written count."""
    here = torch.ones(size, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    found = {"device_to_device": 2 * size / seconds(lambda: there.copy_(here), device, times)}
    if device.type == "cuda":
        host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        to_host = seconds(lambda: host.copy_(here, non_blocking=True), device, times)
        to_device = seconds(lambda: here.copy_(host, non_blocking=True), device, times)
        found |= {"device_to_host": size / to_host, "host_to_device": size / to_device}
    return found


def rates(tiny: bool = False) -> dict[str, Any]:
    """Return the device's rates, with its clocks before and just after the products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, amount, times = (256, 1 << 20, 3) if tiny else (SIZE, BYTES, TIMES)
    nvml = open_nvml()
    before = nvml.describe() if nvml else {}
    found: dict[str, Any] = {"flops": products(device, size, times)}
    after = nvml.describe() if nvml else {}
    found["bytes_per_second"] = copies(device, size=amount, times=times)
    return found | {"size": size, "before": before, "after": after}


def describe() -> dict[str, Any]:
    """Return the machine, the GPU and the versions of what may take part."""
    found = machine.describe()
    found["versions"] |= {name: version(name) for name in LIBRARIES}
    found["cuda"] = torch.version.cuda
    found["gpu"] = None
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        found["gpu"] = about.name
        found["capability"] = f"{about.major}.{about.minor}"
        found["multiprocessors"] = about.multi_processor_count
        found["gpu_memory_bytes"] = about.total_memory
    return found


if __name__ == "__main__":
    print(json.dumps({"machine": describe(), "rates": rates("--tiny" in sys.argv)}))  # noqa: T201
