"""ONNX Runtime: the packed graph on CPUs, the portable one on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from m3rt import nvidia, processor
from m3rt.artifact import EXPORT, Artifact, Manifest
from m3rt.engines import BACKENDS, Choice, Order, Probe
from m3rt.engines.catalog import AHEAD
from m3rt.engines.faults import DeviceLostError, lost
from m3rt.engines.padding import cut, pad, unpad
from m3rt.engines.unpadded import files
from m3rt.errors import ArtifactError, EngineError, UnavailableError
from m3rt.graph import Graph
from m3rt.processor import cores
from m3rt.types import Batch, Engine, Heads, Limits, Raw

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cpu-padded": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
# by engine; where a precision has a form of its own, by both
FORMS = {"cpu": "packed", "cpu-padded": "portable", "cuda": "portable", "cuda:fp16": "unpadded"}
UNPADDED = "m3rt.engines.unpadded.backend"  # runs that form
KERNELS = "m3rt.engines.unpadded.kernels"  # tells in which kernels
INT8 = "cpu-int8.onnx"
ONNX_TYPES = {"bfloat16": 16, "float8_e4m3fn": 17}  # that numpy has not

# Linear layers are at their full speed from some 256 rows on; activations of many more than these
# no longer fit the cache.
CPU_TOKENS = 512
GPU_TOKENS = 16384

# Under a mask ONNX Runtime has no flash kernel on CPUs, and the memory of attention grows with the
# square of the length: 268 MB a layer at this one, with BGE-M3's 16 heads.
CPU_PADDED_LENGTH = 2048


class Packed:
    """The packed graph: tokens end to end, no padding, attention text by text."""

    def __init__(
        self, name: str, session: ort.InferenceSession, limits: Limits, heads: Heads
    ) -> None:
        self.name = name
        self.limits = limits
        self._session = session
        self._heads = heads  # that the graph has

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        tokens = batch.tokens
        inputs = {"input_ids": tokens.values.astype(np.int64), "starts": tokens.starts}
        for head in self._heads:
            inputs[f"want_{head.names[0]}"] = np.array(head in heads)
        out = compute(self._session, heads, inputs)
        colbert = out.get("colbert")
        return Raw(
            dense=out.get("dense"),
            weights=out.get("sparse"),
            colbert=None if colbert is None else np.split(colbert, tokens.starts[1:-1]),
            scores=out.get("score"),
        )


class Padded:
    """The portable graph: rectangles of ids and a mask."""

    def __init__(
        self, name: str, session: ort.InferenceSession, limits: Limits, pad_id: int
    ) -> None:
        self.name = name
        self.limits = limits
        self._session = session
        self._pad_id = pad_id
        self._ints = np.int32 if session.get_inputs()[0].type == "tensor(int32)" else np.int64

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        ids, mask = pad(batch, self._pad_id)
        out = compute(
            self._session,
            heads,
            {"input_ids": ids.astype(self._ints), "attention_mask": mask.astype(self._ints)},
        )
        weights, colbert = out.get("sparse"), out.get("colbert")
        return Raw(
            dense=out.get("dense"),
            weights=None if weights is None else unpad(weights, mask),
            colbert=None if colbert is None else cut(colbert.astype(np.float32, copy=False), batch),
            scores=out.get("score"),
        )


def compute(
    session: ort.InferenceSession, heads: Heads, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Run a session and fetch the heads asked for.

    Raises:
        DeviceLostError: the device was lost.
        EngineError: ONNX Runtime failed otherwise.
    """
    try:
        outputs = session.run(list(heads.names), dict(inputs))
    except Exception as error:  # the binding has no common class for its errors
        kind = DeviceLostError if lost(str(error)) else EngineError
        raise kind(f"ONNX Runtime failed: {error}") from error
    return dict(zip(heads.names, outputs, strict=True))


def load(artifact: Artifact, choice: Choice, streams: int, device: int = 0) -> Engine:
    """Open an engine of this module; one for GPUs, on the device of a number.

    Raises:
        ArtifactError: the graph cannot be read, or is not there.
        UnavailableError: the provider asked for is not the one that would run.
    """
    found = probe(choice.engine)
    if not found.ready:
        raise UnavailableError(found.detail)
    if FORMS.get(str(choice)) == "unpadded":
        opened: Engine = import_module(UNPADDED).load(artifact, choice, streams, device)
        return opened
    form, longest = FORMS[choice.engine], artifact.manifest.max_length
    graph = artifact.built(str(choice), INT8) if choice.precision == "int8" else None
    session = open_session(graph or artifact.graph(form), choice.engine, streams, device)
    if form == "packed":
        limits = Limits(CPU_TOKENS, longest, pads=False, parallel=streams)
        return Packed(str(choice), session, limits, artifact.manifest.head_flags)
    limits = Limits(GPU_TOKENS, longest, pads=True, parallel=streams, ahead=AHEAD * GPU_TOKENS)
    if choice.engine == "cpu-padded":
        limits = Limits(CPU_TOKENS, min(longest, CPU_PADDED_LENGTH), pads=True, parallel=streams)
    return Padded(str(choice), session, limits, artifact.manifest.pad_id)


def build(order: Order) -> Mapping[str, object]:
    """Keep the graph that was made for the build; float32 runs the exported one as it is."""
    if isinstance(order.graph, Graph):
        return files.write(order.graph, order.choice, order.out)
    if isinstance(order.graph, Path):
        for file in order.graph.parent.iterdir():
            shutil.move(file, order.out / file.name)
    return {}


def observe(artifact: Artifact, choice: Choice) -> None:
    """Warn where attention does not run in a fast kernel on the GPU that is here."""
    if FORMS.get(str(choice)) == "unpadded" and probe(choice.engine).ready:
        import_module(KERNELS).warn(artifact.path)


def buildable(name: str, precision: str = "") -> Probe:
    """Say whether an engine's files can be made here; those of cuda:fp16 can anywhere."""
    if f"{name}:{precision}" in FORMS:
        return Probe(name, True, f"onnxruntime {ort.__version__}, which builds without a GPU, too")
    return probe(name)


def from_memory(
    graph: Graph, name: str, manifest: Manifest, longest: int = CPU_PADDED_LENGTH
) -> Engine:
    """Open a graph of the padded form that is in memory: to see what it gives, before it is built.

    Args:
        graph: in operations that ONNX Runtime has on CPUs.
        name: of the engine.
        manifest: of the model.
        longest: most tokens of a text.

    Raises:
        EngineError: ONNX Runtime does not take it.
    """
    (session,) = sessions([graph.proto], graph.weights)
    longest = min(manifest.max_length, longest)
    return Padded(name, session, Limits(CPU_TOKENS, longest, pads=True), manifest.pad_id)


def sessions(
    protos: Sequence[bytes], weights: Mapping[str, np.ndarray[Any, Any]]
) -> list[ort.InferenceSession]:
    """Open models on CPUs that share constants in memory.

    Raises:
        EngineError: ONNX Runtime does not take one.
    """
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(f"u{array.itemsize}"), ONNX_TYPES[array.dtype.name]
        )
        if array.dtype.name in ONNX_TYPES
        else ort.OrtValue.ortvalue_from_numpy(array)
        for array in weights.values()
    ]
    options = session_options()
    if not processor.read().exact_int8:  # then products of 8 bits are computed in float32
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_external_initializers(list(weights), values)
    try:
        return [
            ort.InferenceSession(proto, options, providers=[PROVIDERS["cpu"]]) for proto in protos
        ]
    except Exception as error:  # the binding has no common class for its errors
        raise EngineError(f"ONNX Runtime cannot open the graph: {error}") from error


def open_session(graph: Path, name: str, streams: int = 1, device: int = 0) -> ort.InferenceSession:
    """Open a graph with one provider, and no other in its place."""
    options = session_options(streams)
    # TF32 has ten bits of fraction: float32 is asked for, and the tolerances are its
    settings = {"use_tf32": "0", "device_id": str(device)} if name == "cuda" else {}
    if settings:
        preload()
    try:
        session = ort.InferenceSession(graph, options, providers=[(PROVIDERS[name], settings)])
    except Exception as error:  # the binding has no common class for its errors
        raise ArtifactError(f"ONNX Runtime cannot open {graph}: {error}; {EXPORT}") from error
    running = session.get_providers()[0]
    if running != PROVIDERS[name]:
        raise UnavailableError(f"asked for {PROVIDERS[name]}, the session has {running}")
    return session


def preload() -> None:
    """Load CUDA's libraries from the packages that bring them, where the system has none."""
    if loader := getattr(ort, "preload_dlls", None):
        with contextlib.redirect_stdout(None):  # it prints what it does not find
            loader()


def session_options(streams: int = 1) -> ort.SessionOptions:
    """Return the settings of every session."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors come as exceptions
    options.intra_op_num_threads = max(1, cores() // streams)
    # waiting threads sleep: a server's other threads need the cores more
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # the arena keeps the peak of the longest text for ever, memory patterns one plan per shape
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options


def precision(name: str) -> str:
    """Return the best near-lossless precision: ONNX Runtime has no bf16 on CPUs."""
    return "fp32"


def probe(name: str, device: int = 0) -> Probe:
    """Say whether this installation has the engine's provider, and the machine its device."""
    there = ort.get_available_providers()
    if PROVIDERS[name] not in there:
        return Probe(
            name,
            False,
            f"onnxruntime {ort.__version__} has no {PROVIDERS[name]}, only {', '.join(there)}: "
            f"pip uninstall onnxruntime; pip install 'm3rt[{BACKENDS[name].extra}]'",
        )
    detail = f"{distribution()} {ort.__version__}, {PROVIDERS[name]}"
    if name == "cuda":
        # a provider is there once it is compiled in, whatever the machine has
        driver = nvidia.read()
        if not driver.gpus[device:]:
            why = driver.why or f"it has no number {device}"
            return Probe(name, False, f"{detail}, but no GPU: {why}")
        detail = f"{detail} on {driver.gpus[device]}"
    return Probe(name, True, detail)


def distribution() -> str:
    """Return which of the packages that share this module is installed."""
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return package
    return "onnxruntime"
