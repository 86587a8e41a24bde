"""Engines by name. Each lives in a module with ``load(artifact, name)`` and ``probe(name)``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from m3rt.artifact import Artifact
from m3rt.errors import InputError, UnavailableError, missing
from m3rt.types import Engine


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an engine is, and what installs it."""

    module: str
    package: str  # what the module imports
    extra: str  # the extra of m3rt that installs it
    automatic: bool  # whether engine="auto" may choose it


# In the order in which "auto" tries them.
BACKENDS = {
    "cpu": Backend("m3rt.engines.ort", "onnxruntime", "cpu", automatic=True),
    # the portable graph, as other runtimes run it: to check it, slower and hungrier than cpu
    "cpu-padded": Backend("m3rt.engines.ort", "onnxruntime", "cpu", automatic=False),
    # not automatic: no GPU has run it yet
    "cuda": Backend("m3rt.engines.ort", "onnxruntime", "cuda", automatic=False),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can run here."""

    engine: str
    ready: bool
    detail: str  # version and device, or what is missing and how to get it


def load(artifact: Artifact, name: str = "auto") -> Engine:
    """Open an engine on a model directory.

    Raises:
        InputError: there is no engine of that name.
        UnavailableError: its package, provider or device is not there.
    """
    if name == "auto":
        name = automatic()
    module = _module(name)
    engine: Engine = module.load(artifact, name)
    return engine


def automatic() -> str:
    """Return the engine that ``auto`` stands for on this machine.

    Raises:
        UnavailableError: none can run.
    """
    probes = [probe(name) for name, backend in BACKENDS.items() if backend.automatic]
    for found in probes:
        if found.ready:
            return found.engine
    raise UnavailableError(
        "no engine can run here: " + "; ".join(f"{p.engine}: {p.detail}" for p in probes)
    )


def cores() -> int:
    """Return how many processors this process may use: a container's share, not the host's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def probe(name: str) -> Probe:
    """Say whether an engine can run here, without opening a model."""
    try:
        module = _module(name)
    except UnavailableError as error:
        return Probe(name, False, str(error))
    found: Probe = module.probe(name)
    return found


def _module(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise InputError(f"no engine {name!r}; there are auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    try:
        return import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name != backend.package:
            raise
        raise missing(backend.package, backend.extra, f"the {name} engine") from error
