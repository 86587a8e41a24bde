"""What this machine has, and which engines can run on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from m3rt import __version__, engines, nvidia, processor
from m3rt.artifact import Artifact
from m3rt.engines import Probe
from m3rt.errors import UnavailableError
from m3rt.nvidia import Driver
from m3rt.processor import Cpu, table

PACKAGES = (
    *("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"),
    *("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "torch", "transformers", "onnx"),
    *("optimum", "pyarrow"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    packages: Mapping[str, str | None]  # name to version; None: not installed
    cpu: Cpu
    memory: int | None  # bytes in all; None: unknown
    nvidia: Driver
    engines: tuple[Probe, ...]
    auto: str | None  # engine and precision that auto stands for; None: no engine can run
    why: str

    @property
    def ready(self) -> bool:
        """Whether at least one engine can run."""
        return any(probe.ready for probe in self.engines)


def examine(proc: Path = Path("/proc")) -> Report:
    """Look at the machine. Only the engines' own libraries are imported, nothing is changed."""
    auto, why = automatic()
    return Report(
        packages={"python": platform.python_version(), "m3rt": __version__}
        | {name: version(name) for name in PACKAGES},
        cpu=processor.read(proc / "cpuinfo"),
        memory=memory(proc / "meminfo"),
        nvidia=nvidia.read(),
        engines=tuple(map(engines.probe, engines.BACKENDS)),
        auto=auto,
        why=why,
    )


def automatic(artifact: Artifact | None = None) -> tuple[str | None, str]:
    """Return the engine and precision that ``auto`` stands for here, and why."""
    try:
        choice = engines.automatic(artifact)
    except UnavailableError as error:
        return None, str(error)
    return str(choice), choice.why


def version(package: str) -> str | None:
    """Return the version installed, without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory(info: Path) -> int | None:
    """Read the total of /proc/meminfo, which counts in KiB."""
    total = table(info).get("MemTotal")
    return int(total.split()[0]) << 10 if total else None
