"""tensorrt and tensorrt_rtx without a device: their rules, with ONNX Runtime for a network.

See tests/emulated_cuda.py for the device.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from m3rt import artifact
from m3rt.artifact import Artifact, Build
from m3rt.engines.ort import session_options
from m3rt.engines.trt.plan import PORTABLE, Plan
from m3rt.engines.trt.profiles import Profile
from m3rt.engines.trt.tensors import INPUTS, outputs
from tests import fake
from tests.conftest import copied
from tests.emulated_cuda import Code, EmulatedCuda, Failure, Violation

MAGIC = b"EMULATED"
VERSIONS = {"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1.116"}
PROFILES = (
    Profile((1, 1), (4, 32), (8, 64)),
    Profile((1, 65), (2, 128), (4, 512)),
    Profile((1, 513), (1, 1024), (2, 4096)),
)
PER_TOKEN = 1000  # bytes of activations
WEIGHTS = 10_000_000


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO

    def __init__(self) -> None:
        self.made = True  # a subclass that does not call this crashes the real one


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    INT64 = "int64"


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


@functools.cache
def network(graph: str) -> ort.InferenceSession:
    """Open the portable graph, without an arena: it would keep what the longest text took."""
    return ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])


class Library(ModuleType):
    """The module, with faults to ask for.

    Attributes:
        refuse: executions that fail, counted from 1, and what is logged.
        crash: code that the device reports when it comes to an execution of this number.
        lost: how many executions each device ends before it is lost; by its number.
        spoil: whether outputs are NaN.
        uncapturable: whether a capture fails.
    """

    def __init__(self, cuda: EmulatedCuda, name: str, version: str | None = None) -> None:
        super().__init__(name)
        self.__version__ = version or VERSIONS[name]
        self.cuda = cuda
        self.rtx = name == "tensorrt_rtx"
        self.refuse: dict[int, str] = {}
        self.crash: dict[int, Any] = {}
        self.lost: dict[int, int] = {}
        self.spoil = False
        self.uncapturable = False
        self.executions = 0  # asked for, captured ones too
        self.ran: list[tuple[int, int, int]] = []  # profile, texts, width, as the device ran them
        self.ran_on: Counter[int] = Counter()  # how many of them on each device
        self.compiled = 0
        self.configs: list[Any] = []
        self.logger: Any = None
        self.ILogger = ILogger
        self.DataType = DataType
        self.TensorIOMode = TensorIOMode
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.Runtime = functools.partial(Runtime, self)
        if self.rtx:
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = (
                DynamicShapesKernelSpecializationStrategy
            )

    def error(self, message: str) -> None:
        """Log an error."""
        self.logger.log(Severity.ERROR, message)

    def died(self, what: str) -> None:
        """Note that an object was destroyed."""
        self.cuda.trace.append(f"{what} died")


class Runtime:
    def __init__(self, library: Library, logger: Any) -> None:
        if not getattr(logger, "made", False):
            raise Violation("the logger did not call ILogger.__init__")
        library.logger = library.logger or logger  # the first stays, for the whole process
        self.library = library

    def __del__(self) -> None:
        self.library.died("runtime")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> CudaEngine | None:
        data = bytes(memoryview(serialized_engine))
        self.library.logger.log(Severity.INFO, "Loaded engine")
        if not data.startswith(MAGIC):
            self.library.error("Serialization assertion magicTag failed.")
            return None
        return CudaEngine(self.library, json.loads(data[len(MAGIC) :]))


class CudaEngine:
    def __init__(self, library: Library, plan: dict[str, Any]) -> None:
        self.library = library
        self.plan = plan
        self.tensors: dict[str, dict[str, Any]] = plan["tensors"]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(plan["profiles"])
        self.taken: set[int] = set()
        self.device = library.cuda.device()
        _, self.weights = library.cuda.cudaMalloc(plan["weights"])
        if self.weights is None:
            raise Violation("no memory for the weights, and nobody looked")

    def __del__(self) -> None:
        if getattr(self, "weights", None):
            self.library.cuda.cudaFree(self.weights)
            self.library.died("engine")

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self.tensors[name]["input"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name]["dtype"])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name]["shape"])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if not self.tensors[name]["input"]:
            raise Violation(f"{name} is no input")
        return [tuple(shape) for shape in self.plan["profiles"][profile_index]]

    def create_runtime_config(self) -> RuntimeConfig:
        if not self.library.rtx:
            raise Violation("nothing here needs this of TensorRT")
        return RuntimeConfig(self.library)

    def create_execution_context(self, how: Any) -> ExecutionContext:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        if self.device != self.library.cuda.device():
            raise Violation(f"the engine is on device {self.device}")
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Violation("the context allocates for the largest shape of all profiles")
        if isinstance(how, RuntimeConfig):
            self.library.configs.append(how)
        return ExecutionContext(self, how.cache if isinstance(how, RuntimeConfig) else None)


class RuntimeConfig:
    def __init__(self, library: Library) -> None:
        self.library = library
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.library)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self, library: Library) -> None:
        self.here = [library.__version__, list(library.cuda.card().capability)]
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self.here, sorted(self.kernels)]).encode()

    def deserialize(self, blob: Any) -> bool:
        try:
            here, kernels = json.loads(bytes(blob))
        except ValueError:
            return False
        if here != self.here:
            return False
        self.kernels = set(kernels)
        return True


class ExecutionContext:
    def __init__(self, engine: CudaEngine, cache: RuntimeCache | None) -> None:
        self.engine = engine
        self.library = engine.library
        self.cuda = engine.library.cuda
        self.cache = cache
        self.profile: int | None = None
        self.ready = False  # the device has come to the switch of the profile
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.needed: int | None = None  # None: shapes changed since it was asked for
        self.seen: set[tuple[int, ...]] = set()

    def __del__(self) -> None:
        self.library.died("context")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if profile_index in self.engine.taken:
            raise Violation("two contexts have one profile")
        self.engine.taken.add(profile_index)
        self.profile = profile_index
        self.shapes.clear()
        self.cuda.enqueue(stream_handle, functools.partial(setattr, self, "ready", True))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            raise Violation("a shape before the profile")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.library.error(f"Static dimension mismatch: {shape} is not within {low} to {high}")
            return False
        self.shapes[name] = tuple(shape)
        self.needed = None
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            self.library.error("shapes are not known")
            return 0
        texts, width = self.shapes["input_ids"]
        self.needed = texts * width * int(self.engine.plan["per_token"])
        return self.needed

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256:
            raise Violation("activations are not aligned")
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.tensors or memory % 256:
            self.library.error(f"bad address of {name}")
            return False
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        inputs = [name for name, tensor in self.engine.tensors.items() if tensor["input"]]
        return [name for name in inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = iter(self.shapes["input_ids"])
        return tuple(next(known) if n < 0 else n for n in self.engine.get_tensor_shape(name))

    def execute_async_v3(self, stream_handle: int) -> bool:
        library = self.library
        if self.engine.device != self.cuda.device():
            raise Violation(f"the engine is on device {self.engine.device}")
        library.executions += 1
        if said := library.refuse.get(library.executions):
            library.error(said)
            return False
        if self.needed is None or self.memory[1] < self.needed:
            library.error("device memory is not set for these shapes")
            return False
        if set(self.addresses) != set(self.engine.tensors):
            library.error("Parameter check failed: an address is not set")
            return False
        shape = self.shapes["input_ids"]
        queue = self.cuda.capturing(stream_handle)
        if queue is not None and (library.uncapturable or shape not in self.seen):
            queue.invalid = True  # the first run allocates
            library.error("operation not permitted when stream is capturing")
            return False
        self.seen.add(shape)
        if self.cache is not None and (key := f"{self.profile} {shape}") not in self.cache.kernels:
            library.compiled += 1
            self.cache.kernels.add(key)
        places = {
            name: (address, self.get_tensor_shape(name), self.get_tensor_dtype(name))
            for name, address in self.addresses.items()
        }
        crash = library.crash.get(library.executions)
        self.cuda.enqueue(
            stream_handle,
            functools.partial(self._compute, places, self.memory[0], self.needed, crash),
        )
        return True

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self.engine.tensors[name]["dtype"])
        return found

    def _compute(self, places: dict[str, Any], scratch: int, needed: int, crash: Any) -> None:
        """What the device does, with the shapes and addresses of when it was queued."""
        device = self.engine.device
        if crash is not None:
            raise Failure(crash)
        if self.library.ran_on[device] >= self.library.lost.get(device, math.inf):
            raise Failure(Code.cudaErrorIllegalAddress)
        self.library.ran_on[device] += 1
        if not self.ready:
            raise Violation("the profile was not yet set")
        self.cuda.at(scratch, needed, device)[:] = 0xA5
        arrays = {}
        for name, (address, shape, dtype) in places.items():
            flat = self.cuda.at(address, int(np.prod(shape)) * dtype.itemsize, device)
            arrays[name] = flat.view(dtype).reshape(shape)
        ids, mask = arrays["input_ids"], arrays["attention_mask"]
        if not (np.isin(mask, (0, 1)).all() and (ids >= 0).all()):
            raise Violation("the inputs are not there yet")
        assert self.profile is not None
        self.library.ran.append((self.profile, *ids.shape))
        self.cuda.trace.append("computed")
        feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        names = [name for name in places if name not in feeds]
        for name, found in zip(
            names, network(self.engine.plan["graph"]).run(names, feeds), strict=True
        ):
            arrays[name][...] = found
            if self.engine.tensors[name]["shape"][1:2] == [-1]:
                arrays[name][mask == 0] = np.nan  # rows of padding hold no meaning
            if self.library.spoil:
                arrays[name][...] = np.nan


Change = Callable[[dict[str, Any]], object]


def contents_of(model: Artifact, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return what a plan is of which the emulation computes a model."""
    return {
        "graph": str(model.graph("portable")),
        "weights": WEIGHTS,
        "per_token": PER_TOKEN,
        "profiles": [[p.least, p.best, p.most] for p in profiles],
        "tensors": {
            tensor.name: {
                "input": tensor in INPUTS,
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape(-1, -1)),
            }
            for tensor in (*INPUTS, *outputs(model.manifest))
        },
    }


def built(
    model_dir: Path,
    to: Path,
    engine: str,
    change: Change = lambda plan: None,
    profiles: Sequence[Profile] = PROFILES,
    **facts: Any,
) -> Artifact:
    """Copy a model directory, with a plan for an engine.

    Args:
        model_dir: what to copy.
        to: where to.
        engine: its name.
        change: made to the plan's own contents, so that they differ from the manifest.
        profiles: of the plan.
        facts: fields of Plan that are not as they should be.
    """
    model = copied(model_dir, to)
    package = engine.replace("-", "_")
    target = (PORTABLE,) if package == "tensorrt_rtx" else ("sm86",)
    most = [texts * width for texts, width in (profile.most for profile in profiles)]
    plan = Plan(
        key="0",
        library=package,
        version=VERSIONS[package],
        target=target,
        profiles=tuple(profiles),
        memory=tuple(tokens * PER_TOKEN for tokens in most),
        weights=WEIGHTS,
    )
    contents = contents_of(model, profiles)
    change(contents)
    file = to / f"{engine}-fp16.plan"
    file.write_bytes(MAGIC + json.dumps(contents).encode())
    recipe = {"plan": dataclasses.replace(plan, **facts).dump()}
    entry = Build((file.name,), {}, recipe, {})
    manifest = dataclasses.replace(
        model.manifest,
        files={**model.manifest.files, file.name: artifact.describe(file)},
        builds={f"{engine}:fp16": entry},
    )
    fake.save(Artifact(to, manifest))
    return Artifact(to, manifest)


def install(
    monkeypatch: pytest.MonkeyPatch, cuda: EmulatedCuda, name: str, version: str | None = None
) -> Library:
    """Let the engine find the emulation where it looks for the real modules."""
    library = Library(cuda, name, version)
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return library
