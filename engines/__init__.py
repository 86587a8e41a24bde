"""Engines by name. Each lives in a module with ``load``, ``probe``, ``precision`` and ``build``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from m3rt import processor
from m3rt.artifact import Artifact
from m3rt.errors import InputError, UnavailableError, missing
from m3rt.types import Engine


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an engine is, what installs it, and what it computes in."""

    module: str
    package: str  # what the module imports
    extra: str  # the extra of m3rt that installs it
    precisions: tuple[str, ...]
    automatic: bool  # whether engine="auto" may choose it


BACKENDS = {
    "openvino": Backend(
        "m3rt.engines.ov", "openvino", "openvino", ("bf16", "fp32", "int8"), automatic=True
    ),
    "cpu": Backend("m3rt.engines.ort", "onnxruntime", "cpu", ("fp32", "int8"), automatic=True),
    # the portable graph, as other runtimes run it: to check it, slower and hungrier than cpu
    "cpu-padded": Backend("m3rt.engines.ort", "onnxruntime", "cpu", ("fp32",), automatic=False),
    # not automatic: no GPU has run it yet
    "cuda": Backend("m3rt.engines.ort", "onnxruntime", "cuda", ("fp32",), automatic=False),
}
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and the precision it computes in. As text: ``cpu:int8``."""

    engine: str
    precision: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.engine}:{self.precision}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can run here."""

    engine: str
    ready: bool
    detail: str  # version and device, or what is missing and how to get it


def load(artifact: Artifact, spec: str = "auto", streams: int = 1) -> Engine:
    """Open an engine on a model directory.

    Args:
        artifact: the model directory.
        spec: ``auto``, an engine, or an engine and its precision: ``cpu:int8``.
        streams: how many batches run at once, each on its share of the cores.

    Raises:
        InputError: there is no such engine or precision.
        UnavailableError: its package, provider or device is not there.
        ArtifactError: the model has not been built for it.
    """
    if streams < 1:
        raise InputError(f"streams is {streams}, expected at least 1")
    choice = choose(spec)
    if choice.precision == "int8" and not (cpu := processor.read()).exact_int8:
        raise UnavailableError(
            f"int8 needs a processor with one of {', '.join(sorted(processor.INT8))}; {cpu.model} "
            "adds in 16 bits, which overflow: choose fp32"
        )
    engine: Engine = _module(choice.engine).load(artifact, choice, streams)
    return engine


def build(
    artifact: Artifact, choice: Choice, graph: Path | None, out: Path
) -> Mapping[str, object]:
    """Let an engine write what it wants to find when it loads; see its module.

    Args:
        artifact: the model directory.
        choice: what to build.
        graph: the quantised graph, for int8.
        out: directory for the files.

    Returns:
        What was done, for the manifest; empty if there is nothing to prepare.
    """
    done: Mapping[str, object] = _module(choice.engine).build(artifact, choice, graph, out)
    return done


def form(choice: Choice) -> str:
    """Return the form of graph that an engine runs: packed, grouped or portable."""
    found: str = _module(choice.engine).FORMS[choice.engine]
    return found


def choose(spec: str) -> Choice:
    """Return the engine and the precision that a spec stands for on this machine.

    Raises:
        InputError: there is no such engine or precision.
        UnavailableError: it cannot run here; for ``auto``, none can.
    """
    if spec == "auto":
        return automatic()
    name, _, precision = spec.partition(":")
    known = _backend(name).precisions
    if precision and precision not in known:
        raise InputError(f"{name} has no precision {precision!r}; there are {', '.join(known)}")
    if precision:
        return Choice(name, precision, "asked for")
    default: str = _module(name).precision(name)
    return Choice(name, default, "asked for, in the best near-lossless precision it has here")


def automatic() -> Choice:
    """Return what ``auto`` stands for on this machine: the fastest near-lossless choice.

    OpenVINO's bf16 where the processor multiplies bf16 (twice the speed of float32 in
    benchmarks/results/race.json), else float32 on ONNX Runtime, where a text's result does not
    depend on its batch in any bit. int8 is faster still, but changes results: only when asked for.

    Raises:
        UnavailableError: no engine can run.
    """
    probes = {name: probe(name) for name, backend in BACKENDS.items() if backend.automatic}
    ready = [name for name, found in probes.items() if found.ready]
    for name in ready:
        if _module(name).precision(name) == "bf16":
            return Choice(name, "bf16", f"this processor multiplies bf16; {probes[name].detail}")
    for name in ("cpu", "openvino"):
        if name in ready:
            return Choice(name, "fp32", f"no engine has fast bf16 here; {probes[name].detail}")
    raise UnavailableError(
        "no engine can run here: " + "; ".join(f"{p.engine}: {p.detail}" for p in probes.values())
    )


def probe(name: str) -> Probe:
    """Say whether an engine can run here, without opening a model."""
    try:
        module = _module(name)
    except UnavailableError as error:
        return Probe(name, False, str(error))
    found: Probe = module.probe(name)
    return found


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise InputError(
            f"no engine {name!r}; there are auto, {', '.join(BACKENDS)}, each with a precision "
            "if you like, as in cpu:int8"
        )
    return BACKENDS[name]


def _module(name: str) -> ModuleType:
    backend = _backend(name)
    try:
        return import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name != backend.package:
            raise
        raise missing(backend.package, backend.extra, f"the {name} engine") from error
