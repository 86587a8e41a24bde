"""OpenVINO on CPUs: the grouped graph, in bf16, float32 or int8."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from m3rt.artifact import EXPORT, Artifact
from m3rt.engines import Choice, Order, Probe
from m3rt.errors import ArtifactError, EngineError
from m3rt.processor import cores
from m3rt.types import Batch, Engine, Heads, Limits, Raw

FORMS = {"openvino": "grouped"}
HINTS = {"bf16": "bf16", "fp32": "f32", "int8": "bf16"}  # int8: for all that is not quantised

# The rate hardly changes between 128 and 2048; smaller steps take less memory and answer sooner.
TOKENS = 512

# Attention runs on rectangles. Where a long text meets short ones, it would be mostly padding.
SLACK = 1.5

# OpenVINO prepares its kernels anew for each number of rows that it has not seen; whole multiples
# of this keep such numbers few, and a query short. See benchmarks/choices.py.
ROWS = 16


class Grouped:
    """The grouped graph: tokens end to end, attention over rectangles."""

    def __init__(
        self, name: str, model: ov.CompiledModel, limits: Limits, heads: Heads, pad_id: int
    ) -> None:
        self.name = name
        self.limits = limits
        self._heads = heads  # that the graph has
        self._pad_id = pad_id
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(limits.parallel):
            self._idle.put(model.create_infer_request())

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        tokens = batch.tokens
        count = len(tokens.values)
        ids = np.full(-(-count // ROWS) * ROWS, self._pad_id, np.int64)
        ids[:count] = tokens.values
        inputs: dict[str, Any] = {"input_ids": ids, "starts": tokens.starts}
        for head in self._heads:
            inputs[f"want_{head.names[0]}"] = np.array(head in heads)
        with self._request() as request:
            try:
                found = request.infer(inputs)  # copies: the request's own arrays are used again
                out = {name: found[name] for name in heads.names}
            except Exception as error:  # the binding has no common class for its errors
                raise EngineError(f"OpenVINO failed: {error}") from error
        weights, colbert = out.get("sparse"), out.get("colbert")
        return Raw(
            dense=out.get("dense"),
            weights=None if weights is None else weights[:count],
            colbert=None if colbert is None else np.split(colbert[:count], tokens.starts[1:-1]),
            scores=out.get("score"),
        )

    @contextlib.contextmanager
    def _request(self) -> Iterator[ov.InferRequest]:
        """Lend a request; callers beyond the number of streams wait."""
        request = self._idle.get()
        try:
            yield request
        finally:
            self._idle.put(request)


def load(artifact: Artifact, choice: Choice, streams: int) -> Engine:
    """Open the engine.

    What ``m3rt build`` wrote is used; bf16 and fp32 also run from the exported graph as it is,
    with more time and memory to start.

    Raises:
        ArtifactError: the graph cannot be read, or int8 was not built.
    """
    name = file_of(choice)
    built = str(choice) in artifact.manifest.builds
    needed = built or choice.precision == "int8"
    graph = artifact.built(str(choice), name) if needed else artifact.graph(FORMS[choice.engine])
    manifest = artifact.manifest
    limits = Limits(TOKENS, manifest.max_length, pads=False, slack=SLACK, parallel=streams)
    compiled = compile_graph(graph, choice.precision, streams)
    return Grouped(str(choice), compiled, limits, manifest.head_flags, manifest.pad_id)


def compile_graph(graph: Path, precision: str, streams: int) -> ov.CompiledModel:
    """Make a graph ready to run; its weights are mapped, not read."""
    core = ov.Core()
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(cores()),
    }
    try:
        return core.compile_model(core.read_model(graph), "CPU", options)
    except Exception as error:  # the binding has no common class for its errors
        raise ArtifactError(f"OpenVINO cannot open {graph}: {error}; {EXPORT}") from error


def build(order: Order) -> Mapping[str, object]:
    """Write the graph in OpenVINO's own form: it opens faster, and in half the memory.

    bf16 stores weights as float16, which holds every bit of a bf16 that is not tiny, and which
    OpenVINO can map and convert layer by layer. Nothing in the file is bound to this machine.
    """
    core, choice = ov.Core(), order.choice
    model = core.read_model(order.graph or order.artifact.graph(FORMS[choice.engine]))
    ov.save_model(model, order.out / file_of(choice), compress_to_fp16=choice.precision == "bf16")
    return {"storage": {"bf16": "float16", "fp32": "float32"}.get(choice.precision, "int8")}


def file_of(choice: Choice) -> str:
    """Return the name of the file that build writes; its weights stand beside it."""
    return f"{choice.engine}-{choice.precision}.xml"


def precision(name: str) -> str:
    """Return the best near-lossless precision: bf16 where the processor multiplies it."""
    found = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in found else "fp32"


def probe(name: str) -> Probe:
    """Say whether OpenVINO finds the processor, and what it can do with it."""
    core = ov.Core()
    if "CPU" not in core.available_devices:
        found = ", ".join(core.available_devices) or "none"
        return Probe(name, False, f"openvino {ov.__version__} finds no CPU device, only: {found}")
    able = sorted(set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")) & {"BF16", "INT8"})
    version = ov.__version__.split("-")[0]
    return Probe(name, True, f"openvino {version}, CPU with {' and '.join(able) or 'FP32'}")
