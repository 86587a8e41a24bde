"""The engines that there are, and the values that name them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an engine is, what installs it, and what it computes in."""

    module: str
    package: str  # what the module imports
    extra: str  # the extra of m3rt that installs it
    precisions: tuple[str, ...]
    automatic: bool  # whether engine="auto" may choose it
    gpu: bool = False


TRT, OF_GPUS = "m3rt.engines.trt.backend", ("fp16", "bf16", "int8", "fp8")
ORT_TRT, HALVES = "m3rt.engines.ort_trt", ("fp16", "bf16")
BACKENDS = {
    "openvino": Backend(
        "m3rt.engines.ov", "openvino", "openvino", ("bf16", "fp32", "int8"), automatic=True
    ),
    "cpu": Backend("m3rt.engines.ort", "onnxruntime", "cpu", ("fp32", "int8"), automatic=True),
    # the portable graph, as other runtimes run it: to check it, slower and hungrier than cpu
    "cpu-padded": Backend("m3rt.engines.ort", "onnxruntime", "cpu", ("fp32",), automatic=False),
    "cuda": Backend(
        "m3rt.engines.ort", "onnxruntime", "cuda", ("fp16", "fp32"), automatic=True, gpu=True
    ),
    "tensorrt": Backend(TRT, "tensorrt", "tensorrt", OF_GPUS, automatic=True, gpu=True),
    "tensorrt-rtx": Backend(TRT, "tensorrt_rtx", "tensorrt-rtx", OF_GPUS, automatic=True, gpu=True),
    # the same libraries, as ONNX Runtime's providers
    "ort-tensorrt": Backend(
        ORT_TRT, "onnxruntime", "ort-tensorrt", HALVES, automatic=False, gpu=True
    ),
    "ort-tensorrt-rtx": Backend(
        ORT_TRT, "onnxruntime", "ort-tensorrt-rtx", HALVES, automatic=False, gpu=True
    ),
}
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
# What auto takes of a model's TensorRT engines, best first. int8 and fp8 change results.
NEAR_LOSSLESS = tuple(
    (name, precision) for name in ("tensorrt", "tensorrt-rtx") for precision in ("fp16", "bf16")
)
# Steps whose tokens engines of GPUs want ready before the first runs: half a second and more.
AHEAD = 32
UNMEASURED = "not yet measured on a GPU"


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and the precision it computes in. As text: ``cpu:int8``."""

    engine: str
    precision: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.engine}:{self.precision}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can run here."""

    engine: str
    ready: bool
    detail: str  # version and device, or what is missing and how to get it
