"""Building TensorRT engines: ``tensorrt`` and ``tensorrt_rtx`` share the interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.progress import Progress

from m3rt.engines.trt.callbacks import logger, progress_monitor, writer
from m3rt.engines.trt.profiles import Profile
from m3rt.errors import EngineError, InputError
from m3rt.graph import Graph

ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
# warnings after which an engine would give wrong results
FATAL = re.compile(
    r"is unused or used only at compile-time|overflow|out of (?:the )?range of|"
    r"layernorm\w* .*FP16",
    re.IGNORECASE,
)
LEAST_FP8 = 89  # compute capability


@dataclass(frozen=True, slots=True)
class Built:
    """What the library said of an engine."""

    memory: tuple[int, ...]  # bytes of activations of each profile at its most; () if not told
    weights: int  # bytes; 0 if not told
    warnings: tuple[str, ...]


def build(
    trt: ModuleType,
    graph: Graph,
    profiles: Sequence[Profile],
    target: Sequence[str],
    out: Path,
    cache: Path | None,
    bars: Progress,
) -> Built:
    """Build an engine.

    The library works in a thread of its own, so that a signal ends it between two steps.

    Args:
        trt: the library.
        graph: what to compute.
        profiles: shapes to compute it for.
        target: compute capabilities, as sm86; none for what the library takes by itself.
        out: file to write; it is there only if all went well.
        cache: file of kernel timings, read and written; None for none.
        bars: gets the library's own progress.

    Raises:
        EngineError: the library refused, or warned of what would give wrong results.
        InputError: there is no such target.
        OSError: the file cannot be written.
    """
    log, monitor = logger(trt), progress_monitor(trt, bars)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        job = (trt, graph, tuple(profiles), target, part, cache, log, monitor)
        if not finished(job, monitor):
            raise EngineError(f"{trt.__name__} {trt.__version__} could not build: {log.errors()}")
        warnings = log.warnings()
        if wrong := [text for text in warnings if FATAL.search(text)]:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} would give wrong results: {'; '.join(wrong[:3])}"
            )
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return Built(log.numbers(ACTIVATIONS), max(log.numbers(WEIGHTS), default=0), warnings)


def finished(job: tuple[Any, ...], monitor: Any) -> bool:
    """Run ``serialized`` in a thread; this one takes signals meanwhile, and ends it on one."""
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        working = pool.submit(serialized, *job)
        try:
            while not wait([working], timeout=0.2).done:
                pass
            return working.result()
        except BaseException:
            monitor.cancelled.set()
            raise


def serialized(
    trt: ModuleType,
    graph: Graph,
    profiles: tuple[Profile, ...],
    target: Sequence[str],
    out: Path,
    cache: Path | None,
    log: Any,
    monitor: Any,
) -> bool:
    """Parse the graph, build, and write; false if the library failed, and the log says why."""
    builder = trt.Builder(log)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    with tempfile.TemporaryDirectory(prefix="m3rt-") as folder:
        parser = trt.OnnxParser(network, log)  # owns what it converts: it must outlive the build
        if not parse(parser, graph, Path(folder), log):
            return False
        config = configuration(trt, builder, network, profiles, target)
        config.progress_monitor = monitor
        timings = timing_cache(config, cache)
        done = write(trt, builder, network, config, out)
    if done and timings is not None and cache is not None:
        replace(cache, memoryview(timings.serialize()))
    return done


def write(trt: ModuleType, builder: Any, network: Any, config: Any, out: Path) -> bool:
    """Build and write: piece by piece where the library can, for that saves a copy in memory."""
    if not hasattr(builder, "build_serialized_network_to_stream"):
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            out.write_bytes(memoryview(plan))
        return plan is not None
    with out.open("wb") as file:
        stream = writer(trt, file)
        done = builder.build_serialized_network_to_stream(network, config, stream)
    if stream.failed is not None:
        raise stream.failed
    return bool(done)


def parse(parser: Any, graph: Graph, folder: Path, log: Any) -> bool:
    """Give the graph to the parser: without a file where it can take weights from memory.

    The library does not copy the weights: they have to outlive the build.
    """
    if hasattr(parser, "load_initializer"):
        done = parser.load_model_proto(graph.proto)
        for name, array in graph.weights.items():
            done = done and parser.load_initializer(name, array.ctypes.data, array.nbytes)
        done = done and parser.parse_model_proto()
    else:
        done = parser.parse_from_file(str(save(graph, folder)))
    for i in range(parser.num_errors):
        log.log(log.ERROR, str(parser.get_error(i)))
    return bool(done)


def save(graph: Graph, folder: Path) -> Path:
    """Write a graph and its constants, for a parser that reads files only."""
    import onnx

    model = onnx.load_model_from_string(graph.proto)
    for tensor in model.graph.initializer:
        if tensor.name in graph.weights:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = graph.weights[tensor.name].tobytes()
    path = folder / "graph.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location="graph.data", size_threshold=1024
    )
    return path


def configuration(
    trt: ModuleType,
    builder: Any,
    network: Any,
    profiles: tuple[Profile, ...],
    target: Sequence[str],
) -> Any:
    """Return the builder's settings.

    Raises:
        EngineError: the library refuses a profile.
        InputError: there is no such target.
    """
    config = builder.create_builder_config()
    # with it, the plan says which kernels it launches
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is written where it is needed
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            shapes.set_shape(network.get_input(i).name, profile.least, profile.best, profile.most)
        if config.add_optimization_profile(shapes) < 0:
            raise EngineError(f"{trt.__name__} refuses the profile {profile}")
    if target:
        config.num_compute_capabilities = len(target)
        for i, name in enumerate(target):
            config.set_compute_capability(capability(trt, name), i)
    return config


def capability(trt: ModuleType, name: str) -> Any:
    """Return the library's constant for a compute capability, as sm86.

    Raises:
        InputError: it has none.
    """
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise InputError(
            f"{trt.__name__} builds for the GPU of this machine: leave out --target {name}, or "
            "take --engine tensorrt-rtx"
        )
    names = [one.lower() for one in known.__members__ if one.startswith("SM")]
    if name not in names:
        raise InputError(
            f"{trt.__name__} {trt.__version__} has no target {name}, only {', '.join(names)}; on "
            "a GPU of another kind, --engine tensorrt builds for it"
        )
    return known.__members__[name.upper()]


def check_target(trt: ModuleType, target: Sequence[str], precision: str) -> None:
    """Refuse a target that the library does not know, or that has no arithmetic of a precision.

    Raises:
        InputError: says which.
    """
    for name in target:
        capability(trt, name)
    old = [name for name in target if int(name.removeprefix("sm")) < LEAST_FP8]
    if precision == "fp8" and old:
        raise InputError(f"fp8 needs sm{LEAST_FP8} or newer, found {', '.join(old)}: take int8")


def key(
    graph: Graph, precision: str, profiles: Sequence[Profile], library: str, target: Sequence[str]
) -> str:
    """Return the sha256 of all that an engine depends on; plans differ from build to build.

    Args:
        graph: with its weights, so also how they are quantised.
        precision: what was asked for.
        profiles: shapes.
        library: name and version.
        target: compute capabilities.
    """
    parts = [graph.sha256, precision, [repr(one) for one in profiles], library, list(target)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def timing_cache(config: Any, path: Path | None) -> Any:
    """Let the builder use kernel timings of earlier builds; None where it does not keep any."""
    if path is None:
        return None
    before = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(before)
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # another GPU's or version's
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def replace(path: Path, data: Any) -> None:
    """Write a file at once, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
