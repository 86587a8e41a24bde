"""TensorRT and TensorRT for RTX on NVIDIA GPUs: which may run here, and opening what was built.

Both libraries have the same interface; the module is a parameter, ``trt``, everywhere.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3rt.artifact import Artifact
from m3rt.engines import Choice, Probe
from m3rt.engines.cuda import Cuda, runtime, size
from m3rt.engines.trt.build import build as build
from m3rt.engines.trt.build import buildable as buildable
from m3rt.engines.trt.build import expect as expect
from m3rt.engines.trt.cache import Kernels
from m3rt.engines.trt.engine import Typed
from m3rt.engines.trt.fit import fits, unsupported
from m3rt.engines.trt.library import library
from m3rt.engines.trt.log import errors
from m3rt.engines.trt.plan import Plan, file_of
from m3rt.engines.trt.session import Session
from m3rt.engines.trt.tensors import INPUTS, Tensor, outputs
from m3rt.errors import ArtifactError, EngineError, UnavailableError
from m3rt.nvidia import Gpu
from m3rt.types import Engine

FORMS = {"tensorrt": "typed", "tensorrt-rtx": "typed"}
RTX = "tensorrt-rtx"

DTYPES = {"int32": "INT32", "float32": "FLOAT", "float16": "HALF"}  # numpy's names to TensorRT's

EAGER = "M3RT_TENSORRT_EAGER"  # environment: anything but nothing turns it on

# Two batches on their way: one is copied while the other computes.
SLOTS = 2


def precision(name: str) -> str:
    """Return the best near-lossless precision: both libraries fuse attention in float16."""
    return "fp16"


def probe(name: str, device: int = 0) -> Probe:
    """Say whether the library is there, and runs on the device of a number."""
    try:
        trt = library(name)
    except UnavailableError as error:
        return Probe(name, False, str(error))
    found = f"{trt.__name__} {trt.__version__}"
    try:
        gpu = usable(name, Cuda(runtime(name), device))
    except (UnavailableError, EngineError) as error:
        able = "builds here, but cannot run" if name == RTX else "cannot run"
        return Probe(name, False, f"{found} {able}: {error}")
    return Probe(name, True, f"{found}, {gpu}")


def usable(engine: str, cuda: Cuda) -> Gpu:
    """Return the device.

    Raises:
        UnavailableError: there is none, or none that the library supports.
    """
    gpu = cuda.gpu()
    if engine == RTX and unsupported(gpu):
        raise UnavailableError(
            f"TensorRT for RTX has no kernels for {gpu}: choose the tensorrt engine, "
            "pip install 'm3rt[tensorrt]'"
        )
    return gpu


def load(artifact: Artifact, choice: Choice, streams: int, device: int = 0) -> Engine:
    """Open the engine that ``m3rt build`` wrote, on the device of a number.

    Everything goes to the calling thread's current device, which is that one from here on.

    Raises:
        ArtifactError: it was not built, or for another version or device, or is damaged.
        UnavailableError: the library or a device is not there, or memory is short.
        EngineError: it cannot run.
    """
    trt = library(choice.engine)
    cuda = Cuda(runtime(choice.engine), device)
    gpu = usable(choice.engine, cuda)
    path = artifact.built(str(choice), file_of(str(choice)))
    plan = read_plan(artifact, choice)
    again = rebuild(artifact, choice)
    if reason := fits(plan, trt.__name__, trt.__version__, gpu):
        raise ArtifactError(f"{path} was {reason}; {again}")
    cuda.use()
    needed, free = plan.weights + max(plan.memory, default=0), cuda.free()
    if needed > free:
        raise UnavailableError(
            f"{choice} needs {size(needed)} of the device's memory, and {size(free)} of "
            f"{size(gpu.memory)} are free: end what else uses it, or build with a smaller "
            f"--max-tokens; {again}"
        )
    opener, engine = deserialize(trt, path, again)
    tensors = outputs(artifact.manifest)
    if reason := unlike(trt, engine, tensors, plan):
        raise ArtifactError(
            f"{path} is not the engine that the manifest describes: {reason}; {again}"
        )
    # TensorRT for RTX captures graphs itself
    session = Session(cuda, errors(trt), tensors, max(SLOTS, streams), choice.engine != RTX)
    try:
        kernels = None
        if choice.engine == RTX:
            kernels = Kernels(engine.create_runtime_config(), cache_of(path, gpu))
            session.open((opener, engine, kernels), rtx_contexts(trt, engine, kernels))
        else:
            session.open((opener, engine), plain_contexts(trt, engine))
        manifest = artifact.manifest
        typed = Typed(str(choice), session, plan.profiles, manifest.max_length, manifest.pad_id)
        typed.warm_up()
        if kernels is not None:
            kernels.write()
            session.before_release = kernels.write  # with those of shapes that came since
    except BaseException:
        session.release()
        raise
    return typed


def read_plan(artifact: Artifact, choice: Choice) -> Plan:
    """Read how a plan was built.

    Raises:
        ArtifactError: the manifest does not say.
    """
    try:
        return Plan.read(artifact.manifest.builds[str(choice)].recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifact.path} does not say how it was built for {choice} ({error!r}); "
            f"{rebuild(artifact, choice)}"
        ) from error


def deserialize(trt: Any, path: Path, again: str) -> tuple[Any, Any]:
    """Read a plan; return the library's runtime, and the engine, which needs it.

    Raises:
        ArtifactError: the library will not have it; ends with the command that cures it.
    """
    log = errors(trt)
    log.take()  # what others left
    opener = trt.Runtime(log.logger)
    with (
        path.open("rb") as file,
        # mapped: the library copies weights to the device, and a second copy here is not needed
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
    ):
        engine = opener.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(f"TensorRT cannot open {path}: {log.take()}; {again}")
    return opener, engine


def unlike(trt: Any, engine: Any, tensors: Sequence[Tensor], plan: Plan) -> str:
    """Say in what an engine differs from what it should be; nothing if it does not."""
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    expected = {tensor.name for tensor in (*INPUTS, *tensors)}
    if names != expected:
        return f"it has {', '.join(sorted(names))}, not {', '.join(sorted(expected))}"
    for tensor in (*INPUTS, *tensors):
        mode = trt.TensorIOMode.INPUT if tensor in INPUTS else trt.TensorIOMode.OUTPUT
        if engine.get_tensor_mode(tensor.name) != mode:
            return f"{tensor.name} is not an {mode}"
        dtype = engine.get_tensor_dtype(tensor.name)
        if dtype != getattr(trt.DataType, DTYPES[tensor.dtype.name]):
            return f"{tensor.name} is {dtype}, not {tensor.dtype.name}"
        shape = tuple(engine.get_tensor_shape(tensor.name))
        pattern = tensor.shape(-1, -1)
        if len(shape) != len(pattern) or any(
            length not in (-1, wanted) for length, wanted in zip(shape, pattern, strict=True)
        ):
            return f"{tensor.name} is {shape}, not {pattern}"
    if engine.num_optimization_profiles != len(plan.profiles):
        return f"it has {engine.num_optimization_profiles} profiles, not {len(plan.profiles)}"
    for index, profile in enumerate(plan.profiles):
        bounds = [profile.least, profile.best, profile.most]
        for tensor in INPUTS:
            found = [tuple(s) for s in engine.get_tensor_profile_shape(tensor.name, index)]
            if found != bounds:
                return f"profile {index} of {tensor.name} is {found}, not {bounds}"
    return ""


def plain_contexts(trt: Any, engine: Any) -> Iterator[Any]:
    """Open a context for each profile; memory for activations is ours."""
    for _ in range(engine.num_optimization_profiles):
        yield engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def rtx_contexts(trt: Any, engine: Any, kernels: Kernels) -> Iterator[Any]:
    """Do so where kernels are compiled on the device, when a context or a shape is new."""
    config = kernels.config
    config.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    # A shape that is new runs in kernels for all shapes while its own are compiled. To measure,
    # wait for these instead: then no run is slower than the next of its kind.
    strategies = trt.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = (
        strategies.EAGER if os.environ.get(EAGER) else strategies.LAZY
    )
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for _ in range(engine.num_optimization_profiles):
        yield engine.create_execution_context(config)


def cache_of(path: Path, gpu: Gpu) -> Path:
    """Return where the kernels of a plan for a device are kept."""
    return path.with_name(f"{path.stem}.{gpu.sm}.cache")


def rebuild(artifact: Artifact, choice: Choice) -> str:
    """Return the command that builds again."""
    return (
        f"run: m3rt build {artifact.path} --engine {choice.engine} "
        f"--precision {choice.precision} --force"
    )
