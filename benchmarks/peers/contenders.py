"""Who takes part in the race, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ALL = ("dense", "sparse", "colbert")
DENSE = ("dense",)
SIZES = (1, 8)
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime, in one precision, with its settings."""

    name: str
    worker: str  # the module that runs it, in its own environment
    precision: Precision  # of its matrix products
    heads: tuple[str, ...]  # that it gives, all of which it is asked for
    reads: Literal["checkpoint", "model"]  # model is what m3rt exported
    requirements: str | None = None  # NAME.txt beside this file; None: the environment of m3rt
    options: Mapping[str, Any] = field(default_factory=dict)  # its worker's
    batches: tuple[int, ...] = ()  # sizes to try, of which the fastest is raced; (): its own plan
    default_batch: int | None = None  # what its user gets who sets nothing
    patience: float = 1200.0  # seconds, the most for one answer


def ours(spec: str, precision: Precision) -> Contender:
    """Return m3rt with one engine."""
    worker, options = "benchmarks.peers.ours", {"engine": spec}
    return Contender(f"m3rt {spec}", worker, precision, ALL, "model", None, options)


def sentences(
    name: str,
    precision: Literal["fp32", "bf16", "int8"],
    requirements: str,
    backend: str,
    **model_kwargs: Any,
) -> Contender:
    """Return sentence-transformers with one backend."""
    return Contender(
        f"sentence-transformers {name}",
        "benchmarks.peers.sentence_transformers",
        precision,
        DENSE,
        "checkpoint",
        requirements,
        {"backend": backend, "model_kwargs": model_kwargs},
        SIZES,
        32,
    )


def flag(precision: Literal["fp32", "bf16"]) -> Contender:
    """Return FlagEmbedding."""
    return Contender(
        f"FlagEmbedding {precision}",
        "benchmarks.peers.flagembedding",
        precision,
        ALL,
        "checkpoint",
        "flagembedding",
        {"bf16": precision == "bf16"},
        SIZES,
        256,
    )


def lite(precision: Literal["fp32", "int8"]) -> Contender:
    """Return bge-m3-lite."""
    return Contender(
        f"bge-m3-lite {precision}",
        "benchmarks.peers.bge_m3_lite",
        precision,
        ALL,
        "checkpoint",
        "bge-m3-lite",
        {"precision": precision},
        SIZES,
        12,
    )


def optimum(
    name: str, precision: Literal["fp32", "bf16"], requirements: str, backend: str
) -> Contender:
    """Return optimum on m3rt's export. It has no batch size of its own: its user pads."""
    return Contender(
        f"optimum {name}",
        "benchmarks.peers.optimum",
        precision,
        ALL,
        "model",
        requirements,
        {"backend": backend},
        SIZES,
    )


def ctranslate2(precision: Literal["fp32", "bf16", "int8"], compute_type: str) -> Contender:
    """Return CTranslate2. It has no batch size of its own."""
    return Contender(
        f"CTranslate2 {precision}",
        "benchmarks.peers.ctranslate2",
        precision,
        DENSE,
        "checkpoint",
        "ctranslate2",
        {"compute_type": compute_type},
        SIZES,
    )


EXACT = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
OPENVINO = "sentence-transformers-openvino"

CONTENDERS = (
    flag("fp32"),  # first: what the others are compared with
    ours("cpu:fp32", "fp32"),
    ours("cpu:int8", "int8"),
    ours("openvino:bf16", "bf16"),
    ours("openvino:int8", "int8"),
    flag("bf16"),
    sentences("torch fp32", "fp32", "sentence-transformers", "torch", dtype="float32"),
    sentences("torch bf16", "bf16", "sentence-transformers", "torch", dtype="bfloat16"),
    sentences("ONNX fp32", "fp32", "sentence-transformers-onnx", "onnx"),
    sentences("OpenVINO bf16", "bf16", OPENVINO, "openvino"),  # its default where there is AVX-512
    sentences("OpenVINO fp32", "fp32", OPENVINO, "openvino", **EXACT),
    optimum("ONNX fp32", "fp32", "optimum", "onnx"),
    optimum("OpenVINO bf16", "bf16", OPENVINO, "openvino"),
    lite("fp32"),
    lite("int8"),
    ctranslate2("fp32", "float32"),
    ctranslate2("bf16", "bfloat16"),
    ctranslate2("int8", "int8"),
    Contender(
        "fastembed fp32",
        "benchmarks.peers.fastembed",
        "fp32",
        DENSE,
        "model",
        "fastembed",
        {},
        SIZES,
        256,
    ),
)
