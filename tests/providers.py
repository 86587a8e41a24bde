"""Sessions on ONNX Runtime's providers of TensorRT, as far as a machine without them shows.

What is passed is recorded. The graph runs on the processor; what the providers' sources and
documents say of shapes and of files is kept to.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from m3rt import nvidia
from m3rt.engines import providers
from m3rt.engines.providers import RTX, TENSORRT
from m3rt.export import typed
from m3rt.graph import Graph
from m3rt.nvidia import Driver, Gpu

CPU = "CPUExecutionProvider"
TYPES = {1: "tensor(float)", 6: "tensor(int32)", 10: "tensor(float16)"}
DTYPES = {1: np.float32, 10: np.float16}
CONFIG = (
    "session.disable_cpu_ep_fallback",
    "session.record_ep_graph_assignment_info",
    "ep.context_enable",
    "ep.context_file_path",
    "ep.context_embed_mode",
)
MAGIC = "compiled for "  # what an engine's file begins with


@dataclasses.dataclass
class Machine:
    """What a test's machine has, and what was done on it."""

    gpu: Gpu = dataclasses.field(default_factory=lambda: Gpu(0, "A GPU", (8, 9), 24 << 30))
    compiled: int = 0
    sessions: list[Opened] = dataclasses.field(default_factory=list)
    elsewhere: str = ""  # a provider that gets a part of the graph
    full: int = 1 << 40  # tokens for which memory is short
    refuses: str = ""  # what the provider says instead of opening
    devices: Sequence[Any] = ()  # of a registered library
    registered: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Opened:
    """How a session was opened."""

    path: Path
    provider: str
    told: Mapping[str, str]
    fallback: int
    config: Mapping[str, str]
    level: Any
    devices: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True)
class Named:
    name: str = ""
    type: str = ""
    ep_name: str = ""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """The module of RTX's package."""

    __version__ = "0.5.0"

    def get_library_path(self) -> str:
        return "/somewhere/libonnxruntime_providers_nv_tensorrt_rtx.so"


@cache
def runnable(path: Path, changed: int) -> tuple[ort.InferenceSession, onnx.ModelProto]:
    """A graph file on the processor, and its head."""
    whole = onnx.load(path)
    graph = typed.runnable(Graph(whole.SerializeToString(), {}, "", ()))
    return REAL(graph.proto, providers=[CPU]), onnx.load(path, load_external_data=False)


REAL = ort.InferenceSession


class Options(ort.SessionOptions):  # type: ignore[misc]  # the binding has no types
    """Session options that tell what they were given."""

    chosen: tuple[Sequence[Any], Mapping[str, str]] | None = None

    def add_provider_for_devices(self, devices: Sequence[Any], told: Mapping[str, str]) -> None:
        self.chosen = devices, told


def install(monkeypatch: pytest.MonkeyPatch, machine: Machine, name: str = TENSORRT) -> None:
    """Put a provider into this process: TensorRT's built in, RTX's as a plugin."""

    class Session:
        def __new__(cls, *arguments: Any, **named: Any) -> Any:
            if CPU in str(named.get("providers")):
                return REAL(*arguments, **named)
            return super().__new__(cls)

        def __init__(
            self,
            path: Path,
            options: Options,
            providers: Sequence[tuple[str, Mapping[str, str]]] = (),
            enable_fallback: int = 1,
        ) -> None:
            devices: Sequence[Any] = ()
            if providers:
                ((provider, told),) = providers
            else:
                assert options.chosen is not None
                (devices, told), provider = options.chosen, RTX
            assert all(isinstance(v, str) for v in told.values())
            there = config(options)
            level = options.graph_optimization_level
            self.how = Opened(path, provider, told, enable_fallback, there, level, devices)
            machine.sessions.append(self.how)
            if machine.refuses:
                raise RuntimeError(machine.refuses)
            graph = self._compile()
            self._session, self._model = runnable(graph, graph.stat().st_mtime_ns)

        def _compile(self) -> Path:
            """Find the engine, or make it; return the graph."""
            how = self.how
            wanted = MAGIC + json.dumps(
                sorted((k, v) for k, v in how.told.items() if "shapes" in k)
            )
            if how.path.name == "context.onnx":
                stored = how.path.read_text()
                if not stored.startswith(wanted):
                    raise RuntimeError("TensorRT EP could not deserialize engine from cache")
                return Path(stored.removeprefix(wanted))
            if context := how.config.get("ep.context_file_path"):
                Path(context).write_text(wanted + str(how.path))
            elif how.told.get("trt_engine_cache_enable") == "1":
                engine = Path(how.told["trt_engine_cache_path"]) / "TRTKernel_sm89.engine"
                if engine.exists():
                    if engine.read_text() != wanted:
                        raise RuntimeError("TensorRT EP could not deserialize engine from cache")
                    return how.path
                engine.write_text(wanted)
            machine.compiled += 1
            return how.path

        def run(self, names: list[str], feed: Mapping[str, Any]) -> list[Any]:
            texts, width = feed["input_ids"].shape
            for tensor, values in feed.items():
                assert values.dtype == np.int32
                low, high = (self._bounds(tensor, name) for name in ("min", "max"))
                shape = zip(low, values.shape, high, strict=True)
                if not all(a <= b <= c for a, b, c in shape):
                    raise RuntimeError(f"setInputShape() for input '{tensor}' failed")
            if texts * width >= machine.full:
                raise RuntimeError("CUDA failure 2: out of memory")
            assert names
            types = {one.name: one.type.tensor_type.elem_type for one in self._model.graph.output}
            found = self._session.run(names, dict(feed))
            return [v.astype(DTYPES[types[n]]) for n, v in zip(names, found, strict=True)]

        def _bounds(self, tensor: str, name: str) -> tuple[int, ...]:
            (text,) = (v for k, v in self.how.told.items() if k.endswith(f"_profile_{name}_shapes"))
            shapes = dict(one.split(":") for one in text.split(","))
            return tuple(map(int, shapes[tensor].split("x")))

        def get_providers(self) -> list[str]:
            return [self.how.provider, CPU]

        def get_provider_graph_assignment_info(self) -> list[Named]:
            names = [self.how.provider, *filter(None, [machine.elsewhere])]
            return [Named(ep_name=one) for one in names]

        def get_inputs(self) -> list[Named]:
            return named(self._model.graph.input)

        def get_outputs(self) -> list[Named]:
            return named(self._model.graph.output)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(nvidia, "missing", lambda: None)
    monkeypatch.setattr(nvidia, "read", lambda: Driver("13.0", (machine.gpu,)))
    if name == TENSORRT:
        monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CPU])
        monkeypatch.setattr(providers, "nvinfer", lambda version, install: "10.16.1")
        return
    if not machine.devices:
        machine.devices = [Named(ep_name=CPU), Named("first", ep_name=RTX), Named("2", ep_name=RTX)]

    def register(name: str, path: str) -> None:
        machine.registered.append((name, path))

    monkeypatch.setattr(providers, "find_spec", lambda name: name == providers.PLUGIN or None)
    monkeypatch.setattr(providers, "import_module", lambda name: Plugin())
    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    monkeypatch.setattr(
        ort, "get_ep_devices", lambda: machine.devices if machine.registered else []
    )


def config(options: ort.SessionOptions) -> dict[str, str]:
    """What of the entries that matter here was set."""
    found = {}
    for key in CONFIG:
        try:
            found[key] = options.get_session_config_entry(key)
        except Exception:  # it was not set
            continue
    return found


def named(values: Any) -> list[Named]:
    return [Named(one.name, TYPES[one.type.tensor_type.elem_type]) for one in values]
