"""ONNX Runtime's providers of TensorRT: whether they are there, and sessions on them."""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort

from m3rt import nvidia
from m3rt.engines.catalog import BACKENDS
from m3rt.engines.ort import distribution, preload, session_options
from m3rt.engines.trt.profiles import Profile
from m3rt.engines.trt.tensors import INPUTS
from m3rt.errors import EngineError, UnavailableError, missing
from m3rt.nvidia import Gpu

TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
PROVIDERS = {"ort-tensorrt": TENSORRT, "ort-tensorrt-rtx": RTX}
PREFIXES = {TENSORRT: "trt", RTX: "nv"}  # of their options

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # a package with RTX's library, to be registered
LINKED = "libonnxruntime_providers_tensorrt.so"
NEEDS = re.compile(rb"libnvinfer\.so\.([0-9]+)")
WHEEL = "tensorrt_libs"  # where pip puts TensorRT
CONTEXT = "context.onnx"  # what RTX's provider makes of a graph, the engine beside it

ADA_AND_AMPERE = ((8, 6), (8, 9))  # of GeForce and workstations: RTX's provider runs these,
BLACKWELL = (12, 0)  # and all from this one on


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that can run."""

    name: str
    version: str  # of ONNX Runtime and of the library
    gpu: Gpu
    devices: tuple[Any, ...] = ()  # that a registered library has; () where it is built in

    @property
    def prefix(self) -> str:
        """What its options begin with."""
        return PREFIXES[self.name]

    def __str__(self) -> str:
        return f"{self.name} ({self.version}) on {self.gpu}"


def find(engine: str, number: int = 0) -> Provider:
    """Find the provider of an engine, and load what it needs.

    Args:
        engine: its name.
        number: of the GPU.

    Raises:
        UnavailableError: says what is missing, and how to get it.
    """
    version = f"{distribution()} {ort.__version__}"
    install = f"pip install 'm3rt[{BACKENDS[engine].extra}]'"
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        raise UnavailableError(f"{version} does not tell which provider runs what: {install}")
    if PROVIDERS[engine] == RTX:
        return rtx(engine, version, install, number)
    if TENSORRT not in (there := ort.get_available_providers()):
        raise UnavailableError(
            f"{version} has no {TENSORRT}, only {', '.join(there)}: "
            f"pip uninstall onnxruntime; {install}"
        )
    gpu = device(version, number)
    return Provider(TENSORRT, f"{version}, TensorRT {nvinfer(version, install)}", gpu)


def device(version: str, number: int) -> Gpu:
    """Return the GPU of a number.

    Raises:
        UnavailableError: there is none.
    """
    driver = nvidia.read()
    if not driver.gpus[number:]:
        why = driver.why or f"it has no number {number}"
        raise UnavailableError(f"{version} is here, but no GPU: {why}")
    return driver.gpus[number]


def nvinfer(version: str, install: str) -> str:
    """Load the TensorRT that the provider was linked with, and return its version.

    The provider looks for it where the system does, and not where pip puts it; but a library that
    is loaded already, it takes. CUDA's libraries are ONNX Runtime's own to find.

    Raises:
        UnavailableError: it is not there.
    """
    linked = Path(ort.__file__).parent / "capi" / LINKED
    found = NEEDS.search(linked.read_bytes()) if linked.is_file() else None
    major = found[1].decode() if found else "10"
    preload()
    wheel = find_spec(WHEEL)
    folders = ["", *((wheel and wheel.submodule_search_locations) or ())]
    library = load(f"libnvinfer.so.{major}", folders)
    parser = load(f"libnvonnxparser.so.{major}", folders)
    if library is None or parser is None:
        name = "libnvonnxparser" if library else "libnvinfer"
        raise UnavailableError(
            f"{TENSORRT} of {version} needs {name}.so.{major}, of TensorRT {major}, which is not "
            f"here: {install}, or put its folder into LD_LIBRARY_PATH"
        )
    number = int(library.getInferLibVersion())  # 101601 is 10.16.1
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def load(name: str, folders: list[str]) -> Any:
    """Load a library from the first folder that has it; None: none has."""
    for folder in folders:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(Path(folder) / name) if folder else name, ctypes.RTLD_GLOBAL)
    return None


def rtx(engine: str, version: str, install: str, number: int) -> Provider:
    """Find the provider of TensorRT-RTX: a plugin, or built in.

    Raises:
        UnavailableError: says what is missing, and how to get it.
    """
    plugin = find_spec(PLUGIN)
    if plugin is None and RTX not in ort.get_available_providers():
        raise missing(PLUGIN, BACKENDS[engine].extra, f"the {engine} engine")
    gpu = device(version, number)  # before the plugin, which does not load without a driver
    if gpu.capability not in ADA_AND_AMPERE and gpu.capability < BLACKWELL:
        raise UnavailableError(
            f"TensorRT for RTX has no provider for {gpu}: choose the ort-tensorrt engine, "
            "pip install 'm3rt[ort-tensorrt]'"
        )
    if plugin is None:
        return Provider(RTX, version, gpu)
    try:
        module = import_module(PLUGIN)
        if not (devices := listed(number)):
            ort.register_execution_provider_library(RTX, module.get_library_path())
            devices = listed(number)
    except Exception as error:  # the binding has no common class for its errors
        raise UnavailableError(
            f"{PLUGIN} cannot be loaded into {version}: {error}; install it again: "
            f"pip install --force-reinstall 'm3rt[{BACKENDS[engine].extra}]'"
        ) from error
    if not devices:
        raise UnavailableError(
            f"{PLUGIN} {module.__version__} has no device where the driver has {gpu}: update the "
            "driver, or choose the ort-tensorrt engine"
        )
    return Provider(RTX, f"{version}, {PLUGIN} {module.__version__}", gpu, devices)


def listed(number: int) -> tuple[Any, ...]:
    """Return the device of a number that the registered library has, if it has one."""
    return tuple(one for one in ort.get_ep_devices() if one.ep_name == RTX)[number : number + 1]


def opened(
    provider: Provider,
    graph: Path,
    profile: Profile,
    again: str,
    folder: Path | None,
    fresh: bool = False,
) -> ort.InferenceSession:
    """Open a session on the provider, and no other in its place.

    Args:
        provider: to run it.
        graph: every type of it is written, which the providers keep to unless told otherwise.
        profile: shapes to compile it for.
        again: the command that builds it again.
        folder: where the provider keeps what it compiles; None: it keeps nothing.
        fresh: the folder is empty, and to be filled.

    Raises:
        EngineError: the provider cannot run all of the graph.
    """
    options = session_options()
    # ONNX Runtime's own passes could change the types, or the pattern of attention
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    told = shapes(provider, profile) | caches(provider, folder, fresh)
    file = graph
    if provider.name != TENSORRT and folder is not None:
        if fresh:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(folder / CONTEXT))
            options.add_session_config_entry("ep.context_embed_mode", "0")
        else:
            file = folder / CONTEXT
    chosen: dict[str, Any] = {"providers": [(provider.name, told)]}
    if provider.devices:  # of a library that was registered: it is chosen by its device
        options.add_provider_for_devices(list(provider.devices), told)
        chosen = {}
    try:
        session = ort.InferenceSession(file, options, enable_fallback=0, **chosen)
    except Exception as error:  # the binding has no common class for its errors
        raise EngineError(f"{provider} cannot open {file}: {error}; {again}") from error
    elsewhere = {one.ep_name for one in session.get_provider_graph_assignment_info()}
    elsewhere -= {provider.name}
    if session.get_providers()[0] != provider.name or elsewhere:
        ran = ", ".join(sorted(elsewhere or session.get_providers()))
        raise EngineError(f"{provider} does not run all of {file}, but {ran}; {again}")
    return session


def shapes(provider: Provider, profile: Profile) -> dict[str, str]:
    """Return the options for a profile. One that cannot be read, the providers ignore."""
    bounds = {"min": profile.least, "opt": profile.best, "max": profile.most}
    return {
        f"{provider.prefix}_profile_{name}_shapes": ",".join(
            f"{tensor.name}:{texts}x{width}" for tensor in INPUTS
        )
        for name, (texts, width) in bounds.items()
    }


def caches(provider: Provider, folder: Path | None, fresh: bool) -> dict[str, str]:
    """Return the options for what is kept."""
    if provider.name == TENSORRT:
        # a network that is allowed none of these is strongly typed
        typed = {f"trt_{name}_enable": "0" for name in ("fp16", "bf16", "int8")}
        kept = {} if folder is None else {"trt_engine_cache_path": str(folder)}
        device = {"device_id": str(provider.gpu.index)}
        return {**device, **typed, "trt_engine_cache_enable": str(len(kept)), **kept}
    # kernels for the device; written when a session ends, so where the folder will stay
    return {} if folder is None or fresh else {"nv_runtime_cache_path": str(folder)}
