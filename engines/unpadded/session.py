"""ONNX Runtime's sessions on a device: one for each form of the graph, with one set of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from m3rt.engines.cuda import Cuda, size
from m3rt.engines.faults import OutOfMemoryError, full
from m3rt.engines.pipeline import Pipeline, Step
from m3rt.engines.slots import Slot
from m3rt.errors import ArtifactError, EngineError, UnavailableError

PROVIDER = "CUDAExecutionProvider"
SUMS = (1, 31)  # the first version that is known to add up in float32


class Session(Pipeline):
    """Sessions that compute on a stream of ours, from and to buffers of ours.

    ONNX Runtime waits for nothing then, so a step is queued like any other work, and can be
    captured in a graph.
    """

    def __init__(self, cuda: Cuda, slots: int) -> None:
        super().__init__(cuda, slots, graphs=True)
        self._sessions: list[Any] = []
        self._weights: dict[str, Any] = {}  # values of ONNX Runtime, on the device
        self._ready: Any = None  # session and binding that were prepared last
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def open(
        self, graphs: Mapping[str, Path], weights: Iterable[tuple[str, NDArray[Any]]], again: str
    ) -> None:
        """Open the graphs; step.key begins with the place of one among them.

        Args:
            graphs: form to file.
            weights: their constants, by name, which go to the device once for all of them.
            again: the command that writes the graphs again.

        Raises:
            ArtifactError: ONNX Runtime does not take one of them.
            UnavailableError: it does not run on the device.
            OutOfMemoryError: the device is full.
        """
        with self._library():
            for name, array in weights:
                value = ort.OrtValue.ortvalue_from_numpy(array, "cuda", self.cuda.device)
                self._weights[name] = value
        for path in graphs.values():
            self._sessions.append(self._session(path, again))

    def _session(self, path: Path, again: str) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors come as exceptions
        options.intra_op_num_threads = 1  # nothing runs on the processor
        # what is written is what runs: the passes that made the graph have fused it already
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_pattern = False  # which keeps a plan for every shape it meets
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        provider = {
            "device_id": str(self.cuda.device),
            "user_compute_stream": str(int(self._compute.handle)),
            # the arena grows by what is asked for, not to the next power of two
            "arena_extend_strategy": "kSameAsRequested",
            # before 1.31 the statistics of LayerNorm may add up in float16 but for this, which
            # takes a slower kernel
            "enable_skip_layer_norm_strict_mode": str(int(version(ort.__version__) < SUMS)),
        }
        try:
            session = ort.InferenceSession(
                path, options, providers=[(PROVIDER, provider)], enable_fallback=0
            )
        except Exception as error:  # the binding has no common class for its errors
            said = str(error)
            if full(said):
                raise OutOfMemoryError(f"ONNX Runtime cannot open {path}: {said}") from error
            raise ArtifactError(f"ONNX Runtime cannot open {path}: {said}; {again}") from error
        if (running := session.get_providers()[0]) != PROVIDER:
            raise UnavailableError(
                f"asked for {PROVIDER}, the session has {running}: its libraries are not found, "
                "pip install 'm3rt[cuda]'"
            )
        return session

    def _prepare(self, slot: Slot, step: Step) -> None:
        with self._library():
            session = self._sessions[step.key[0]]
            binding = session.io_binding()
            addresses = slot.addresses(step.layout)
            for name, place in step.layout.items():
                bind = binding.bind_input if name in step.inputs else binding.bind_output
                where = ("cuda", self.cuda.device, place.dtype.type, place.shape, addresses[name])
                bind(name, *where)
            for name, array in step.host.items():
                binding.bind_cpu_input(name, array)
            self._ready = session, binding

    def _execute(self) -> None:
        with self._library():
            session, binding = self._ready
            session.run_with_iobinding(binding, self._options)

    def _discard(self) -> None:
        pass  # its errors are raised, none are kept

    def _end(self) -> None:
        self._ready = None
        self._sessions.clear()
        self._weights.clear()

    def _failure(self, said: str) -> EngineError:
        self._compute.synchronize()  # raises if the device was lost
        said = f"ONNX Runtime failed: {said}"
        if full(said):
            return OutOfMemoryError(f"{said}; {size(self.cuda.free())} are free")
        return EngineError(said)


def version(text: str) -> tuple[int, int]:
    """Read major and minor of a version."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
