"""onnxruntime's CUDA provider without a device: its rules, and the graph on a CPU for a network.

See tests/emulated_cuda.py for the device.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real
import pytest
from rich.progress import Progress

from m3rt import artifact
from m3rt.artifact import Artifact, Build
from m3rt.engines import Choice, Probe
from m3rt.engines import ort as cpu
from m3rt.engines.unpadded import files, session
from m3rt.export import emulation, unpadded
from m3rt.graph import Graph
from tests import fake
from tests.conftest import copied
from tests.emulated_cuda import EmulatedCuda, Failure, Violation

CUDA = "CUDAExecutionProvider"
PER_TOKEN = 1000  # bytes of activations
TYPES = {
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class Options:
    """SessionOptions and RunOptions, as far as the engine may go."""

    def __init__(self) -> None:
        self.log_severity_level = 2
        self.intra_op_num_threads = 0
        self.graph_optimization_level = real.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.enable_mem_pattern = True
        self.entries: dict[str, str] = {}
        self.shared: dict[str, Value] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    add_run_config_entry = add_session_config_entry

    def add_initializer(self, name: str, value: Value) -> None:
        self.shared[name] = value


class Value:
    """An array on the device."""

    def __init__(self, cuda: EmulatedCuda, array: np.ndarray[Any, Any], device: int) -> None:
        self.cuda, self.device = cuda, device
        self.dtype, self.shape = array.dtype, array.shape
        cuda.cudaSetDevice(device)
        _, self.address = cuda.cudaMalloc(array.nbytes)
        if self.address is None:
            raise RuntimeError(f"Failed to allocate memory for requested buffer of {array.nbytes}")
        cuda.at(self.address, array.nbytes, device)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self.cuda.cudaFree(self.address)

    def numpy(self) -> np.ndarray[Any, Any]:
        count = int(np.prod(self.shape)) * self.dtype.itemsize
        found: np.ndarray[Any, Any] = self.cuda.at(self.address, count, self.device).view(
            self.dtype
        )
        return found.reshape(self.shape).copy()


@functools.cache
def network(data: bytes, weights: Weights) -> Any:
    """Open a graph for a CPU, once."""
    graph = emulation.runnable(Graph(data, weights.arrays, "", (), data))
    return cpu.sessions([graph.proto], graph.weights)[0]


class Weights:
    """Arrays that can be a key."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = arrays
        self.digest = hashlib.sha256()
        for name in sorted(arrays):
            self.digest.update(name.encode() + arrays[name].tobytes())

    def __hash__(self) -> int:
        return hash(self.digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.digest.digest() == other.digest.digest()


class Library(ModuleType):
    """The module, with faults to ask for.

    Attributes:
        refuse: runs that fail, counted from 1, and what is said.
        crash: code that the device reports when it comes to a run of this number.
        spoil: whether outputs are NaN.
        uncapturable: whether a capture fails.
        lacking: whether the provider's libraries cannot be loaded.
    """

    def __init__(self, cuda: EmulatedCuda) -> None:
        super().__init__("onnxruntime")
        self.__version__ = "1.31.1"
        self.cuda = cuda
        self.refuse: dict[int, str] = {}
        self.crash: dict[int, Any] = {}
        self.spoil = self.uncapturable = self.lacking = False
        self.runs = 0  # asked for, captured ones too
        self.ran: list[tuple[str, int, int]] = []  # form, tokens, texts, as the device ran them
        self.opened: list[InferenceSession] = []
        self.SessionOptions = self.RunOptions = Options
        self.GraphOptimizationLevel = real.GraphOptimizationLevel
        self.InferenceSession = functools.partial(InferenceSession, self)
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.value)

    def value(self, array: np.ndarray[Any, Any], device_type: str, device_id: int) -> Value:
        if device_type != "cuda":
            raise Violation(f"{device_type} is not where the kernels read")
        return Value(self.cuda, array, device_id)


class InferenceSession:
    def __init__(
        self,
        library: Library,
        path: Path,
        options: Options,
        providers: list[tuple[str, dict[str, str]]],
        enable_fallback: int,
    ) -> None:
        ((name, settings),) = providers
        strict = library.__version__ < "1.31"  # or statistics add up in float16
        asked = settings["enable_skip_layer_norm_strict_mode"] == "1"
        if name != CUDA or enable_fallback or asked != strict:
            raise Violation(f"not as the graph needs it: {providers}")
        self.library, self.cuda = library, library.cuda
        self.device, self.stream = (
            int(settings["device_id"]),
            int(settings["user_compute_stream"]),
        )
        if any(value.device != self.device for value in options.shared.values()):
            raise Violation("weights are on another device")
        self.options = options  # holds the weights
        given = Weights({name: value.numpy() for name, value in options.shared.items()})
        self.network = network(Path(path).read_bytes(), given)
        self.arena: list[int] = []
        self.room = 0
        self.seen: set[tuple[Any, ...]] = set()
        library.opened.append(self)

    def __del__(self) -> None:
        for address in getattr(self, "arena", ()):
            self.cuda.cudaFree(address)

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"] if self.library.lacking else [CUDA]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, run_options: Options) -> None:
        library = self.library
        library.runs += 1
        if said := library.refuse.get(library.runs):
            raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {said}")
        if run_options.entries != {"disable_synchronize_execution_providers": "1"}:
            raise Violation("the run waits for the device")
        if binding.session is not self:
            raise Violation("the binding is another session's")
        self.cuda.cudaSetDevice(self.device)  # as the provider does
        inputs = {value.name for value in self.network.get_inputs()}
        if set(binding.inputs) | set(binding.host) != inputs:
            raise RuntimeError(f"bound {set(binding.inputs)}, the graph has {inputs}")
        if set(binding.outputs) != {value.name for value in self.network.get_outputs()}:
            raise RuntimeError("an output is not bound")
        tokens = binding.inputs["input_ids"][1][0]
        shapes = tuple((name, shape) for name, (_, shape, _) in sorted(binding.inputs.items()))
        queue = self.cuda.capturing(self.stream)
        if queue is not None and (library.uncapturable or shapes not in self.seen):
            queue.invalid = True  # the first run allocates
            raise RuntimeError("operation not permitted when stream is capturing")
        self._grow(tokens * PER_TOKEN)
        self.seen.add(shapes)
        crash = library.crash.get(library.runs)
        self.cuda.enqueue(self.stream, functools.partial(self._compute, binding.copy(), crash))

    def _grow(self, needed: int) -> None:
        if needed > self.room:
            code, address = self.cuda.cudaMalloc(needed - self.room)
            if address is None:
                raise RuntimeError(
                    f"[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested "
                    f"buffer of size {needed - self.room} ({code.name})"
                )
            self.arena.append(address)
            self.room = needed

    def _compute(self, binding: Binding, crash: Any) -> None:
        """What the device does, with the shapes and addresses of when it was queued."""
        if crash is not None:
            raise Failure(crash)

        def array(place: tuple[int, tuple[int, ...], Any]) -> np.ndarray[Any, Any]:
            address, shape, dtype = place
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found: np.ndarray[Any, Any] = self.cuda.at(address, count, self.device).view(dtype)
            return found.reshape(shape)

        feeds = {name: array(place).copy() for name, place in binding.inputs.items()}
        if any((value < 0).any() for value in feeds.values()):
            raise Violation("the inputs are not there yet")
        varlen = "cu_seqlens" in feeds
        texts = len(feeds["cu_seqlens"]) - 1 if varlen else len(feeds["lengths"])
        self.library.ran.append(
            ("varlen" if varlen else "rectangles", len(feeds["input_ids"]), texts)
        )
        self.cuda.trace.append("computed")
        names = list(binding.outputs)
        found = self.network.run(names, feeds | binding.host)
        for name, value in zip(names, found, strict=True):
            out = array(binding.outputs[name])
            if out.shape != value.shape or out.dtype != value.dtype:
                raise Violation(f"{name} is {value.dtype} {value.shape}, bound as {out.shape}")
            out[...] = np.nan if self.library.spoil else value


class Binding:
    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self.inputs: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        self.outputs: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        self.host: dict[str, np.ndarray[Any, Any]] = {}

    def copy(self) -> Binding:
        other = Binding(self.session)
        other.inputs, other.outputs = dict(self.inputs), dict(self.outputs)
        other.host = {name: array.copy() for name, array in self.host.items()}
        return other

    def bind_input(
        self, name: str, kind: str, device: int, dtype: Any, shape: tuple[int, ...], address: int
    ) -> None:
        expected = {v.name: v for v in self.session.network.get_inputs()}[name]
        self.inputs[name] = self._checked(expected, kind, device, dtype, shape, address)

    def bind_output(
        self, name: str, kind: str, device: int, dtype: Any, shape: tuple[int, ...], address: int
    ) -> None:
        expected = {v.name: v for v in self.session.network.get_outputs()}[name]
        self.outputs[name] = self._checked(expected, kind, device, dtype, shape, address)

    def bind_cpu_input(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if name != "grid":  # all else would be copied by ONNX Runtime, one by one
            raise Violation(f"{name} is on the host")
        self.host[name] = array

    def _checked(
        self, expected: Any, kind: str, device: int, dtype: Any, shape: Any, address: int
    ) -> tuple[int, tuple[int, ...], Any]:
        if kind != "cuda" or device != self.session.device or address % 256:
            raise Violation(f"{expected.name} is not where it should be")
        if TYPES[expected.type] != dtype or len(expected.shape) != len(shape):
            raise RuntimeError(f"Unexpected input data type or rank of {expected.name}")
        return address, tuple(shape), dtype


def built(model_dir: Path, to: Path) -> Artifact:
    """Copy a model directory, with what a build writes for cuda:fp16."""
    model = copied(model_dir, to)
    choice = Choice("cuda", "fp16")
    recipe = files.write(unpadded.write(model, Progress(disable=True)), choice, to)
    names = (files.weights_file(choice), *(files.graph_file(choice, form) for form in files.FORMS))
    manifest = dataclasses.replace(
        model.manifest,
        files={**model.manifest.files, **{n: artifact.describe(to / n) for n in names}},
        builds={str(choice): Build(names, {}, recipe, {})},
    )
    fake.save(Artifact(to, manifest))
    return Artifact(to, manifest)


def install(monkeypatch: pytest.MonkeyPatch, cuda: EmulatedCuda) -> Library:
    """Let the engine find the emulation where it looks for the real modules."""
    library = Library(cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(session, "ort", library)
    monkeypatch.setattr(cpu, "preload", lambda: None)
    probe = cpu.probe
    here = Probe("cuda", True, "emulated")
    monkeypatch.setattr(cpu, "probe", lambda name, n=0: here if name == "cuda" else probe(name, n))
    return library
